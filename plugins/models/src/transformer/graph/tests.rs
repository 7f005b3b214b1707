//! The graph against the passes over slices, in f64: every output and every gradient.

use candle_core::{DType, Device, Tensor, Var};

use super::super::config::{Encoder, Family, Head};
use super::super::outputs::Wanted;
use super::super::pass::Weights;
use super::super::tests::{
    CLASSIFY, Case, FAMILIES, HEADS, KEY, encoder, inputs, tops, wave, weights,
};
use super::{Graph, Tokens};
use crate::architecture::Architecture;
use crate::transformer::batch::Given;

/// Outputs, gradients of parameters and of `inputs_embeds`, as `Case` has them.
type Results = (Vec<Vec<f64>>, Vec<Vec<f64>>, Vec<f64>);

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap()
}

fn of_graph(case: &Case, is_masked: bool) -> Results {
    let all = inputs();
    let mut given = Given::new(&case.encoder, &all).unwrap();
    given.mask = given.mask.filter(|_| is_masked);
    let (batch, width) = given.shape;
    let tokens = Tokens::new(&given).unwrap();
    let specs = case.encoder.params().unwrap();
    let vars: Vec<Var> = weights(&case.encoder)
        .into_iter()
        .zip(&specs)
        .map(|(values, spec)| Var::from_vec(values, spec.shape.as_slice(), &Device::Cpu).unwrap())
        .collect();
    let embeds = case.embeds.as_ref().map(|values| {
        Var::from_vec(values.clone(), (batch, width, case.encoder.dim), &Device::Cpu).unwrap()
    });
    let graph = Graph {
        encoder: &case.encoder,
        weights: Weights::new(&case.encoder, vars.iter().map(|var| &**var).collect()),
        tokens: &tokens,
        embeds: embeds.as_deref(),
        key: case.key,
    };
    let found = graph.forward(&case.wanted).unwrap();
    let pick = |wanted: &Wanted| found.iter().find(|(w, _)| w == wanted).unwrap().1.clone();
    let outputs: Vec<Tensor> = case.wanted.iter().map(pick).collect();
    let mut objective = Tensor::zeros((), DType::F64, &Device::Cpu).unwrap();
    for output in &outputs {
        let wave = Tensor::from_vec(wave(output.elem_count()), output.dims(), &Device::Cpu);
        let product = (output * wave.unwrap()).unwrap().sum_all().unwrap();
        objective = (objective + product).unwrap();
    }
    let grads = objective.backward().unwrap();
    let grad = |var: &Var| match grads.get(var) {
        Some(grad) => values(grad),
        None => vec![0.0; var.elem_count()],
    };
    let d_embeds = embeds.as_ref().map(&grad).unwrap_or_default();
    (outputs.iter().map(values).collect(), vars.iter().map(grad).collect(), d_embeds)
}

fn of_slices(case: &Case) -> Results {
    let weights = weights(&case.encoder);
    let outputs = case.outputs(&weights, case.embeds.as_deref());
    let (grads, d_embeds) = case.gradients(&weights);
    (outputs.into_iter().map(|(_, values)| values).collect(), grads, d_embeds)
}

/// Both to 1e-11 of the largest element.
fn compare(case: &Case) {
    let names: Vec<_> = case.encoder.params().unwrap().into_iter().map(|s| s.name).collect();
    let near = |what: &str, found: &[f64], wanted: &[f64]| {
        let of = (case.encoder.family, case.encoder.head);
        assert_eq!(found.len(), wanted.len(), "{of:?} {what}");
        let scale = wanted.iter().fold(1.0f64, |most, x| most.max(x.abs()));
        for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
            assert!((f - w).abs() <= 1e-11 * scale, "{of:?} {what}[{i}]: {f}, {w}");
        }
    };
    let (outputs, grads, d_embeds) = of_graph(case, true);
    let (wanted_outputs, wanted_grads, wanted_embeds) = of_slices(case);
    for ((found, wanted), name) in outputs.iter().zip(&wanted_outputs).zip(&case.wanted) {
        near(&format!("{name:?}"), found, wanted);
    }
    for ((found, wanted), name) in grads.iter().zip(&wanted_grads).zip(&names) {
        near(name, found, wanted);
    }
    near("inputs_embeds", &d_embeds, &wanted_embeds);
}

fn dropping(family: Family, head: Head) -> Encoder {
    let encoder = encoder(family, head);
    Encoder { dropout: 0.2, attention_dropout: 0.3, head_dropout: 0.2, ..encoder }
}

#[test]
fn the_graph_gives_what_the_passes_give_for_every_family_and_head_under_dropout() {
    for family in FAMILIES {
        for head in HEADS {
            compare(&Case::new(encoder(family, head), tops(head)));
            compare(&Case { key: Some(KEY), ..Case::new(dropping(family, head), tops(head)) });
        }
    }
}

#[test]
fn the_graph_gives_what_the_passes_give_for_every_output() {
    for family in FAMILIES {
        for names in [
            &["hidden.0"][..],
            &["hidden.1", "hidden.2", "logits"],
            &["attention.1"],
            &["attention.2", "hidden.1"],
            &["query.2", "key.1", "value.2"],
            &["value.2", "hidden.2", "attention.2", "query.1"],
            &["word_embeddings", "features"],
            &["logits", "value.1"],
        ] {
            let case = Case::new(dropping(family, CLASSIFY), names);
            compare(&Case { key: Some(KEY), ..case });
        }
    }
}

#[test]
fn the_graph_takes_embeddings_from_outside_and_sends_their_gradient_back() {
    let case = Case::new(dropping(Family::Bert, CLASSIFY), &["logits", "word_embeddings"]);
    compare(&Case { key: Some(KEY), embeds: Some(wave(3 * 5 * 6)), ..case });
}

#[test]
fn a_batch_without_a_mask_sees_its_padding() {
    let case = Case::new(encoder(Family::Bert, Head::Embedding), &["features"]);
    let (seen, masked) = (of_graph(&case, false).0, of_graph(&case, true).0);
    assert_ne!(seen, masked);
    assert!(seen[0].iter().all(|x| x.is_finite()));
}
