//! `lmb.vector/1` for GPUs against f64, through the module's `get_interface`.

use crate::buffer::Buffer;
use crate::emulator::{HOPPER, launches, on};
use crate::host::{Failure, context, module, slot};
use crate::reference::Array;
use limbeck_sdk::abi;

const F32: abi::DLDataType = abi::DLDataType::F32;
const BF16: abi::DLDataType = abi::DLDataType::BF16;

fn table() -> &'static abi::Vector {
    let get = module().get_interface.expect("a module with interfaces");
    // SAFETY: [any]; the table lives as long as the process.
    unsafe { get(abi::Str::new(abi::VECTOR_ID)).cast::<abi::Vector>().as_ref() }
        .expect("lmb.vector/1")
}

/// Lengths of a list: empty, one element, odd, a chunk and one, several chunks.
const LENGTHS: [usize; 6] = [0, 1, 7, 1000, 65_537, 131_072];

fn value(tensor: usize, k: usize, seed: f64) -> f64 {
    ((k as f64 + 1.0) * 0.37 + tensor as f64 * 1.3 + seed).sin()
}

fn list(dtype: abi::DLDataType, seed: f64) -> Vec<Buffer> {
    let tensor = |(t, length): (usize, &usize)| {
        let data = (0..*length).map(|k| value(t, k, seed)).collect();
        Buffer::new("t", dtype, &Array { shape: vec![*length], data }, (0, 0))
    };
    LENGTHS.iter().enumerate().map(tensor).collect()
}

fn views(list: &mut [Buffer]) -> Vec<abi::Tensor> {
    list.iter_mut().map(Buffer::tensor).collect()
}

fn close(found: &[Buffer], exact: impl Fn(usize, usize) -> f64, bound: f64) {
    for (t, buffer) in found.iter().enumerate() {
        assert!(buffer.guards_hold(), "tensor {t}: written outside");
        for (k, found) in buffer.read().into_iter().enumerate() {
            let exact = exact(t, k);
            assert!(
                (found - exact).abs() <= bound * (1.0 + exact.abs()),
                "{t} {k}: {found} {exact}"
            );
        }
    }
}

#[test]
fn sums_and_products_of_lists_are_right_and_zeros_read_nothing() {
    on(HOPPER);
    let (ctx, n) = (context(), LENGTHS.len() as u64);
    for (dtype, bound) in [(F32, 1e-6), (BF16, 1.0 / 256.0)] {
        let (mut x, mut y, mut z) = (list(F32, 0.0), list(dtype, 1.0), list(dtype, 2.0));
        let (before_y, before_z): (Vec<_>, Vec<_>) =
            (y.iter().map(Buffer::read).collect(), z.iter().map(Buffer::read).collect());
        let (xs, ys, zs) = (views(&mut x), views(&mut y), views(&mut z));
        let mut failure = Failure::default();
        // SAFETY: lists of n tensors of this thread's GPU.
        let status = unsafe {
            (table().mul)(
                table(),
                &ctx,
                n,
                2.0,
                xs.as_ptr(),
                ys.as_ptr(),
                0.5,
                zs.as_ptr(),
                slot(&mut failure),
            )
        };
        assert_eq!(status, abi::STATUS_OK, "{failure:?}");
        let product = |t: usize, k: usize| 2.0 * value(t, k, 0.0) * before_y[t][k];
        close(&z, |t, k| product(t, k) + 0.5 * before_z[t][k], bound);
        // SAFETY: as above.
        let status = unsafe {
            (table().axpby)(
                table(),
                &ctx,
                n,
                -0.25,
                xs.as_ptr(),
                0.75,
                ys.as_ptr(),
                slot(&mut failure),
            )
        };
        assert_eq!(status, abi::STATUS_OK, "{failure:?}");
        close(&y, |t, k| -0.25 * value(t, k, 0.0) + 0.75 * before_y[t][k], bound);
        // NaN that is not read does not show.
        y.iter_mut().for_each(|y| y.fill(&vec![f64::NAN; y.read().len()]));
        // SAFETY: as above; x is not read, so it may be NULL.
        let status = unsafe {
            (table().axpby)(
                table(),
                &ctx,
                n,
                0.0,
                std::ptr::null(),
                0.0,
                ys.as_ptr(),
                slot(&mut failure),
            )
        };
        assert_eq!(status, abi::STATUS_OK, "{failure:?}");
        close(&y, |_, _| 0.0, 0.0);
    }
}

#[test]
fn dot_adds_all_tensors_up() {
    on(HOPPER);
    let (mut x, mut y) = (list(F32, 0.0), list(BF16, 1.0));
    let products = x.iter().zip(&y).flat_map(|(x, y)| {
        x.read().into_iter().zip(y.read()).map(|(x, y)| x * y).collect::<Vec<_>>()
    });
    let exact: f64 = products.sum();
    let (xs, ys, mut found) = (views(&mut x), views(&mut y), f64::NAN);
    let (mut failure, n) = (Failure::default(), LENGTHS.len() as u64);
    // SAFETY: lists of n tensors of this thread's GPU.
    let status = unsafe {
        (table().dot)(
            table(),
            &context(),
            n,
            xs.as_ptr(),
            ys.as_ptr(),
            &mut found,
            slot(&mut failure),
        )
    };
    assert_eq!(status, abi::STATUS_OK, "{failure:?}");
    assert!((found - exact).abs() < 1e-3, "{found} {exact}");
}

#[test]
fn a_list_of_300_tensors_takes_two_launches() {
    on(HOPPER);
    let one = Array { shape: vec![3], data: vec![1.0; 3] };
    let mut y: Vec<Buffer> = (0..300).map(|_| Buffer::new("y", F32, &one, (0, 0))).collect();
    let ys = views(&mut y);
    let (mut failure, before) = (Failure::default(), launches());
    // SAFETY: a list of 300 tensors of this thread's GPU.
    let status = unsafe {
        (table().axpby)(
            table(),
            &context(),
            300,
            0.0,
            std::ptr::null(),
            3.0,
            ys.as_ptr(),
            slot(&mut failure),
        )
    };
    assert_eq!(status, abi::STATUS_OK, "{failure:?}");
    assert!(launches() - before >= 2, "other tests launch too");
    assert!(y.iter().all(|y| y.read() == [3.0; 3]));
}

#[test]
fn adamw_follows_its_formula_with_and_without_masters() {
    on(HOPPER);
    let (beta1, beta2, eps, scale) = (0.9, 0.999, 1e-8, 0.5);
    for (dtype, masters) in [(F32, false), (BF16, true)] {
        let (mut params, mut grads) = (list(dtype, 0.0), list(dtype, 1.0));
        let (mut m, mut v, mut copies) = (list(F32, 2.0), list(F32, 3.0), list(F32, 0.0));
        for v in &mut v {
            let squares: Vec<f64> = v.read().iter().map(|v| v * v).collect();
            v.fill(&squares);
        }
        let old: Vec<Vec<Vec<f64>>> = [&params, &grads, &m, &v, &copies]
            .map(|list| list.iter().map(Buffer::read).collect())
            .to_vec();
        let views = [&mut params, &mut grads, &mut m, &mut v, &mut copies].map(|list| views(list));
        let n = LENGTHS.len();
        let (lr, decay) = (vec![0.01; n], vec![0.1; n]);
        let step = abi::Adamw {
            struct_size: size_of::<abi::Adamw>() as u64,
            params: views[0].as_ptr(),
            grads: views[1].as_ptr(),
            m: views[2].as_ptr(),
            v: views[3].as_ptr(),
            masters: if masters { views[4].as_ptr() } else { std::ptr::null() },
            lr: lr.as_ptr(),
            weight_decay: decay.as_ptr(),
            beta1,
            beta2,
            eps,
            grad_scale: scale,
            t: 3,
        };
        let mut failure = Failure::default();
        let adamw = table().adamw.expect("adamw");
        // SAFETY: lists of n tensors of this thread's GPU, numbers of n entries.
        let status = unsafe { adamw(table(), &context(), n as u64, &step, slot(&mut failure)) };
        assert_eq!(status, abi::STATUS_OK, "{failure:?}");
        let moments = |t: usize, k: usize| {
            let g = scale * old[1][t][k];
            (beta1 * old[2][t][k] + (1.0 - beta1) * g, beta2 * old[3][t][k] + (1.0 - beta2) * g * g)
        };
        let next = |t: usize, k: usize| {
            let start = if masters { old[4][t][k] } else { old[0][t][k] };
            let (m, v) = moments(t, k);
            let (m, v) = (m / (1.0 - beta1.powi(3)), v / (1.0 - beta2.powi(3)));
            start - 0.01 * 0.1 * start - 0.01 * m / (v.sqrt() + eps)
        };
        close(&m, |t, k| moments(t, k).0, 1e-6);
        close(&v, |t, k| moments(t, k).1, 1e-6);
        close(&params, next, if masters { 1.0 / 256.0 } else { 2e-6 });
        if masters {
            close(&copies, next, 2e-6);
        }
    }
}

#[test]
fn a_tensor_elsewhere_is_refused() {
    on(HOPPER);
    let (mut y, mut failure) = (list(F32, 0.0), Failure::default());
    let mut ys = views(&mut y);
    ys[3].t.device = abi::DLDevice::CPU;
    // SAFETY: a list of n tensors.
    let status = unsafe {
        (table().axpby)(
            table(),
            &context(),
            6,
            0.0,
            std::ptr::null(),
            3.0,
            ys.as_ptr(),
            slot(&mut failure),
        )
    };
    assert_eq!(status, abi::STATUS_INVALID_ARGUMENT, "{failure:?}");
    assert!(failure.message.contains("GPU 0"), "{failure:?}");
}
