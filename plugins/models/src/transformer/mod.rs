//! Transformer encoders of the BERT family: BERT, RoBERTa and DistilBERT are one [`Encoder`] with different names and
//! heads, on the CPU with a forward and a backward pass of their own, on other devices as a graph of candle's.
//!
//! Runs on the CPU in f32 and f64; refuses other dtypes there. A batch is divided into groups of whole sequences;
//! a group goes through a block on one thread, so what follows a product finds its rows in the cache. Invariant: groups
//! and tiles follow from the batch and the sizes alone, so results do not depend on the number of threads.

mod attention;
mod batch;
mod block;
mod config;
mod embedding;
mod first_tokens;
mod graph;
mod head;
mod hugging_face;
mod kept;
mod model;
mod names;
mod outputs;
mod pass;
mod sequences;
mod spares;
#[cfg(test)]
mod tests;
mod transfer;

pub use config::{Encoder, Family, Head};
pub(crate) use hugging_face::{activation, activation_name};
pub use names::Place;
pub use transfer::spread;
