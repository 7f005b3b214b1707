//! Teacher caches: outputs of a teacher on some rows, written once, read instead of running it.
//!
//! A directory of safetensors shards and `manifest.json`, which is written last: a directory without one is no cache.
//! The manifest says what the outputs depend on (teacher, tokenizer, data); a cache that disagrees is refused.

mod identity;
mod manifest;
mod ranges;
mod reader;
mod shard;
#[cfg(test)]
mod tests;
mod writer;

pub use identity::{TeacherRecord, teacher_files};
pub use manifest::{FILE_NAME, Manifest, OutputRecord, SourceRecord, TOP_K, TopKRecord, read};
pub(crate) use ranges::Ranges;
pub(crate) use reader::Cache;
pub(crate) use writer::{Opened, Part, Writer};
