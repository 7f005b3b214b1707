//! Encoders against PyTorch: folders and golden values written by `tests/peers/encoders.py`.
//!
//! Tolerances: f32 over three blocks of width 16, values of order 1: 1e-5 on outputs, 1e-4 of a gradient's norm.
#![expect(clippy::unwrap_used, reason = "helpers of tests; a failure shows its line")]

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, safetensors::load};
use limbeck_models::weights::Folder;
use limbeck_models::{Architecture, Grad, Inputs, Mode, Params, Recorded};
use std::collections::HashMap;

const CASES: [&str; 7] = [
    "bert-classification",
    "bert-tokens-gelu-new",
    "bert-bare",
    "distilbert-classification",
    "distilbert-masked-lm",
    "bert-masked-lm",
    "roberta-classification",
];

fn folder(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/encoders").join(case)
}

struct Case {
    architecture: Box<dyn Architecture>,
    params: Params,
    golden: HashMap<String, Tensor>,
}

impl Case {
    fn open(name: &str) -> Self {
        let path = folder(name);
        let folder = Folder::open(&path).unwrap();
        let architecture = folder.architecture().unwrap();
        folder.check(&*architecture).unwrap();
        let params = folder.params(&*architecture, DType::F32, &Device::Cpu, |_| true);
        let golden = load(path.join("golden.safetensors"), &Device::Cpu).unwrap();
        Self { architecture, params: params.unwrap().unwrap(), golden }
    }

    fn inputs(&self) -> Inputs<'static> {
        let mut names = vec!["input_ids", "attention_mask"];
        // RoBERTa has one token type.
        if self.architecture.model_type() == "bert" {
            names.push("token_type_ids");
        }
        names.into_iter().map(|name| (name, self.golden[&format!("in.{name}")].clone())).collect()
    }

    fn record(&self, wanted: &[&str]) -> Recorded {
        let model = self.architecture.build(&self.params).unwrap();
        model.record(&self.inputs(), wanted, Mode::Eval).unwrap().unwrap()
    }

    fn top(&self) -> &'static str {
        if self.golden.contains_key("out.logits") { "logits" } else { "features" }
    }

    /// Whether a file of this class has the parameter's gradient: names without the family's prefix are equal.
    fn wanted_gradient(&self, name: &str) -> &Tensor {
        &self.golden[&format!("grad.{name}")]
    }

    /// Gradients of all parameters for the cotangent of the first wanted output.
    fn gradients(&self, recorded: Recorded, cotangent: &Tensor) -> HashMap<String, Vec<f32>> {
        let specs = self.architecture.params().unwrap();
        // NaN, so that an element that is left alone shows.
        let mut grads: HashMap<String, Vec<f32>> =
            specs.iter().map(|s| (s.name.clone(), vec![f32::NAN; s.count()])).collect();
        let slots = grads
            .iter_mut()
            .map(|(name, values)| (name.clone(), Grad { values, accumulate: false }));
        recorded.tape.backward(&[(0, cotangent.clone())], slots.collect()).unwrap();
        grads
    }
}

fn floats(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn wave(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| (1.0 + 2.399_963 * i as f64).sin() as f32).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

#[test]
fn every_state_and_score_equals_pytorch() {
    for name in CASES {
        let case = Case::open(name);
        let wanted = [case.top(), "hidden.0", "hidden.1", "hidden.2", "hidden.3"];
        let model = case.architecture.build(&case.params).unwrap();
        let outputs = model.forward(&case.inputs(), &wanted, Mode::Eval).unwrap();
        for (wanted, output) in wanted.iter().zip(&outputs) {
            let golden = &case.golden[&format!("out.{wanted}")];
            assert_eq!(output.dims(), golden.dims(), "{name} {wanted}");
            let difference = largest_difference(&floats(output), &floats(golden));
            assert!(difference < 1e-5, "{name} {wanted}: {difference}");
        }
        let alone = model.forward(&case.inputs(), &wanted[..1], Mode::Eval).unwrap();
        let difference = largest_difference(&floats(&alone[0]), &floats(&outputs[0]));
        assert!(difference < 1e-5, "{name} without padding: {difference}");
    }
}

#[test]
fn scores_give_the_probabilities_of_pytorch_and_projections_give_the_scores() {
    let case = Case::open("bert-classification");
    let wanted = ["attention.3", "query.3", "key.3"];
    let outputs = case.record(&wanted).outputs;
    let scores = &outputs[0];
    let product = outputs[1].matmul(&outputs[2].t().unwrap()).unwrap();
    let product = (product / 8f64.sqrt()).unwrap();
    assert!(largest_difference(&floats(&product), &floats(scores)) < 1e-5);
    let mask = floats(&case.golden["in.attention_mask"]);
    let golden = floats(&case.golden["out.probabilities.3"]);
    for (i, row) in floats(scores).chunks(12).enumerate() {
        let sequence = i / (2 * 12);
        let kept = |t: usize| mask[sequence * 12 + t] != 0.0;
        let total: f32 = (0..12).filter(|&t| kept(t)).map(|t| row[t].exp()).sum();
        let found: Vec<f32> =
            (0..12).map(|t| if kept(t) { row[t].exp() / total } else { 0.0 }).collect();
        assert!(largest_difference(&found, &golden[i * 12..(i + 1) * 12]) < 1e-5);
    }
}

#[test]
fn every_gradient_equals_pytorch() {
    for name in CASES {
        let case = Case::open(name);
        let recorded = case.record(&[case.top()]);
        let cotangent = wave(recorded.outputs[0].dims());
        let grads = case.gradients(recorded, &cotangent);
        for spec in case.architecture.params().unwrap() {
            let wanted = floats(case.wanted_gradient(&spec.name));
            let norm = wanted.iter().map(|g| g * g).sum::<f32>().sqrt();
            let difference = largest_difference(&grads[&spec.name], &wanted);
            assert!(difference <= 1e-4 * norm.max(1e-1), "{name} {}: {difference}", spec.name);
        }
    }
}

/// AdamW as PyTorch's, biases and scales without decay.
struct AdamW {
    moments: HashMap<String, (Vec<f32>, Vec<f32>)>,
    step: i32,
}

impl AdamW {
    fn update(&mut self, name: &str, values: &mut [f32], grads: &[f32], decay: f32) {
        let zeros = || (vec![0.0; values.len()], vec![0.0; values.len()]);
        let (first, second) = self.moments.entry(name.to_owned()).or_insert_with(zeros);
        let corrections = (1.0 - 0.9f32.powi(self.step), 1.0 - 0.999f32.powi(self.step));
        for (((x, &g), m), v) in values.iter_mut().zip(grads).zip(first).zip(second) {
            *x *= 1.0 - 1e-3 * decay;
            *m = 0.9 * *m + 0.1 * g;
            *v = 0.999 * *v + 0.001 * g * g;
            *x -= 1e-3 * (*m / corrections.0) / ((*v / corrections.1).sqrt() + 1e-8);
        }
    }
}

#[test]
fn twenty_steps_of_adamw_follow_pytorch() {
    for name in ["bert-classification", "distilbert-classification"] {
        let mut case = Case::open(name);
        let golden = std::fs::read_to_string(folder(name).join("golden.json")).unwrap();
        let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
        let labels = case.golden["in.labels"].to_vec1::<i64>().unwrap();
        let mut optimizer = AdamW { moments: HashMap::new(), step: 0 };
        for wanted in golden["losses"].as_array().unwrap() {
            let recorded = case.record(&["logits"]);
            let logits = recorded.outputs[0].to_vec2::<f32>().unwrap();
            let (mut loss, mut cotangent) = (0.0, Vec::new());
            for (row, &label) in logits.iter().zip(&labels) {
                let total: f32 = row.iter().map(|x| x.exp()).sum();
                loss += (total.ln() - row[label as usize]) / labels.len() as f32;
                cotangent.extend(row.iter().enumerate().map(|(class, x)| {
                    (x.exp() / total - f32::from(class == label as usize)) / labels.len() as f32
                }));
            }
            let wanted = wanted.as_f64().unwrap() as f32;
            assert!((loss - wanted).abs() < 1e-4 * wanted, "{name}: {loss} {wanted}");
            let cotangent = Tensor::from_vec(cotangent, (6, 3), &Device::Cpu).unwrap();
            let grads = case.gradients(recorded, &cotangent);
            optimizer.step += 1;
            for spec in case.architecture.params().unwrap() {
                let mut values = floats(&case.params.get(&spec.name, &spec.shape).unwrap());
                let decay = if spec.shape.len() > 1 { 0.01 } else { 0.0 };
                optimizer.update(&spec.name, &mut values, &grads[&spec.name], decay);
                let tensor = Tensor::from_vec(values, spec.shape.as_slice(), &Device::Cpu).unwrap();
                case.params.insert(&spec.name, tensor);
            }
        }
        for spec in case.architecture.params().unwrap() {
            let values = floats(&case.params.get(&spec.name, &spec.shape).unwrap());
            let difference =
                largest_difference(&values, &floats(&case.golden[&format!("after.{}", spec.name)]));
            // Adam divides rounding noise by itself where a gradient is 0 in exact arithmetic.
            let is_noise = spec.name.contains("key.bias") || spec.name.contains("k_lin.bias");
            assert!(is_noise || difference < 1e-4, "{name} {}: {difference}", spec.name);
        }
    }
}
