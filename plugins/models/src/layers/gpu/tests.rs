//! The kernels on the emulated machine against the CPU's operations in f64, from the same rounded inputs.
//!
//! Tolerances: 4e-6 of the largest wanted value, for bf16 half a unit of its last place (2^-8 of the value) besides.

use super::super::attend::Attend;
use super::super::dropout::Drop;
use super::super::rows::Dropout;
use super::super::{Activation, add_row, layer_norm, lookup};
use super::arguments::{self, At, To, kind};
use super::emulator::{Emulated, shuffle};
use super::launches;
use crate::random::Stream;
use candle_core::{Device, Result, Tensor, Var};
use half::bf16;
use std::ptr::{null, null_mut};

const F32: Emulated = Emulated { suffix: "f32", element: 4 };
const BF16: Emulated = Emulated { suffix: "bf16", element: 2 };
const TYPES: [Emulated; 2] = [F32, BF16];

/// Rows and columns: one element, odd ones, one warp's quads and a rest, BERT's width, more rows than a strip.
const SIZES: [(usize, usize); 7] = [(1, 1), (3, 5), (5, 7), (6, 64), (2, 130), (3, 768), (517, 33)];

fn wave(count: usize, scale: f64, seed: f64) -> Vec<f64> {
    (0..count).map(|i| scale * (seed + 2.399_963 * i as f64).sin()).collect()
}

/// Elements in memory between guards, their address whole or shifted by one element.
struct Array<'a> {
    on: &'a Emulated,
    bytes: Vec<u128>,
    shift: usize,
    count: usize,
}

const GUARD: u8 = 0xa5;

impl<'a> Array<'a> {
    fn new(on: &'a Emulated, values: &[f64], shift: usize) -> Self {
        let needed = (values.len() + shift + 1) * on.element + 32;
        let bytes = vec![u128::from_ne_bytes([GUARD; 16]); needed.div_ceil(16)];
        let mut array = Self { on, bytes, shift, count: values.len() };
        for (i, &value) in values.iter().enumerate() {
            let raw = match on.element {
                2 => bf16::from_f64(value).to_bits().to_ne_bytes().to_vec(),
                _ => (value as f32).to_ne_bytes().to_vec(),
            };
            array.element(i).copy_from_slice(&raw);
        }
        array
    }

    fn start(&self) -> usize {
        16 + self.shift * self.on.element
    }

    fn raw(&mut self) -> &mut [u8] {
        // SAFETY: bytes of a vector of numbers.
        let (_, bytes, _) = unsafe { self.bytes.align_to_mut::<u8>() };
        bytes
    }

    fn element(&mut self, i: usize) -> &mut [u8] {
        let (from, size) = (self.start() + i * self.on.element, self.on.element);
        &mut self.raw()[from..from + size]
    }

    fn to(&mut self) -> To {
        let start = self.start();
        self.raw()[start..].as_mut_ptr().cast()
    }

    fn at(&mut self) -> At {
        self.to().cast_const()
    }

    fn read(&mut self) -> Vec<f64> {
        let (start, end) = (self.start(), self.start() + self.count * self.on.element);
        let raw = self.raw();
        let is_whole = raw[..start].iter().chain(&raw[end..]).all(|&byte| byte == GUARD);
        assert!(is_whole, "written outside");
        let value = |raw: &[u8]| match raw.try_into() {
            Ok(raw) => f64::from(f32::from_ne_bytes(raw)),
            Err(_) => bf16::from_ne_bytes(raw.try_into().unwrap()).to_f64(),
        };
        let size = self.on.element;
        self.raw()[start..end].chunks(size).map(value).collect()
    }
}

fn near(what: &str, found: &[f64], wanted: &[f64], on: &Emulated) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let most = wanted.iter().fold(1.0f64, |most, x| most.max(x.abs()));
    let ulp = if on.element == 2 { 1.0 / 256.0 } else { 0.0 };
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        let bound = 4e-6 * most + ulp * w.abs();
        assert!((f - w).abs() <= bound, "{what} {}[{i}]: {f}, {w}", on.suffix);
    }
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap()
}

fn tensor(values: Vec<f64>, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The result of `f` in f64 and the gradients for `cotangent` of its arguments.
fn twin(
    arguments: &[(Vec<f64>, &[usize])],
    cotangent: &[f64],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
) -> (Vec<f64>, Vec<Vec<f64>>) {
    let var = |(values, shape): &(Vec<f64>, &[usize])| {
        Var::from_tensor(&tensor(values.clone(), shape)).unwrap()
    };
    let vars: Vec<Var> = arguments.iter().map(var).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let y = f(&tensors).unwrap();
    let product = (&y * tensor(cotangent.to_vec(), y.dims())).unwrap().sum_all().unwrap();
    let grads = product.backward().unwrap();
    (values(&y), vars.iter().map(|var| values(grads.get(var).unwrap())).collect())
}

fn nothing(count: usize) -> Vec<f64> {
    vec![f64::NAN; count]
}

#[test]
fn activations_with_and_without_a_bias_follow_the_cpu() {
    let all = [
        Activation::Identity,
        Activation::Relu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Tanh,
    ];
    for on in &TYPES {
        for (case, activation) in all.into_iter().enumerate() {
            for (rows, columns) in SIZES {
                let count = rows * columns;
                let shift = (rows + case) % 2;
                let mut x = Array::new(on, &wave(count, 4.0, 1.0), shift);
                let mut bias = Array::new(on, &wave(columns, 1.0, 2.0), 0);
                let mut grad = Array::new(on, &wave(count, 1.0, 3.0), shift);
                let mut y = Array::new(on, &nothing(count), shift);
                let a = arguments::Activate {
                    x: x.at(),
                    bias: bias.at(),
                    y: y.to(),
                    rows: rows as i64,
                    columns: columns as i64,
                    kind: kind(activation),
                    reserved: 0,
                };
                // SAFETY: arrays of the sizes that are said; below likewise.
                unsafe { launches::activate(on, &a, false) }.unwrap();
                let given = [(x.read(), &[rows, columns][..]), (bias.read(), &[columns][..])];
                let (wanted, _) =
                    twin(&given, &grad.read(), |t| activation.apply(&add_row(&t[0], &t[1])?));
                near("y", &y.read(), &wanted, on);
                let a = arguments::Activate { bias: null(), ..a };
                // SAFETY: as above.
                unsafe { launches::activate(on, &a, false) }.unwrap();
                let (wanted, slopes) = twin(&given[..1], &grad.read(), |t| activation.apply(&t[0]));
                near("y alone", &y.read(), &wanted, on);
                let from = if activation.is_fusable() { y.at() } else { x.at() };
                let mut dx = Array::new(on, &nothing(count), shift);
                let a = arguments::Activate { x: from, bias: grad.at(), y: dx.to(), ..a };
                // SAFETY: as above.
                unsafe { launches::activate(on, &a, true) }.unwrap();
                // From a result in bf16 the derivative of tanh has that result's error, twice.
                let is_coarse = on.element == 2 && activation == Activation::Tanh;
                if is_coarse {
                    let dx = dx.read();
                    let errors = dx.iter().zip(&slopes[0]).map(|(f, w)| (f - w).abs());
                    assert!(errors.fold(0.0, f64::max) < 0.01);
                } else {
                    near("dx", &dx.read(), &slopes[0], on);
                }
            }
        }
    }
}

#[test]
fn dropout_drops_what_the_cpu_drops() {
    let dropout = Dropout::new(Stream::new([5, 6], 7), 0.3).unwrap();
    for on in &TYPES {
        for (rows, columns) in SIZES {
            for row_step in [1, 9] {
                let (count, shift) = (rows * columns, row_step % 2);
                let mut x = Array::new(on, &wave(count, 2.0, 1.0), shift);
                let mut residual = Array::new(on, &wave(count, 2.0, 2.0), 0);
                let mut y = Array::new(on, &nothing(count), 0);
                let op = Drop { dropout, columns, row_step };
                for has_residual in [false, true] {
                    let a = arguments::Drop {
                        x: x.at(),
                        residual: if has_residual { residual.at() } else { null() },
                        y: y.to(),
                        rows: rows as i64,
                        columns: columns as i64,
                        row_step: row_step as i64,
                        dropout: Some(dropout).into(),
                    };
                    // SAFETY: as above.
                    unsafe { launches::drop(on, &a) }.unwrap();
                    let x = tensor(x.read(), &[rows, columns]);
                    let wanted = match has_residual {
                        true => op.add(&x, &tensor(residual.read(), &[rows, columns])),
                        false => op.apply(&x),
                    };
                    near("dropped", &y.read(), &values(&wanted.unwrap()), on);
                }
            }
        }
    }
}

#[test]
fn normalization_and_its_gradients_follow_the_cpu() {
    for on in &TYPES {
        for (rows, columns) in SIZES {
            let (count, shift) = (rows * columns, columns % 2);
            // A mean that is large beside the deviation.
            let x: Vec<f64> = wave(count, 1.0, 1.0).iter().map(|x| x + 3.0).collect();
            let mut x = Array::new(on, &x, shift);
            let mut weight = Array::new(on, &wave(columns, 1.0, 2.0), 0);
            let mut bias = Array::new(on, &wave(columns, 1.0, 3.0), 0);
            let mut grad = Array::new(on, &wave(count, 1.0, 4.0), 0);
            let mut y = Array::new(on, &nothing(count), shift);
            // Of one column the variance is 0.
            let eps = if columns == 1 { 0.1 } else { 1e-5 };
            let a = arguments::Norm {
                x: x.at(),
                weight: weight.at(),
                other: bias.at(),
                y: y.to(),
                stats: null_mut(),
                rows: rows as i64,
                columns: columns as i64,
                eps: eps as f32,
                reserved: 0,
            };
            // SAFETY: as above.
            unsafe { launches::norm(on, &a) }.unwrap();
            let given = [
                (x.read(), &[rows, columns][..]),
                (weight.read(), &[columns][..]),
                (bias.read(), &[columns][..]),
            ];
            let (wanted, grads) =
                twin(&given, &grad.read(), |t| layer_norm(&t[0], &t[1], &t[2], eps));
            near("y", &y.read(), &wanted, on);
            let mut all = Array::new(on, &nothing(count + 2 * columns), 0);
            let a = arguments::Norm { other: grad.at(), y: all.to(), ..a };
            // SAFETY: as above; room for all three gradients.
            unsafe { launches::norm_back(on, &a) }.unwrap();
            let all = all.read();
            near("dx", &all[..count], &grads[0], on);
            near("dw", &all[count..count + columns], &grads[1], on);
            near("db", &all[count + columns..], &grads[2], on);
        }
    }
}

#[test]
fn attention_weights_and_their_gradient_follow_the_cpu() {
    // Sequences, heads, queries, keys.
    for (case, dims) in
        [[2, 2, 3, 5], [1, 3, 4, 64], [2, 1, 1, 130], [3, 2, 2, 7]].into_iter().enumerate()
    {
        let [sequences, heads, queries, keys] = dims;
        let (rows, count) = (sequences * heads * queries, dims.iter().product::<usize>());
        let mut keep: Vec<u8> = (0..sequences * keys).map(|i| u8::from(i % 3 != 1)).collect();
        // A sequence of which nothing is seen.
        keep[..keys].fill(u8::from(case != 0));
        let is_masked = case != 1;
        let dropout = Dropout::new(Stream::new([5, 6], 7), if case == 3 { 0.0 } else { 0.3 });
        let row_step = if queries == 1 { keys } else { 1 };
        for on in &TYPES {
            let mut scores = Array::new(on, &wave(count, 8.0, 1.0), case % 2);
            let mut grad = Array::new(on, &wave(count, 1.0, 2.0), 0);
            let mut y = Array::new(on, &nothing(count), 0);
            let a = arguments::Attend {
                scores: scores.at(),
                grad: null(),
                keep: if is_masked { keep.as_ptr().cast() } else { null() },
                y: y.to(),
                rows: rows as i64,
                columns: keys as i64,
                sequence_rows: (heads * queries) as i64,
                row_step: row_step as i64,
                dropout: dropout.into(),
                scale: 0.5,
                reserved: 0,
            };
            // SAFETY: as above.
            unsafe { launches::attend(on, &a) }.unwrap();
            let seen = Tensor::from_vec(keep.clone(), (sequences, keys), &Device::Cpu).unwrap();
            let op = Attend { keep: is_masked.then_some(seen), scale: 0.5, dropout, row_step };
            let given = [(scores.read(), &dims[..])];
            let (wanted, grads) = twin(&given, &grad.read(), |t| op.clone().apply(&t[0]));
            near("weights", &y.read(), &wanted, on);
            let a = arguments::Attend { grad: grad.at(), ..a };
            // SAFETY: as above.
            unsafe { launches::attend(on, &a) }.unwrap();
            near("d scores", &y.read(), &grads[0], on);
        }
    }
}

#[test]
fn scores_that_are_no_number_stay_visible_in_their_row() {
    let mut scores = Array::new(&F32, &[1.0, f64::NAN, 2.0, 1.0, 2.0, 3.0], 0);
    let mut y = Array::new(&F32, &nothing(6), 0);
    let a = arguments::Attend {
        scores: scores.at(),
        grad: null(),
        keep: null(),
        y: y.to(),
        rows: 2,
        columns: 3,
        sequence_rows: 2,
        row_step: 1,
        dropout: None.into(),
        scale: 1.0,
        reserved: 0,
    };
    // SAFETY: as above.
    unsafe { launches::attend(&F32, &a) }.unwrap();
    let y = y.read();
    assert!(y[..3].iter().all(|p| p.is_nan()) && (y[3..].iter().sum::<f64>() - 1.0).abs() < 1e-6);
}

fn sums(on: &Emulated, x: &mut Array<'_>, rows: usize, columns: usize) -> Vec<f64> {
    let mut y = Array::new(on, &nothing(columns), 0);
    let a = arguments::Sum {
        x: x.at(),
        grad: null(),
        stats: null(),
        ids: null(),
        partial: null_mut(),
        rows: rows as i64,
        columns: columns as i64,
        value: 0,
    };
    // SAFETY: as above.
    unsafe { launches::sum_rows(on, a, y.to()) }.unwrap();
    y.read()
}

#[test]
fn sums_over_rows_are_exact_sums_rounded() {
    for on in &TYPES {
        for (rows, columns) in [(0, 3), (1, 1), (256, 33), (257, 64), (1_000, 5)] {
            let mut x = Array::new(on, &wave(rows * columns, 1.0, 1.0), 0);
            let all = x.read();
            let column = |c: usize| all.iter().skip(c).step_by(columns).sum::<f64>();
            let wanted: Vec<f64> = (0..columns).map(column).collect();
            near("sums", &sums(on, &mut x, rows, columns), &wanted, on);
        }
    }
}

/// Numbers with many repetitions, the first of which lies far from the last.
fn numbers(count: usize, rows: usize) -> Vec<i64> {
    (0..count).map(|i| ((i * i + 3 * i) % rows) as i64).collect()
}

#[test]
fn rows_of_a_table_and_its_gradient_follow_the_cpu() {
    // Rows used, columns, rows of the table: below and above the sizes of a small table and of a block's columns, and
    // more uses than a block looks at in one go.
    for (count, columns, rows) in [(7, 5, 3), (300, 6, 2), (40, 1_030, 9), (4_500, 3, 11)] {
        let ids = numbers(count, rows);
        for on in &TYPES {
            let mut table = Array::new(on, &wave(rows * columns, 1.0, 1.0), 0);
            let mut y = Array::new(on, &nothing(count * columns), 1);
            let a = arguments::Lookup {
                x: table.at(),
                ids: ids.as_ptr().cast(),
                y: y.to(),
                rows: count as i64,
                columns: columns as i64,
                table_rows: rows as i64,
                left_out: 1,
            };
            // SAFETY: as above.
            unsafe { launches::lookup(on, &a) }.unwrap();
            let mut grad = Array::new(on, &wave(count * columns, 1.0, 2.0), 0);
            let numbers = Tensor::from_vec(ids.clone(), count, &Device::Cpu).unwrap();
            let given = [(table.read(), &[rows, columns][..])];
            let (wanted, grads) = twin(&given, &grad.read(), |t| lookup(&t[0], &numbers, Some(1)));
            near("rows", &y.read(), &wanted, on);
            let mut d_table = Array::new(on, &vec![0.0; rows * columns], 0);
            let a = arguments::Lookup { x: grad.at(), y: d_table.to(), ..a };
            // SAFETY: as above.
            unsafe { launches::lookup_back(on, &a) }.unwrap();
            near("d table", &d_table.read(), &grads[0], on);
        }
    }
}

#[test]
fn a_number_outside_of_the_table_gives_no_number_and_no_gradient() {
    let ids = [2i64, -1, 9, 0];
    let mut table = Array::new(&F32, &wave(9 * 4, 1.0, 1.0), 0);
    let mut y = Array::new(&F32, &nothing(16), 0);
    let a = arguments::Lookup {
        x: table.at(),
        ids: ids.as_ptr().cast(),
        y: y.to(),
        rows: 4,
        columns: 4,
        table_rows: 9,
        left_out: -1,
    };
    // SAFETY: as above.
    unsafe { launches::lookup(&F32, &a) }.unwrap();
    let found = y.read();
    assert!(found[4..12].iter().all(|x| x.is_nan()) && !found[0].is_nan() && !found[15].is_nan());
    let mut d_table = Array::new(&F32, &[0.0; 36], 0);
    let mut grad = Array::new(&F32, &[1.0; 16], 0);
    let a = arguments::Lookup { x: grad.at(), y: d_table.to(), ..a };
    // SAFETY: as above.
    unsafe { launches::lookup_back(&F32, &a) }.unwrap();
    assert_eq!(d_table.read().iter().sum::<f64>(), 8.0);
}

#[test]
fn threads_in_another_order_give_the_same_bits() {
    let (rows, columns) = (300, 40);
    let ids = numbers(rows, 50);
    let run = || {
        let mut x = Array::new(&F32, &wave(rows * columns, 1.0, 1.0), 0);
        let mut grad = Array::new(&F32, &wave(rows * columns, 1.0, 2.0), 0);
        let mut weight = Array::new(&F32, &wave(columns, 1.0, 3.0), 0);
        let mut table = Array::new(&F32, &vec![0.0; 50 * columns], 0);
        let mut all = Array::new(&F32, &nothing((rows + 2) * columns), 0);
        let lookup = arguments::Lookup {
            x: x.at(),
            ids: ids.as_ptr().cast(),
            y: table.to(),
            rows: rows as i64,
            columns: columns as i64,
            table_rows: 50,
            left_out: -1,
        };
        let norm = arguments::Norm {
            x: x.at(),
            weight: weight.at(),
            other: grad.at(),
            y: all.to(),
            stats: null_mut(),
            rows: rows as i64,
            columns: columns as i64,
            eps: 1e-5,
            reserved: 0,
        };
        // SAFETY: as above.
        unsafe { launches::lookup_back(&F32, &lookup) }.unwrap();
        // SAFETY: as above.
        unsafe { launches::norm_back(&F32, &norm) }.unwrap();
        (table.read(), all.read())
    };
    let ordered = run();
    shuffle(true);
    let shuffled = run();
    shuffle(false);
    assert_eq!(ordered, shuffled);
}
