//! Limbeck's built-in losses: what a student is trained on, as plugins and as a library.
//!
//! * [`settings`]: what a pipeline writes under `with`, checked.
//! * [`reference`]: the f64 oracle of the whole catalogue.
//! * [`plugin`]: the losses as plugins; the entry symbol is exported by feature `plugin`.
//! * [`cpu`]: the fast path of the losses that large models are trained with.
//! * `cuda`: the same on NVIDIA GPUs, with feature `cuda`.
//! * `candle_ops`, with feature `candle`: the dense losses as operations of candle programs, with `candle-cuda` on
//!   GPUs too.
//!
//! Every loss computes `value = Σ w ℓ / normalizer` over counted rows and the exact gradient of that value.
//! It divides by nothing else, so micro-batches add up.

#[cfg(feature = "candle")]
pub mod candle_ops;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(test)]
mod golden;
mod names;
pub mod plugin;
pub mod reference;
pub mod settings;
