//! What a run leaves for others: TensorBoard events, Hugging Face directories, model cards.
//!
//! Takes finished values and writes files; computes nothing. Each export is either whole or not there.

mod card;
pub mod hf;
pub mod safetensors;
pub mod tensorboard;
