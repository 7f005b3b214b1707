//! Against naive f64 implementations.

use super::*;
use crate::run::random::{Purpose, Random, key};
use half::{bf16, f16};

fn random(n: usize, seed: u64) -> Vec<f64> {
    let mut random = Random::new(key(Purpose::Order, &[seed]));
    (0..n).map(|_| random.normal()).collect()
}

fn f32s(values: &[f64]) -> Tensor {
    let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
    Tensor::from_slice(&values, &[values.len() as i64])
}

fn cast(t: &Tensor, dtype: DType) -> Tensor {
    let values = t.data::<f32>().unwrap();
    let shape = t.shape();
    match dtype {
        DType::BF16 => Tensor::from_slice(
            &values.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>(),
            shape,
        ),
        DType::F16 => {
            Tensor::from_slice(&values.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>(), shape)
        }
        _ => Tensor::from_slice(values, shape),
    }
}

fn read(t: &Tensor) -> Vec<f64> {
    match t.dtype() {
        DType::BF16 => t.data::<bf16>().unwrap().iter().map(|v| v.to_f64()).collect(),
        DType::F16 => t.data::<f16>().unwrap().iter().map(|v| v.to_f64()).collect(),
        _ => t.data::<f32>().unwrap().iter().map(|v| f64::from(*v)).collect(),
    }
}

/// Half a unit in the last place at magnitude 1, with two roundings of slack.
fn eps(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => 1.0 / 128.0,
        DType::F16 => 1.0 / 1024.0,
        _ => 3.0 * f64::from(f32::EPSILON),
    }
}

fn close(found: &[f64], wanted: &[f64], tolerance: f64) {
    assert_eq!(found.len(), wanted.len());
    for (i, (f, w)) in found.iter().zip(wanted).enumerate() {
        assert!((f - w).abs() <= tolerance * w.abs().max(1.0), "entry {i}: {f} is not {w}");
    }
}

const FLOATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

#[test]
fn axpby_agrees_with_f64_for_every_pair_of_types() {
    for xt in FLOATS {
        for yt in FLOATS {
            let (x, y) = (cast(&f32s(&random(1003, 1)), xt), cast(&f32s(&random(1003, 2)), yt));
            let wanted: Vec<f64> =
                read(&x).iter().zip(read(&y)).map(|(x, y)| 0.3 * x - 1.7 * y).collect();
            axpby(0.3, &[x], -1.7, std::slice::from_ref(&y)).unwrap();
            close(&read(&y), &wanted, eps(yt) * 2.0);
        }
    }
}

#[test]
fn zero_factors_do_not_read_and_a_copy_is_exact() {
    let x = f32s(&random(40_000, 3));
    let y = f32s(&vec![f64::NAN; 40_000]);
    axpby(1.0, std::slice::from_ref(&x), 0.0, std::slice::from_ref(&y)).unwrap();
    assert_eq!(x.data::<f32>(), y.data::<f32>());
    axpby(0.0, &[f32s(&[f64::NAN])], 2.0, &[f32s(&[1.5])]).unwrap();
    let z = f32s(&[f64::NAN]);
    mul(2.0, &[f32s(&[3.0])], &[f32s(&[5.0])], 0.0, std::slice::from_ref(&z)).unwrap();
    assert_eq!(read(&z), [30.0]);
    // A copy keeps the sign of zero.
    let y = f32s(&[1.0]);
    axpby(1.0, &[f32s(&[-0.0])], 0.0, std::slice::from_ref(&y)).unwrap();
    assert!(read(&y)[0].is_sign_negative());
}

#[test]
fn mul_agrees_with_f64_and_may_write_over_an_input() {
    let (x, y) = (f32s(&random(70_001, 4)), f32s(&random(70_001, 5)));
    let wanted: Vec<f64> =
        read(&x).iter().zip(read(&y)).map(|(x, y)| 0.5 * x * y + 0.25 * x).collect();
    mul(0.5, std::slice::from_ref(&x), &[y], 0.25, std::slice::from_ref(&x)).unwrap();
    close(&read(&x), &wanted, 4.0 * f64::from(f32::EPSILON));
}

#[test]
fn dot_agrees_with_f64_to_its_last_digits_and_ignores_the_split_over_threads() {
    let lists: Vec<Vec<f64>> =
        [(100_003, 6), (1, 7), (0, 8), (4096, 9)].map(|(n, s)| random(n, s)).to_vec();
    let x: Vec<Tensor> = lists.iter().map(|v| f32s(v)).collect();
    let y: Vec<Tensor> = lists.iter().map(|v| cast(&f32s(v), DType::BF16)).collect();
    let wanted: f64 = x
        .iter()
        .zip(&y)
        .flat_map(|(x, y)| read(x).into_iter().zip(read(y)))
        .map(|(x, y)| x * y)
        .sum();
    let found = dot(&x, &y).unwrap();
    assert!((found - wanted).abs() < 1e-9 * wanted.abs(), "{found} {wanted}");
    // Nested, so that everything runs on this thread.
    super::super::parallel_ranges(1, 1, &|_, _| {
        assert_eq!(dot(&x, &y).unwrap().to_bits(), found.to_bits());
    });
}

/// PyTorch's `_single_tensor_adamw` in f64.
fn torch_adamw(p: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64], lr: f64, wd: f64, t: i32) {
    let (beta1, beta2, eps) = (0.9, 0.999, 1e-8);
    for i in 0..p.len() {
        p[i] *= 1.0 - lr * wd;
        m[i] += (g[i] - m[i]) * (1.0 - beta1);
        v[i] = v[i] * beta2 + (1.0 - beta2) * g[i] * g[i];
        let step_size = lr / (1.0 - f64::powi(beta1, t));
        let denominator = v[i].sqrt() / (1.0 - f64::powi(beta2, t)).sqrt() + eps;
        p[i] -= step_size * m[i] / denominator;
    }
}

fn run_adamw(dtype: DType, masters: bool, steps: u64) -> (Vec<f64>, Vec<f64>) {
    let n = 65_539;
    let start = random(n, 10);
    let p = cast(&f32s(&start), dtype);
    let master = f32s(&start);
    let (m, v) = (Tensor::zeros(DType::F32, &[n as i64]), Tensor::zeros(DType::F32, &[n as i64]));
    let mut expected = if masters { read(&master) } else { read(&p) };
    let (mut em, mut ev) = (vec![0.0; n], vec![0.0; n]);
    for t in 1..=steps {
        let g = f32s(&random(n, 100 + t));
        let scaled: Vec<f64> = read(&g).iter().map(|g| g * 0.5).collect();
        torch_adamw(&mut expected, &scaled, &mut em, &mut ev, 1e-2, 0.1, t as i32);
        adamw(&Adamw {
            params: std::slice::from_ref(&p),
            grads: &[g],
            m: std::slice::from_ref(&m),
            v: std::slice::from_ref(&v),
            masters: masters.then_some(std::slice::from_ref(&master)),
            lr: &[1e-2],
            weight_decay: &[0.1],
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            grad_scale: 0.5,
            t,
        })
        .unwrap();
    }
    (read(&p), expected)
}

#[test]
fn adamw_follows_pytorchs_formula_over_ten_steps() {
    let (found, wanted) = run_adamw(DType::F32, false, 10);
    close(&found, &wanted, 1e-5);
}

#[test]
fn masters_keep_small_updates_that_half_precision_would_lose() {
    for dtype in [DType::BF16, DType::F16] {
        let (found, wanted) = run_adamw(dtype, true, 10);
        close(&found, &wanted, eps(dtype));
    }
}

#[test]
fn bad_lists_are_refused_with_the_entry() {
    let (a, b) = (f32s(&[1.0, 2.0]), f32s(&[1.0]));
    assert_eq!(
        axpby(1.0, std::slice::from_ref(&a), 1.0, &[b]),
        Err(VectorError::Size { index: 0, found: 2, wanted: 1 })
    );
    let ints = Tensor::zeros(DType::I64, &[2]);
    assert_eq!(
        dot(&[a.clone(), a.clone()], &[a.clone(), ints]),
        Err(VectorError::DType { index: 1, found: "i64" })
    );
    assert_eq!(dot(&[a], &[]), Err(VectorError::Length(1, 0)));
}

#[test]
fn the_c_table_refuses_a_device_that_nothing_serves() {
    let x = f32s(&[1.0]);
    let view = x.view("x", 0);
    let ctx = abi::Ctx {
        struct_size: abi::struct_size::<abi::Ctx>(),
        host: std::ptr::null(),
        stream: abi::Stream {
            device: abi::DLDevice { device_type: abi::DL_CUDA, device_id: 0 },
            handle: std::ptr::null_mut(),
        },
        step: 0,
        micro_step: 0,
        rng_key: [0; 2],
        span: 0,
    };
    let mut out = 0.0;
    let t = table();
    // SAFETY: live views and places.
    let status = unsafe { (t.dot)(t, &ctx, 1, &view, &view, &mut out, std::ptr::null_mut()) };
    assert_eq!(status, abi::STATUS_UNSUPPORTED);
    // SAFETY: as above; a NULL context is the CPU.
    let status =
        unsafe { (t.dot)(t, std::ptr::null(), 1, &view, &view, &mut out, std::ptr::null_mut()) };
    assert_eq!((status, out), (abi::STATUS_OK, 1.0));
}
