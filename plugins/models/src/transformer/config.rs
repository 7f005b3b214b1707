//! What an encoder is before a weight exists: sizes, constants, ports, parameters.
//!
//! Refuses sizes of 0, heads that do not divide the width, and probabilities outside of [0, 1). Invariant: the order of
//! parameters is embeddings, blocks, head, as `names.rs` lists them; the passes find them by that order.

use serde::{Deserialize, Serialize};

use candle_core::DType;

use super::model::Transformer;
use super::names;
use crate::architecture::{Architecture, Model, Port, Stored};
use crate::error::{ModelError, setting};
use crate::layers::Activation;
use crate::mlp::{check_dropout, check_positive};
use crate::params::{ParamSpec, Params, check_size};

/// Which names and which head layout an encoder has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    /// Devlin et al. 2018.
    Bert,
    /// Liu et al. 2019: positions count from `pad_token_id + 1`, padding apart.
    Roberta,
    /// Sanh et al. 2019: no token types.
    DistilBert,
}

impl Family {
    /// Value of `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::Roberta => "roberta",
            Self::DistilBert => "distilbert",
        }
    }
}

/// What stands on top of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Class scores of a sequence, from its first token.
    Classification {
        /// Number of classes.
        classes: usize,
    },
    /// Class scores of each token.
    Tokens {
        /// Number of classes.
        classes: usize,
    },
    /// Scores of the vocabulary for each token; its matrix is the word embedding.
    MaskedLm,
    /// Nothing: `features` is the mean of the token states that the mask keeps.
    Embedding,
}

/// An encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoder {
    /// Names and head layout.
    pub family: Family,
    /// What stands on top.
    pub head: Head,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Longest sequence that has position embeddings (those of RoBERTa's offset included).
    pub max_positions: usize,
    /// Token types; 0 without them.
    pub token_types: usize,
    /// Width of a token state.
    pub dim: usize,
    /// Width inside the feed-forward part of a block.
    pub hidden_dim: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Attention heads of a block.
    pub heads: usize,
    /// Activation of the feed-forward part.
    pub activation: Activation,
    /// ε of layer normalization.
    pub norm_eps: f64,
    /// Probability that an element of a state is dropped in training.
    pub dropout: f64,
    /// Probability that an attention weight is dropped in training.
    pub attention_dropout: f64,
    /// Probability that an input of the head's last layer is dropped in training.
    pub head_dropout: f64,
    /// Standard deviation of initial weights.
    pub init_std: f64,
    /// Id of padding: its embedding gets no gradient, as with PyTorch's `padding_idx`. RoBERTa's positions begin after
    /// it.
    pub pad_token_id: usize,
    /// Whether [`Head::Embedding`] has the untrained pooler that `BertModel` expects in a file.
    pub pooler: bool,
    /// Whether a training pass keeps the input of each block alone and computes the block again in the backward pass.
    pub checkpointing: bool,
}

/// Most blocks: published encoders have below 100.
const MAX_LAYERS: usize = 1_000;

impl Encoder {
    /// Width of an attention head.
    pub(super) fn head_dim(&self) -> usize {
        self.dim / self.heads.max(1)
    }

    /// Position of the first token of a sequence.
    pub(super) fn first_position(&self) -> usize {
        if self.family == Family::Roberta { self.pad_token_id + 1 } else { 0 }
    }

    /// Rows of the tables of words, positions and types that get no gradient.
    pub(super) fn padding_rows(&self) -> [Option<usize>; 3] {
        let position = (self.family == Family::Roberta).then_some(self.pad_token_id);
        [Some(self.pad_token_id), position, None]
    }

    /// Longest sequence that the encoder takes.
    pub fn max_length(&self) -> usize {
        self.max_positions.saturating_sub(self.first_position())
    }

    fn check(&self) -> Result<(), ModelError> {
        check_positive("vocab_size", self.vocab_size)?;
        check_positive("dim", self.dim)?;
        check_positive("hidden_dim", self.hidden_dim)?;
        check_positive("layers", self.layers)?;
        check_positive("heads", self.heads)?;
        if self.layers > MAX_LAYERS {
            return Err(setting("layers", format!("is {}, above {MAX_LAYERS}", self.layers)));
        }
        if !self.dim.is_multiple_of(self.heads) {
            let problem = format!("is {}, which does not divide `dim` {}", self.heads, self.dim);
            return Err(setting("heads", problem));
        }
        if self.max_length() == 0 {
            let found = self.max_positions;
            return Err(setting("max_positions", format!("leaves no position, found {found}")));
        }
        for p in [self.dropout, self.attention_dropout, self.head_dropout] {
            check_dropout(p)?;
        }
        if let Head::Classification { classes } | Head::Tokens { classes } = self.head {
            check_positive("classes", classes)?;
            check_size("classes", &[classes, self.dim])?;
        }
        check_size("vocab_size", &[self.vocab_size, self.dim])?;
        check_size("max_positions", &[self.max_positions, self.dim])?;
        check_size("hidden_dim", &[self.hidden_dim, self.dim])?;
        check_size("dim", &[self.dim, self.dim])
    }

    /// Whether it has one of the outputs without a number.
    pub(super) fn offers(&self, name: &str) -> bool {
        match name {
            "logits" => self.head != Head::Embedding,
            "features" => matches!(self.head, Head::Embedding | Head::Classification { .. }),
            _ => name == "word_embeddings",
        }
    }

    /// Whether `logits` has a row for each token.
    pub(super) fn is_per_token(&self) -> bool {
        matches!(self.head, Head::Tokens { .. } | Head::MaskedLm)
    }
}

impl Architecture for Encoder {
    fn model_type(&self) -> &'static str {
        self.family.model_type()
    }

    fn inputs(&self) -> Vec<Port> {
        let ids = |name: &str, doc| Port {
            dtype: DType::I64,
            differentiable: false,
            ..Port::float(name, "B,T".to_owned(), doc)
        };
        let optional = |port: Port| Port { optional: true, ..port };
        let mut ports = vec![
            ids("input_ids", "token numbers"),
            optional(ids("attention_mask", "0: padding, neither seen nor counted")),
        ];
        if self.token_types > 0 {
            ports.push(optional(ids("token_type_ids", "0 everywhere when left out")));
        }
        let shape = format!("B,T,{}", self.dim);
        let doc = "stands in for the word embeddings of input_ids";
        ports.push(optional(Port::float("inputs_embeds", shape, doc)));
        ports
    }

    fn outputs(&self) -> Vec<Port> {
        let (dim, heads, head_dim) = (self.dim, self.heads, self.head_dim());
        let mut ports = Vec::new();
        match self.head {
            Head::Classification { classes } => {
                let shape = format!("B,{classes}");
                ports.push(Port::float("logits", shape, "unnormalized class scores"));
                let doc = "the classifier's input before dropout";
                ports.push(Port::float("features", format!("B,{dim}"), doc));
            }
            Head::Tokens { classes } => {
                let shape = format!("B,T,{classes}");
                ports.push(Port::float("logits", shape, "unnormalized class scores of tokens"));
            }
            Head::MaskedLm => {
                let shape = format!("B,T,{}", self.vocab_size);
                ports.push(Port::float("logits", shape, "unnormalized scores of the vocabulary"));
            }
            Head::Embedding => {
                let doc = "mean of the states of tokens that the mask keeps";
                ports.push(Port::float("features", format!("B,{dim}"), doc));
            }
        }
        let tokens = format!("B,T,{dim}");
        let doc = "word embeddings, as `inputs_embeds` takes them";
        ports.push(Port::float("word_embeddings", tokens.clone(), doc));
        for layer in 0..=self.layers {
            let doc = "token states after a block; 0: its first input";
            ports.push(Port::float(format!("hidden.{layer}"), tokens.clone(), doc));
        }
        for layer in 1..=self.layers {
            let doc = "scaled query-key products before mask and softmax";
            let shape = format!("B,{heads},T,T");
            ports.push(Port::float(format!("attention.{layer}"), shape, doc));
            for part in ["query", "key", "value"] {
                let doc = "projections of a block's attention, by head";
                let shape = format!("B,{heads},T,{head_dim}");
                ports.push(Port::float(format!("{part}.{layer}"), shape, doc));
            }
        }
        ports
    }

    fn params(&self) -> Result<Vec<ParamSpec>, ModelError> {
        self.check()?;
        Ok(names::specs(self))
    }

    fn build(&self, params: &Params) -> Result<Box<dyn Model>, ModelError> {
        self.check()?;
        Ok(Box::new(Transformer::new(self.clone(), params)?))
    }

    fn stored(&self) -> Box<dyn Fn(&str) -> Stored> {
        names::stored(self)
    }

    /// What the backward pass reads (queries, keys, values, context, two normalized states, the feed-forward input),
    /// and the gradients of one block.
    fn activations(&self, input: &[usize]) -> u64 {
        let tokens = input.iter().take(2).fold(1u64, |n, &size| n.saturating_mul(size as u64));
        let (dim, inner) = (self.dim as u64, self.hidden_dim as u64);
        let block = 6 * dim + inner;
        let kept = if self.checkpointing { dim } else { block };
        let a_token = kept * self.layers as u64 + 2 * block + 2 * inner;
        let logits = match self.head {
            Head::Tokens { classes } => classes as u64,
            Head::MaskedLm => self.vocab_size as u64,
            _ => 0,
        };
        tokens.saturating_mul(a_token + logits)
    }
}
