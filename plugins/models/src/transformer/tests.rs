//! Values and gradients of small encoders in f64, for every family, head and output.

use candle_core::{Device, Tensor};

use super::batch::Batch;
use super::config::{Encoder, Family, Head};
use super::outputs::Wanted;
use super::pass::{Pass, Weights};
use super::spares::Spares;
use crate::architecture::{Architecture, Inputs};
use crate::layers::Activation;
use crate::params::Role;

pub(super) const KEY: [u64; 2] = [3, 4];

pub(super) fn encoder(family: Family, head: Head) -> Encoder {
    Encoder {
        family,
        head,
        vocab_size: 11,
        max_positions: 9,
        token_types: if family == Family::DistilBert { 0 } else { 2 },
        dim: 6,
        hidden_dim: 10,
        layers: 2,
        heads: 2,
        activation: Activation::Gelu,
        norm_eps: 1e-12,
        dropout: 0.0,
        attention_dropout: 0.0,
        head_dropout: 0.0,
        init_std: 0.02,
        pad_token_id: 1,
        pooler: false,
        checkpointing: false,
    }
}

pub(super) const CLASSIFY: Head = Head::Classification { classes: 3 };
pub(super) const HEADS: [Head; 4] =
    [CLASSIFY, Head::Tokens { classes: 3 }, Head::MaskedLm, Head::Embedding];
pub(super) const FAMILIES: [Family; 3] = [Family::Bert, Family::Roberta, Family::DistilBert];

/// Weights that are large enough for every part to matter.
pub(super) fn weights(encoder: &Encoder) -> Vec<Vec<f64>> {
    let specs = encoder.params().unwrap();
    let values = |(i, spec): (usize, &crate::ParamSpec)| {
        let shift = if spec.name.to_lowercase().contains("norm.weight") { 1.0 } else { 0.0 };
        (0..spec.count())
            .map(|j| shift + 0.5 * ((i * 37 + j) as f64 * 2.399_963 + 1.0).sin())
            .collect()
    };
    specs.iter().enumerate().map(values).collect()
}

/// Three sequences of lengths 5, 2 and 4; padding has id 1.
pub(super) fn inputs() -> Inputs<'static> {
    let ids = [[7i64, 3, 9, 2, 4], [5, 8, 1, 1, 1], [10, 0, 6, 6, 1]];
    let mask = ids.map(|row| row.map(|id| i64::from(id != 1)));
    let types = ids.map(|row| row.map(|id| i64::from(id % 2 == 0)));
    let tensor = |values: [[i64; 5]; 3]| Tensor::new(&values, &Device::Cpu).unwrap();
    Inputs::from([
        ("input_ids", tensor(ids)),
        ("attention_mask", tensor(mask)),
        ("token_type_ids", tensor(types)),
    ])
}

pub(super) fn wave(count: usize) -> Vec<f64> {
    (0..count).map(|i| (1.0 + 2.399_963 * i as f64).sin()).collect()
}

pub(super) struct Case {
    pub(super) encoder: Encoder,
    pub(super) batch: Batch,
    pub(super) wanted: Vec<Wanted>,
    pub(super) embeds: Option<Vec<f64>>,
    pub(super) key: Option<[u64; 2]>,
    /// Passes share buffers, so a stale element would show.
    pub(super) spares: Spares,
}

impl Case {
    pub(super) fn new(encoder: Encoder, names: &[&str]) -> Self {
        let wanted = names.iter().map(|name| Wanted::parse(name, &encoder).expect(name));
        let wanted: Vec<_> = wanted.collect();
        let is_packed = !wanted.iter().any(|w| w.is_padded(&encoder));
        let batch = Batch::new(&encoder, &inputs(), is_packed).unwrap();
        Self { encoder, batch, wanted, embeds: None, key: None, spares: Spares::default() }
    }

    fn pass<'a>(&'a self, weights: &'a [Vec<f64>]) -> Pass<'a, f64> {
        let all = weights.iter().map(Vec::as_slice).collect();
        let weights = Weights::new(&self.encoder, all);
        Pass {
            encoder: &self.encoder,
            weights,
            batch: &self.batch,
            key: self.key,
            spares: &self.spares,
        }
    }

    pub(super) fn outputs(
        &self,
        weights: &[Vec<f64>],
        embeds: Option<&[f64]>,
    ) -> Vec<(Wanted, Vec<f64>)> {
        let (found, _) = self.pass(weights).forward(&self.wanted, embeds, false).unwrap();
        self.wanted.iter().map(|w| found.iter().find(|(f, _)| f == w).unwrap().clone()).collect()
    }

    /// Σ ⟨output, wave⟩.
    fn objective(&self, weights: &[Vec<f64>], embeds: Option<&[f64]>) -> f64 {
        let product = |(_, values): &(Wanted, Vec<f64>)| -> f64 {
            values.iter().zip(wave(values.len())).map(|(x, w)| x * w).sum()
        };
        self.outputs(weights, embeds).iter().map(product).sum()
    }

    /// Gradients of the objective, parameters first, then `inputs_embeds`.
    pub(super) fn gradients(&self, weights: &[Vec<f64>]) -> (Vec<Vec<f64>>, Vec<f64>) {
        let pass = self.pass(weights);
        let (found, record) = pass.forward(&self.wanted, self.embeds.as_deref(), true).unwrap();
        let waves: Vec<_> = found.iter().map(|(w, values)| (*w, wave(values.len()))).collect();
        let wanted = waves.iter().filter(|(w, _)| self.wanted.contains(w));
        let cotangents: Vec<_> = wanted.map(|(w, values)| (*w, values.as_slice())).collect();
        let mut grads: Vec<Vec<f64>> = weights.iter().map(|w| vec![0.0; w.len()]).collect();
        let mut embeds = vec![0.0; self.embeds.as_ref().map_or(0, Vec::len)];
        let to = grads.iter_mut().map(|grad| Some(grad.as_mut_slice())).collect();
        let d_embeds = self.embeds.is_some().then_some(embeds.as_mut_slice());
        pass.backward(record.unwrap(), &cotangents, to, d_embeds).unwrap();
        (grads, embeds)
    }

    /// Compares gradients with central differences, ε 1e-6, at every 7th entry: relative 1e-6, absolute 1e-7.
    fn check(&self) {
        let weights = weights(&self.encoder);
        let names: Vec<_> = self.encoder.params().unwrap().into_iter().map(|s| s.name).collect();
        let (grads, d_embeds) = self.gradients(&weights);
        let close = |name: &str, j: usize, grad: f64, up: f64, down: f64| {
            let wanted = (up - down) / 2e-6;
            let error = (grad - wanted).abs();
            let bound = 1e-7 + 1e-6 * wanted.abs().max(1.0);
            assert!(error < bound, "{:?} {name}[{j}]: {grad}, {wanted}", self.wanted);
        };
        let padding = self.encoder.padding_rows();
        for (i, grad) in grads.iter().enumerate() {
            for j in (i % 7..grad.len()).step_by(7) {
                if padding.get(i).is_some_and(|&row| row == Some(j / 6)) {
                    continue;
                }
                let at = |step: f64| {
                    let mut weights = weights.clone();
                    weights[i][j] += step;
                    self.objective(&weights, self.embeds.as_deref())
                };
                close(&names[i], j, grad[j], at(1e-6), at(-1e-6));
            }
        }
        for j in (0..d_embeds.len()).step_by(7) {
            let at = |step: f64| {
                let mut embeds = self.embeds.clone().unwrap();
                embeds[j] += step;
                self.objective(&weights, Some(&embeds))
            };
            close("inputs_embeds", j, d_embeds[j], at(1e-6), at(-1e-6));
        }
    }
}

/// The outputs of a head that are there.
pub(super) fn tops(head: Head) -> &'static [&'static str] {
    match head {
        Head::Classification { .. } => &["logits", "features"],
        Head::Embedding => &["features"],
        _ => &["logits"],
    }
}

#[test]
fn gradients_match_differences_for_every_family_and_head() {
    for family in FAMILIES {
        for head in HEADS {
            Case::new(encoder(family, head), tops(head)).check();
        }
    }
}

#[test]
fn gradients_match_differences_for_every_output() {
    let encoder = encoder(Family::Bert, CLASSIFY);
    for names in [
        &["hidden.0"][..],
        &["hidden.1", "hidden.2", "logits"],
        &["attention.1"],
        &["attention.2", "hidden.1"],
        &["query.2", "key.1", "value.2"],
        &["value.2", "hidden.2", "attention.2", "query.1"],
        &["word_embeddings", "features"],
    ] {
        Case::new(encoder.clone(), names).check();
    }
}

#[test]
fn gradients_match_differences_under_dropout_checkpointing_and_other_activations() {
    for activation in [Activation::Gelu, Activation::GeluTanh] {
        for checkpointing in [false, true] {
            for family in FAMILIES {
                let encoder = Encoder {
                    dropout: 0.2,
                    attention_dropout: 0.3,
                    head_dropout: 0.2,
                    activation,
                    checkpointing,
                    ..encoder(family, CLASSIFY)
                };
                let names = ["logits", "hidden.1", "value.2"];
                Case { key: Some(KEY), ..Case::new(encoder, &names) }.check();
            }
        }
    }
}

#[test]
fn gradients_reach_embeddings_that_come_from_outside() {
    for names in [&["logits", "word_embeddings"][..], &["features"]] {
        let case = Case::new(encoder(Family::Bert, CLASSIFY), names);
        let case = Case { embeds: Some(wave(3 * 5 * 6)), ..case };
        case.check();
        let (grads, _) = case.gradients(&weights(&case.encoder));
        assert!(grads[0].iter().all(|&g| g == 0.0), "the table was not read");
    }
}

#[test]
fn checkpointing_gives_the_same_bits() {
    let plain = Encoder { dropout: 0.2, attention_dropout: 0.2, ..encoder(Family::Bert, CLASSIFY) };
    let frugal = Encoder { checkpointing: true, ..plain.clone() };
    let run = |encoder: Encoder| {
        let case = Case { key: Some(KEY), ..Case::new(encoder, &["logits", "hidden.1"]) };
        case.gradients(&weights(&case.encoder)).0
    };
    assert_eq!(run(plain), run(frugal));
}

#[test]
fn padding_changes_nothing_but_the_last_digits() {
    for head in [CLASSIFY, Head::Embedding] {
        let encoder =
            Encoder { dropout: 0.2, attention_dropout: 0.2, ..encoder(Family::Bert, head) };
        let case = |is_packed: bool| Case {
            batch: Batch::new(&encoder, &inputs(), is_packed).unwrap(),
            key: Some(KEY),
            ..Case::new(encoder.clone(), &["features"])
        };
        let (packed, padded) = (case(true), case(false));
        assert_eq!((packed.batch.sequences.rows(), padded.batch.sequences.rows()), (11, 15));
        let weights = weights(&encoder);
        let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
        assert!(near(&packed.outputs(&weights, None)[0].1, &padded.outputs(&weights, None)[0].1));
        let (ours, theirs) = (packed.gradients(&weights).0, padded.gradients(&weights).0);
        assert!(ours.iter().zip(&theirs).all(|(a, b)| near(a, b)));
    }
}

/// The whole of the last block runs when someone reads its states.
#[test]
fn first_tokens_alone_give_what_the_whole_block_gives() {
    for family in FAMILIES {
        for checkpointing in [false, true] {
            let encoder = Encoder {
                dropout: 0.2,
                attention_dropout: 0.3,
                checkpointing,
                ..encoder(family, CLASSIFY)
            };
            let case =
                |names: &[&str]| Case { key: Some(KEY), ..Case::new(encoder.clone(), names) };
            let (short, whole) = (case(&["logits"]), case(&["logits", "hidden.2"]));
            let weights = weights(&encoder);
            let near = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12);
            let logits = short.outputs(&weights, None);
            assert!(near(&logits[0].1, &whole.outputs(&weights, None)[0].1), "{family:?}");
            assert!(encoder.reads_first_tokens(&short.wanted));
            assert!(!encoder.reads_first_tokens(&whole.wanted));
            // Cotangents of logits alone on both sides.
            let grads = |case: &Case| {
                let pass = case.pass(&weights);
                let (_, record) = pass.forward(&case.wanted, None, true).unwrap();
                let wave = wave(logits[0].1.len());
                let mut grads: Vec<Vec<f64>> = weights.iter().map(|w| vec![0.0; w.len()]).collect();
                let to = grads.iter_mut().map(|grad| Some(grad.as_mut_slice())).collect();
                pass.backward(record.unwrap(), &[(Wanted::Logits, &wave)], to, None).unwrap();
                grads
            };
            let (a, b) = (grads(&short), grads(&whole));
            assert!(a.iter().zip(&b).all(|(a, b)| near(a, b)), "{family:?} {checkpointing}");
        }
    }
}

#[test]
fn every_parameter_gets_a_gradient() {
    for family in FAMILIES {
        for head in HEADS {
            let case = Case::new(Encoder { pooler: true, ..encoder(family, head) }, tops(head));
            let (grads, _) = case.gradients(&weights(&case.encoder));
            for (spec, grad) in case.encoder.params().unwrap().iter().zip(&grads) {
                let norm = grad.iter().map(|g| g * g).sum::<f64>().sqrt();
                // A key's bias moves all scores of a query alike, which the softmax does not see.
                let is_unseen = spec.name.contains("key.bias") || spec.name.contains("k_lin.bias");
                let is_zero = spec.role == Role::Buffer || is_unseen;
                assert!(norm.is_finite() && (norm > 1e-6) != is_zero, "{} {norm}", spec.name);
            }
        }
    }
}

#[test]
fn one_thread_and_three_give_the_same_bits() {
    let encoder = Encoder { dropout: 0.1, ..encoder(Family::Bert, Head::MaskedLm) };
    let ids: Vec<i64> = (0..60 * 9).map(|i| i * 7 % 11).collect();
    let ids = Tensor::from_vec(ids, (60, 9), &Device::Cpu).unwrap();
    let batch =
        || Batch::new(&encoder, &Inputs::from([("input_ids", ids.clone())]), false).unwrap();
    assert!(batch().sequences.groups.len() > 3);
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let case =
            Case { batch: batch(), key: Some(KEY), ..Case::new(encoder.clone(), &["logits"]) };
        pool.install(|| case.gradients(&weights(&case.encoder)).0)
    };
    assert_eq!(run(1), run(3));
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let encoder = encoder(Family::Bert, CLASSIFY);
    let message = |name: &'static str, values: Vec<i64>, shape: (usize, usize)| {
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        let ids = Tensor::zeros((1, 2), candle_core::DType::I64, &Device::Cpu).unwrap();
        let inputs = match name {
            "input_ids" => Inputs::from([(name, tensor)]),
            _ => Inputs::from_iter([("input_ids", ids), (name, tensor)]),
        };
        Batch::new(&encoder, &inputs, false).unwrap_err().to_string()
    };
    assert_eq!(
        message("input_ids", vec![0, 11], (1, 2)),
        "input `input_ids` holds 11, the model has 0 to 10"
    );
    assert_eq!(
        message("token_type_ids", vec![0, -1], (1, 2)),
        "input `token_type_ids` holds -1, the model has 0 to 1"
    );
    assert_eq!(
        message("input_ids", vec![0; 10], (1, 10)),
        "input `input_ids` has shape [1, 10], the model takes B,T with T up to 9"
    );
    assert_eq!(
        message("attention_mask", vec![1; 3], (1, 3)),
        "input `attention_mask` has shape [1, 3], the model takes 1,2"
    );
}

#[test]
fn the_embedding_of_padding_gets_no_gradient() {
    let case = Case::new(encoder(Family::Roberta, CLASSIFY), &["hidden.2"]);
    let (grads, _) = case.gradients(&weights(&case.encoder));
    for table in grads.iter().take(2) {
        assert!(table[6..12].iter().all(|&g| g == 0.0));
        assert!(table[12..24].iter().any(|&g| g != 0.0));
    }
}

#[test]
fn a_masked_token_is_seen_by_nobody() {
    let case = Case::new(encoder(Family::DistilBert, CLASSIFY), &["hidden.2"]);
    let weights = weights(&case.encoder);
    let before = case.outputs(&weights, None);
    let mut other = Case::new(encoder(Family::DistilBert, CLASSIFY), &["hidden.2"]);
    other.batch.ids[7] = 3;
    let after = other.outputs(&weights, None);
    let row = |values: &[f64], row: usize| values[row * 6..(row + 1) * 6].to_vec();
    for i in 0..15 {
        assert_eq!(row(&before[0].1, i) == row(&after[0].1, i), i != 7, "row {i}");
    }
}
