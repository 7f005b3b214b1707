//! Whether a model takes every id that its tokenizer makes, and texts as long.
//!
//! Knows sizes only from the `config.json` that a model offers; one that offers none is not judged.

use super::Source;
use crate::data::Dataset;
use crate::diagnostic::Diagnostic;
use crate::load::{Instance, codes};
use serde_json::Value as Json;

/// Problems of the token columns that a model reads, without a place.
pub(super) fn check(
    model: &Instance,
    inputs: &[Option<Source>],
    data: &Dataset,
) -> Vec<Diagnostic> {
    let columns = inputs.iter().flatten().filter_map(|source| match source {
        Source::Batch(column) => data.encoder(column),
        _ => None,
    });
    let encoders: Vec<_> = columns.collect();
    if encoders.is_empty() {
        return Vec::new();
    }
    let config = match model.folder_config() {
        Ok(Some(config)) => config,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![error.diagnostic()],
    };
    let size = |key: &str| config.get(key).and_then(Json::as_u64);
    let mut problems = Vec::new();
    for encoder in encoders {
        let (ids, file) = (encoder.num_ids() as u64, encoder.file().display());
        if let Some(known) = size("vocab_size").filter(|known| *known < ids) {
            let message = format!(
                "tokenizer {file} makes ids 0..{}, `{}` knows {known} of them",
                ids.saturating_sub(1),
                model.id()
            );
            problems.push(
                Diagnostic::error(codes::TOKENIZER, message).help(
                    "use the tokenizer that belongs to the model; a fresh model can have a larger `vocab_size`",
                ),
            );
        }
        // Embeddings are padded to round sizes; a tenth is more than that.
        if let Some(known) = size("vocab_size").filter(|known| ids * 10 < known * 9) {
            let message =
                format!("tokenizer {file} makes {ids} ids, `{}` knows {known}", model.id());
            problems.push(Diagnostic::warning(codes::FEW_TOKENS, message).help(
                "is it the model's own? With another's, each token is some other word to the model",
            ));
        }
        let length = encoder.max_length() as u64;
        if let Some(known) = size("max_position_embeddings").filter(|known| *known < length) {
            let message =
                format!("texts are cut to {length} tokens, `{}` takes {known} at most", model.id());
            problems.push(
                Diagnostic::error(codes::TOKENIZER, message)
                    .help(format!("set `max_length: {known}` for the tokenizer")),
            );
        }
    }
    problems
}
