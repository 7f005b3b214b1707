//! The choice of kernels over all shapes, with no GPU and no emulator.

use limbeck_losses::cuda::driver::Driver;
use limbeck_losses::cuda::plan::{
    Capability, Facts, Held, Layout, Route, cluster, keeps_narrow, route, stores_vectors,
};
use limbeck_sdk::DType;
use std::path::Path;

const H100: Capability = Capability { compute: 90, shared_bytes: 232_448, max_cluster: 16 };
const A100: Capability = Capability { compute: 80, shared_bytes: 166_912, max_cluster: 0 };

fn packed(width: usize, dtype: DType) -> Facts {
    let layout = Layout { address: 4096, row: width as i64, column: 1, dtype };
    let (teacher, grad) = (Some(layout), Some(layout));
    Facts { width, student: layout, teacher, grad, masked: false, clustered: true, kept: None }
}

#[test]
fn clusters_and_slices_are_those_of_the_design() {
    let pair = |bytes| Held { bytes, tensors: 2, kept: None };
    let split = |width, held, most| match cluster(width, held, most) {
        Some(Route::Cluster { blocks, slice, .. }) => Some((blocks, slice)),
        _ => None,
    };
    let of = |width, bytes| split(width, pair(bytes), 16);
    assert_eq!(of(1024, 2), None);
    assert_eq!(of(16_384, 2), Some((1, 16_384)));
    assert_eq!(of(32_000, 2), Some((2, 16_000)));
    assert_eq!(of(128_256, 2), Some((8, 16_032)));
    assert_eq!(of(151_936, 2), Some((8, 18_992)));
    assert_eq!(of(262_144, 2), Some((16, 16_384)));
    assert_eq!(of(16_384, 4), Some((2, 8_192)));
    assert_eq!(of(32_000, 4), Some((4, 8_000)));
    assert_eq!(of(128_256, 4), Some((16, 8_016)));
    assert_eq!(of(151_936, 4), Some((16, 9_496)));
    assert_eq!(of(262_144, 4), None);
    assert_eq!(split(262_144, pair(2), 8), None, "a device without clusters of 16");
    let alone = |kept| Held { bytes: 2, tensors: 1, kept };
    assert_eq!(split(128_256, alone(None), 16), Some((4, 32_064)), "labels");
    assert_eq!(split(128_256, alone(Some(64)), 16), Some((4, 32_064)), "a sparse teacher");
    assert_eq!(split(128_256, alone(Some(1024)), 16), Some((8, 16_032)));
}

#[test]
fn three_blocks_of_a_cluster_kernel_share_an_sm_and_cover_the_row() {
    for width in (1025..270_000).step_by(37) {
        for (dtype, bytes) in [(DType::BF16, 2), (DType::F32, 4)] {
            let held = Held { bytes, tensors: 2, kept: None };
            let Some(route) = cluster(width, held, 16) else {
                assert!(width > 16 * 9_504, "{width}");
                continue;
            };
            let Route::Cluster { blocks, slice, .. } = route else { panic!("{route:?}") };
            let shape = route.shape(width, dtype, None);
            // 1 KB of each block is the system's.
            assert!(3 * (shape.shared_bytes + 1024) <= 228 * 1024, "{width}: {shape:?}");
            assert!(blocks as usize * slice >= width && slice % 8 == 0, "{width}");
            assert!(blocks.is_power_of_two() && blocks <= 16, "{width}");
        }
    }
}

#[test]
fn an_unaligned_mixed_or_masked_row_takes_the_kernel_that_takes_everything() {
    let plain = packed(32_000, DType::BF16);
    let on_chip = Route::Cluster { blocks: 2, slice: 16_000, shared_bytes: 64_768 };
    assert_eq!(route(&plain, H100), on_chip);
    assert_eq!(route(&plain, A100), Route::Packed);
    let layout = plain.student;
    let off = [
        Layout { address: 4098, ..layout },
        Layout { row: 32_001, ..layout },
        Layout { column: 2, ..layout },
    ];
    for student in off {
        assert_eq!(route(&Facts { student, ..plain }, H100), Route::Any, "{student:?}");
        let teacher = Some(student);
        assert_eq!(route(&Facts { teacher, ..plain }, H100), Route::Any, "{student:?}");
    }
    let teacher = Some(Layout { dtype: DType::F32, ..layout });
    assert_eq!(route(&Facts { teacher, ..plain }, H100), Route::Any);
    assert_eq!(route(&Facts { masked: true, ..plain }, H100), Route::Any);
    let grad = Some(Layout { address: 4098, ..layout });
    assert_ne!(route(&Facts { grad, ..plain }, H100), Route::Any, "stores alone go slower");
    assert!(!stores_vectors(grad) && stores_vectors(plain.grad));
}

#[test]
fn threads_are_whole_warps_and_no_more_than_a_row_needs() {
    for (width, threads) in [(1, 32), (256, 32), (257, 64), (4096, 512), (300_000, 512)] {
        assert_eq!(Route::Packed.shape(width, DType::BF16, None).threads, threads, "{width}");
    }
    assert_eq!(Route::Any.shape(100, DType::F32, None).threads, 128);
    let sparse = Route::Packed.shape(151_936, DType::BF16, Some(64));
    assert_eq!(sparse.shared_bytes, 1024 + 64 * 12 + 4748 * 4);
}

#[test]
fn sixteen_bits_between_the_passes_need_a_gradient_of_sixteen_bits() {
    let grad = |dtype| packed(8, dtype).grad;
    assert!(keeps_narrow(grad(DType::BF16), 1.0));
    assert!(!keeps_narrow(grad(DType::F32), 1.0));
    assert!(!keeps_narrow(grad(DType::F16), 1e4), "skl with a tiny share");
    assert!(!keeps_narrow(None, 1.0));
}

#[test]
fn a_machine_without_a_driver_is_told_what_is_missing() {
    let none = Driver::open(Path::new("/nonexistent/libcuda.so.1")).expect_err("no such file");
    let text = none.to_string();
    assert!(text.contains("/nonexistent/libcuda.so.1"), "{text}");
    assert!(text.contains("driver 580 or later, or use `device: cpu`"), "{text}");
    // A library that is no driver.
    let none = Driver::open(Path::new("libc.so.6")).expect_err("no driver");
    assert!(none.to_string().contains("has no cuInit"), "{none}");
}
