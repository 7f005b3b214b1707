//! The plugins against PyTorch, TRL, Liger and torchdistill: equal where those compute the same, and seen to differ
//! where they do not. `benches/peers/parity.py` writes and checks the file.

use crate::host::{Options, run};
use crate::reference::{Array, Inputs};
use limbeck_sdk::abi;
use serde_json::Value;
use std::collections::BTreeMap;

const TEXT: &str = include_str!("../golden/peers.json");

fn list(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn the_plugins_agree_with_peers_that_compute_the_same_and_with_no_other() {
    let cases: Vec<Value> = serde_json::from_str(TEXT).expect("JSON");
    let mut seen = BTreeMap::new();
    for case in &cases {
        let (peer, loss) =
            (case["peer"].as_str().expect("a peer"), case["loss"].as_str().expect("a loss"));
        let (params, agrees) = (&case["params"], case["agrees"] == true);
        let inputs: Inputs = case["inputs"]
            .as_object()
            .expect("inputs")
            .iter()
            .map(|(name, x)| {
                let shape = list(&x["shape"]).into_iter().map(|d| d as usize).collect();
                (name.clone(), Array { shape, data: list(&x["data"]) })
            })
            .collect();
        let (normalizer, value) =
            (case["normalizer"].as_f64().expect("one"), case["value"].as_f64().expect("one"));
        // In f64 the peers' own arithmetic is what is left: they take logarithms of sums, add eps, or clamp.
        for (dtype, bound) in [(abi::DLDataType::F64, 1e-7), (abi::DLDataType::F32, 2e-5)] {
            let what = format!("{peer} {loss} {params} {dtype:?}");
            let found = run(loss, params, &inputs, Options::of(dtype, normalizer))
                .unwrap_or_else(|failure| panic!("{what}: {failure:?}"));
            let gap = (found.value - value).abs() / value.abs();
            if !agrees {
                assert!(gap > 0.05, "{what}: agrees, although {}", case["note"]);
                continue;
            }
            assert!(gap <= bound, "{what}: {} for {value}", found.value);
            for (name, grad) in case["grads"].as_object().expect("gradients") {
                let (grad, ours) = (list(grad), &found.grads[name]);
                let error =
                    norm(grad.iter().zip(ours).map(|(a, b)| a - b)) / norm(grad.iter().copied());
                assert!(error <= bound, "{what} {name}: {error:e}");
            }
        }
        *seen.entry((peer, agrees)).or_insert(0) += 1;
    }
    let of = |peer, agrees| seen.get(&(peer, agrees)).copied().unwrap_or(0);
    assert_eq!(
        [of("torch", true), of("trl", true), of("liger-kernel", true), of("torchdistill", true)],
        [12, 4, 2, 5],
        "{seen:?}"
    );
    assert_eq!([of("trl", false), of("torchdistill", false)], [1, 3], "{seen:?}");
}
