//! Names of an encoder's parameters, as Hugging Face writes them, and the tensors of files that stand for them.
//!
//! Knows the prefixes `bert.`, `roberta.`, `distilbert.` and their absence, and the old `gamma`, `beta`. Invariant: the
//! names of [`specs`] are those that the class of the same head writes, so an export is read without a warning.

use std::collections::BTreeMap;

use super::config::{Encoder, Family, Head};
use crate::architecture::Stored;
use crate::params::{Init, ParamSpec, Role};

/// What a parameter is for, whatever its name in a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Word embeddings.
    Word,
    /// Position embeddings.
    Position,
    /// Token type embeddings.
    Type,
    /// Normalization of the embeddings; 0 its weight, 1 its bias.
    EmbeddingNorm(usize),
    /// A block and which of its parameters, in the order of `BLOCK`.
    Block(usize, usize),
    /// A parameter of the head, in order.
    Head(usize),
}

/// Parameters of a block: query, key, value, output, their normalization, both feed-forward maps, theirs; each a weight
/// and a bias.
pub(super) const BLOCK: usize = 16;

const BERT_BLOCK: [&str; 8] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
];
const DISTILBERT_BLOCK: [&str; 8] = [
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
];

/// Prefixes of the part under the head.
const PREFIXES: [&str; 3] = ["bert.", "roberta.", "distilbert."];

/// Starts of names that belong to a head or are constants: skipped where the model has no use for them.
const SKIPPED: [&str; 9] = [
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "pooler.",
    "cls.",
    "classifier",
    "pre_classifier",
    "vocab_",
    "lm_head.",
    "qa_outputs",
];

impl Encoder {
    /// Parameters with their places, in the order of the specs.
    pub fn places(&self) -> Vec<(Place, ParamSpec)> {
        let prefix = match (self.head, self.family) {
            (Head::Embedding, _) => "",
            (_, Family::Bert) => PREFIXES[0],
            (_, Family::Roberta) => PREFIXES[1],
            (_, Family::DistilBert) => PREFIXES[2],
        };
        let mut out = Vec::new();
        self.embeddings(prefix, &mut out);
        let (blocks, parts) = match self.family {
            Family::DistilBert => ("transformer.layer", DISTILBERT_BLOCK),
            _ => ("encoder.layer", BERT_BLOCK),
        };
        for layer in 0..self.layers {
            for (i, part) in parts.into_iter().enumerate() {
                let name = format!("{prefix}{blocks}.{layer}.{part}");
                for (j, spec) in self.block_part(i, &name).into_iter().enumerate() {
                    out.push((Place::Block(layer, 2 * i + j), spec));
                }
            }
        }
        let head = self.head_specs(prefix);
        out.extend(head.into_iter().enumerate().map(|(i, spec)| (Place::Head(i), spec)));
        out
    }

    fn embeddings(&self, prefix: &str, out: &mut Vec<(Place, ParamSpec)>) {
        let table = |part: &str, rows: usize| {
            let name = format!("{prefix}embeddings.{part}_embeddings.weight");
            let init = Init::Normal { std: self.init_std };
            ParamSpec::new(name, &[rows, self.dim], init, Role::Weight)
        };
        out.push((Place::Word, table("word", self.vocab_size)));
        out.push((Place::Position, table("position", self.max_positions)));
        if self.token_types > 0 {
            out.push((Place::Type, table("token_type", self.token_types)));
        }
        let norm = self.norm(&format!("{prefix}embeddings.LayerNorm"));
        out.extend(norm.into_iter().enumerate().map(|(i, spec)| (Place::EmbeddingNorm(i), spec)));
    }

    fn block_part(&self, part: usize, name: &str) -> [ParamSpec; 2] {
        match part {
            4 | 7 => self.norm(name),
            5 => self.linear(name, self.dim, self.hidden_dim),
            6 => self.linear(name, self.hidden_dim, self.dim),
            _ => self.linear(name, self.dim, self.dim),
        }
    }

    fn head_specs(&self, prefix: &str) -> Vec<ParamSpec> {
        let dim = self.dim;
        let (dense, last) = match self.family {
            Family::Bert => (format!("{prefix}pooler.dense"), "classifier"),
            Family::Roberta => ("classifier.dense".to_owned(), "classifier.out_proj"),
            Family::DistilBert => ("pre_classifier".to_owned(), "classifier"),
        };
        match self.head {
            Head::Classification { classes } => {
                [self.linear(&dense, dim, dim), self.linear(last, dim, classes)].concat()
            }
            Head::Tokens { classes } => self.linear("classifier", dim, classes).to_vec(),
            Head::MaskedLm => {
                let [dense, norm, bias] = match self.family {
                    Family::Bert => [
                        "cls.predictions.transform.dense",
                        "cls.predictions.transform.LayerNorm",
                        "cls.predictions.bias",
                    ],
                    Family::Roberta => ["lm_head.dense", "lm_head.layer_norm", "lm_head.bias"],
                    Family::DistilBert => {
                        ["vocab_transform", "vocab_layer_norm", "vocab_projector.bias"]
                    }
                };
                let mut specs = [self.linear(dense, dim, dim), self.norm(norm)].concat();
                specs.push(ParamSpec::new(bias, &[self.vocab_size], Init::Zeros, Role::NoDecay));
                specs
            }
            Head::Embedding if self.pooler => {
                let mut specs = self.linear(&dense, dim, dim).to_vec();
                specs.iter_mut().for_each(|spec| spec.role = Role::Buffer);
                specs
            }
            Head::Embedding => Vec::new(),
        }
    }

    /// Hugging Face's start: weights normal, biases 0.
    fn linear(&self, name: &str, inputs: usize, outputs: usize) -> [ParamSpec; 2] {
        let init = Init::Normal { std: self.init_std };
        [
            ParamSpec::new(format!("{name}.weight"), &[outputs, inputs], init, Role::Weight),
            ParamSpec::new(format!("{name}.bias"), &[outputs], Init::Zeros, Role::NoDecay),
        ]
    }

    fn norm(&self, name: &str) -> [ParamSpec; 2] {
        [
            ParamSpec::new(format!("{name}.weight"), &[self.dim], Init::Ones, Role::NoDecay),
            ParamSpec::new(format!("{name}.bias"), &[self.dim], Init::Zeros, Role::NoDecay),
        ]
    }
}

/// All parameters in order.
pub(super) fn specs(encoder: &Encoder) -> Vec<ParamSpec> {
    encoder.places().into_iter().map(|(_, spec)| spec).collect()
}

/// A name without the prefix of its family.
fn base(name: &str) -> &str {
    PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name)
}

/// From the name of a tensor in a file to the parameter that it is.
pub(super) fn stored(encoder: &Encoder) -> Box<dyn Fn(&str) -> Stored> {
    let ours: BTreeMap<String, String> = specs(encoder)
        .into_iter()
        .map(|spec| (base(&spec.name).to_owned(), spec.name.clone()))
        .collect();
    Box::new(move |found| {
        let plain = base(found);
        let renamed = plain
            .strip_suffix(".gamma")
            .map(|stem| format!("{stem}.weight"))
            .or_else(|| plain.strip_suffix(".beta").map(|stem| format!("{stem}.bias")));
        match ours.get(renamed.as_deref().unwrap_or(plain)) {
            Some(name) => Stored::Param(name.clone()),
            None if SKIPPED.iter().any(|start| plain.starts_with(start)) => Stored::Skipped,
            None => Stored::Unknown,
        }
    })
}
