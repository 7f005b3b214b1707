//! Built-in students: `limbeck.mlp`, `limbeck.cnn`, `limbeck.bert` and `limbeck.distilbert`, models of
//! `limbeck-models` behind the SDK's candle student.
//!
//! Settings live here, models there. Invariant: the settings of a student, with their defaults, are a `config.json` of
//! its architecture, so that an export can be read back by name.

mod cnn;
mod encoder;
mod mlp;
mod model;
mod start;
#[cfg(test)]
mod tests;

limbeck_sdk::export! {
    candle_student mlp::Mlp,
    candle_student cnn::Cnn,
    candle_student encoder::Bert,
    candle_student encoder::DistilBert,
}
