//! Texts to token ids.
//!
//! Takes over what a `tokenizer.json` says about splitting and special tokens, never its stored padding and truncation:
//! files in the wild pad every text to a fixed length. Padding is decided per batch; padded positions are masked.

use super::column::Texts;
use super::files;
use crate::diagnostic::{Diagnostic, Span};
use crate::plan::TokenizerPlan;
use crate::run::safetensors::Named;
use crate::tensor::Tensor;
use rayon::prelude::*;
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use tokenizers::{PostProcessor, Tokenizer, TruncationParams};

/// A tokenizer, set up for a pipeline.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    file: PathBuf,
    sha256: String,
    pad_id: u32,
    max_length: usize,
    pad_longest: bool,
    span: Option<Span>,
}

impl TextEncoder {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// `LMB0501` if it is missing, `LMB0516` if it cannot be used.
    pub(super) fn open(plan: &TokenizerPlan) -> Result<Self, Diagnostic> {
        let file =
            if plan.path.is_dir() { plan.path.join("tokenizer.json") } else { plan.path.clone() };
        let bad = |why: String| {
            Diagnostic::error(
                "LMB0516",
                format!("cannot use tokenizer `{}`: {why}", file.display()),
            )
            .at(plan.span.clone())
        };
        if !file.is_file() {
            return Err(files::missing(&file).at(plan.span.clone()));
        }
        let bytes = std::fs::read(&file).map_err(|e| bad(e.to_string()))?;
        // Some models of the tokenizer crate assert on their own files.
        let parsed = catch_unwind(AssertUnwindSafe(|| Tokenizer::from_bytes(&bytes)));
        let mut tokenizer = match parsed {
            Ok(Ok(tokenizer)) => tokenizer,
            Ok(Err(error)) => return Err(bad(error.to_string())),
            Err(_) => return Err(bad("it contradicts itself".into())),
        };
        let added = tokenizer.get_post_processor().map_or(0, |p| p.added_tokens(true));
        if plan.max_length <= added {
            return Err(bad(format!(
                "`max_length` {} leaves no room beside its {added} special tokens",
                plan.max_length
            )));
        }
        let pad_id = pad_id(&tokenizer, file.parent().unwrap_or(Path::new(".")));
        tokenizer.with_padding(None);
        let truncation =
            TruncationParams { max_length: plan.max_length, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| bad(e.to_string()))?;
        Ok(Self {
            tokenizer,
            sha256: files::sha256(&file)?,
            file,
            pad_id,
            max_length: plan.max_length,
            pad_longest: plan.pad_longest,
            span: plan.span.clone(),
        })
    }

    /// The `tokenizer.json`.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// SHA-256 of that file, hex: the fingerprint that teacher and student must share.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Rows that an embedding of its ids needs: the highest id, added tokens included, and 1.
    pub fn num_ids(&self) -> usize {
        let vocab = self.tokenizer.get_vocab(true);
        vocab.values().max().map_or(0, |id| *id as usize + 1).max(self.pad_id as usize + 1)
    }

    /// Tokens of a text at most.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Id that fills short rows.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// Length of a batch whose longest row has `longest` tokens.
    pub(super) fn width(&self, longest: usize) -> usize {
        if self.pad_longest { longest.max(1) } else { self.max_length }
    }

    /// Everything that decides which tokens a text becomes, hex.
    pub(super) fn fingerprint(&self) -> String {
        let padding = self.fixed_width().map_or_else(|| "longest".into(), |w| w.to_string());
        format!("{} {} {padding}", self.sha256, self.max_length)
    }

    /// Width of every batch, if it does not depend on the rows.
    pub(super) fn fixed_width(&self) -> Option<usize> {
        (!self.pad_longest).then_some(self.max_length)
    }

    /// Tokens of the rows in `wanted`; the others stay empty.
    ///
    /// # Errors
    /// `LMB0516` for a text that the tokenizer refuses.
    pub(super) fn encode(
        &self,
        texts: &Texts,
        pairs: Option<&Texts>,
        wanted: &BTreeSet<usize>,
    ) -> Result<Tokens, Diagnostic> {
        let rows: Vec<usize> = wanted.iter().copied().collect();
        let encoded: Result<Vec<Vec<EncodedRow>>, Diagnostic> = rows
            .par_chunks(256)
            .map(|chunk| chunk.iter().map(|row| self.row(texts, pairs, *row)).collect())
            .collect();
        let mut tokens =
            Tokens { ids: Vec::new(), types: pairs.map(|_| Vec::new()), ends: Vec::new() };
        let mut encoded = rows.iter().zip(encoded?.into_iter().flatten()).peekable();
        for row in 0..texts.rows() {
            if let Some((_, (ids, types))) = encoded.next_if(|(r, _)| **r == row) {
                tokens.ids.extend(ids);
                if let Some(all) = &mut tokens.types {
                    all.extend(types);
                }
            }
            tokens.ends.push(tokens.ids.len());
        }
        Ok(tokens)
    }

    fn row(
        &self,
        texts: &Texts,
        pairs: Option<&Texts>,
        row: usize,
    ) -> Result<EncodedRow, Diagnostic> {
        let text = texts.get(row);
        let encoded = catch_unwind(AssertUnwindSafe(|| match pairs {
            Some(pairs) => self.tokenizer.encode_fast((text, pairs.get(row)), true),
            None => self.tokenizer.encode_fast(text, true),
        }));
        let why = match encoded {
            Ok(Ok(encoding)) => {
                let types = if pairs.is_some() { encoding.get_type_ids() } else { &[] };
                return Ok((encoding.get_ids().to_vec(), types.iter().map(|t| *t as u8).collect()));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it fails on this text".into(),
        };
        let shown = super::problem::shown(text.as_bytes());
        Err(Diagnostic::error(
            "LMB0516",
            format!("tokenizer `{}`: row {row}, `{shown}`: {why}", self.file.display()),
        )
        .at(self.span.clone()))
    }
}

/// From the stored padding, then `pad_token` of `tokenizer_config.json`, then the usual names; else 0, which is masked.
fn pad_id(tokenizer: &Tokenizer, dir: &Path) -> u32 {
    if let Some(stored) = tokenizer.get_padding() {
        return stored.pad_id;
    }
    let config: Option<Json> = std::fs::read(dir.join("tokenizer_config.json"))
        .ok()
        .and_then(|b| serde_json::from_slice(&b).ok());
    let named = config.as_ref().and_then(|c| {
        let token = c.get("pad_token")?;
        token.as_str().or_else(|| token.get("content")?.as_str())
    });
    named
        .into_iter()
        .chain(["[PAD]", "<pad>", "<|endoftext|>"])
        .find_map(|t| tokenizer.token_to_id(t))
        .unwrap_or(0)
}

/// Ids and, for pairs, segments.
type EncodedRow = (Vec<u32>, Vec<u8>);

/// Token ids of all rows, end to end.
pub(super) struct Tokens {
    ids: Vec<u32>,
    /// Segment of each token; only for pairs.
    types: Option<Vec<u8>>,
    ends: Vec<usize>,
}

impl Tokens {
    fn range(&self, row: usize) -> std::ops::Range<usize> {
        let from = row.checked_sub(1).and_then(|r| self.ends.get(r)).copied().unwrap_or(0);
        from..self.ends.get(row).copied().unwrap_or(from)
    }

    pub(super) fn ids(&self, row: usize) -> &[u32] {
        self.ids.get(self.range(row)).unwrap_or_default()
    }

    pub(super) fn types(&self, row: usize) -> Option<&[u8]> {
        self.types.as_ref().map(|types| types.get(self.range(row)).unwrap_or_default())
    }

    /// As tensors: ids of all rows, where each row ends, segments.
    pub(super) fn to_tensors(&self) -> Named {
        let flat = |len: usize| [len as i64];
        let ends: Vec<i64> = self.ends.iter().map(|end| *end as i64).collect();
        let mut named = Named::from([
            ("ids".to_owned(), Tensor::from_slice(&self.ids, &flat(self.ids.len()))),
            ("ends".to_owned(), Tensor::from_slice(&ends, &flat(ends.len()))),
        ]);
        if let Some(types) = &self.types {
            named.insert("types".into(), Tensor::from_slice(types, &flat(types.len())));
        }
        named
    }

    /// What [`Tokens::to_tensors`] made of `rows` rows; `None` for anything else.
    pub(super) fn from_tensors(named: &Named, rows: usize, has_pair: bool) -> Option<Self> {
        let ids = named.get("ids")?.data::<u32>()?.to_vec();
        let ends = named.get("ends")?.data::<i64>()?;
        let ends: Option<Vec<usize>> = ends.iter().map(|e| usize::try_from(*e).ok()).collect();
        let ends = ends.filter(|ends| {
            ends.len() == rows && ends.is_sorted() && ends.last().copied().unwrap_or(0) == ids.len()
        })?;
        let types = match has_pair {
            true => Some(named.get("types")?.data::<u8>()?.to_vec()),
            false => None,
        };
        let whole = types.as_ref().is_none_or(|types| types.len() == ids.len());
        whole.then_some(Self { ids, types, ends })
    }
}
