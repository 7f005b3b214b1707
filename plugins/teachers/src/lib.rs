//! Built-in teachers: `limbeck.hf`, a model folder as Hugging Face lays it out.
//!
//! Architectures live in `limbeck-models`. Invariant: no weight is trainable, and no file is read after `activate`.

mod hf;
#[cfg(test)]
mod tests;

limbeck_sdk::export! {
    candle_differentiable_teacher hf::Hf,
}
