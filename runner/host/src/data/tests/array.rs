//! IDX and NPY arrays.

use super::*;

fn idx(kind: u8, dims: &[u32], elements: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, kind, dims.len() as u8];
    bytes.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
    bytes.extend(elements);
    bytes
}

#[test]
fn idx_images_and_labels_are_joined_by_row() {
    let folder = Folder::new();
    let images = folder.file("images", idx(8, &[3, 2, 2], &(0..12).collect::<Vec<u8>>()));
    folder.gz("labels.gz", idx(8, &[3], &[7, 8, 9]));
    let mut tensors = tensor(None);
    tensors.get_mut("x").unwrap().scale = 0.5;
    let plan = DatasetPlan { label: Some(name("labels.gz")), tensors, ..set(Format::Idx, &images) };
    let set = folder.open(DatasetPlan { limit: Some(2), ..plan.clone() }).unwrap();
    let batch = all(&set);
    assert_eq!(batch.columns["x"].shape(), [2, 2, 2]);
    assert_eq!(f32s(&batch, "x"), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]);
    assert_eq!(i64s(&batch, "labels"), [7, 8]);
    assert_eq!(set.hashes().len(), 2);
    folder.gz("labels.gz", idx(8, &[4], &[7, 8, 9, 1]));
    let (problem, _) = one(folder.open(plan));
    assert_eq!(problem.code, "LMB0514");
    assert!(problem.message.contains("`x` has 3, `labels` from `labels.gz` has 4"), "{problem:?}");
}

#[test]
fn headers_that_claim_too_much_are_refused_at_once() {
    let folder = Folder::new();
    let huge = u32::MAX;
    for (bytes, format) in [
        (idx(8, &[huge, huge, huge, huge], &[1]), Format::Idx),
        (idx(0x0e, &[huge, 256], &[1]), Format::Idx),
        (idx(8, &[3, 2], &[1, 2, 3, 4, 5]), Format::Idx),
        (idx(8, &[3, 2], &[1, 2, 3, 4, 5, 6, 7]), Format::Idx),
        (npy("<f4", "(1000000000000, 1000)", &[0; 16]), Format::Npy),
        (npy("<f8", "(18446744073709551615, 18446744073709551615)", &[0; 16]), Format::Npy),
    ] {
        let started = std::time::Instant::now();
        let path = folder.file("a", &bytes);
        let (problem, _) =
            one(folder.open(DatasetPlan { tensors: tensor(None), ..set(format, &path) }));
        assert_eq!(problem.code, "LMB0511", "{problem:?}");
        let path = folder.gz("a.gz", &bytes);
        let (problem, _) =
            one(folder.open(DatasetPlan { tensors: tensor(None), ..set(format, &path) }));
        assert_eq!(problem.code, "LMB0511", "{problem:?}");
        assert!(started.elapsed().as_secs() < 1);
    }
}

fn npy(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + text.len() + 1) % 64 != 0 {
        text.push(' ');
    }
    text.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((text.len() as u16).to_le_bytes());
    bytes.extend(text.as_bytes());
    bytes.extend(data);
    bytes
}

#[test]
fn npy_of_each_type_and_byte_order_is_read() {
    let folder = Folder::new();
    let values = [1.0f64, -2.0, 3.0, 4.0];
    macro_rules! case {
        ($descr:literal, $type:ty, $to:ident) => {
            ($descr, values.iter().flat_map(|v| (*v as $type).$to()).collect::<Vec<u8>>())
        };
    }
    let halves = values.iter().flat_map(|v| half::f16::from_f64(*v).to_le_bytes()).collect();
    for (descr, data) in [
        case!("<f4", f32, to_le_bytes),
        case!(">f4", f32, to_be_bytes),
        case!("<f8", f64, to_le_bytes),
        case!(">i2", i16, to_be_bytes),
        case!("|i1", i8, to_le_bytes),
        case!("<i8", i64, to_le_bytes),
        case!(">i4", i32, to_be_bytes),
        ("<f2", halves),
    ] {
        let path = folder.file("x.npy", npy(descr, "(2, 2)", &data));
        folder.file("y.npy", npy("|u1", "(2,)", &[3, 4]));
        let plan = DatasetPlan {
            label: Some(name("y.npy")),
            tensors: tensor(None),
            ..set(Format::Npy, &path)
        };
        let batch = all(&folder.open(plan).unwrap());
        assert_eq!(f32s(&batch, "x"), [1.0, -2.0, 3.0, 4.0], "{descr}");
        assert_eq!(i64s(&batch, "labels"), [3, 4]);
    }
}

#[test]
fn nan_in_an_array_is_refused_with_its_row() {
    let folder = Folder::new();
    let data: Vec<u8> = [1.0f32, 2.0, 3.0, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
    let path = folder.file("x.npy", npy("<f4", "(2, 2)", &data));
    let (problem, _) =
        one(folder.open(DatasetPlan { tensors: tensor(None), ..set(Format::Npy, &path) }));
    assert!(
        problem.message.ends_with("x.npy: row 1, column 1: NaN is not a finite number"),
        "{problem:?}"
    );
    let path = folder.file("y.npy", npy("<i8", "(1,)", &(-7i64).to_le_bytes()));
    let (problem, _) =
        one(folder.open(DatasetPlan { label: Some(name("y.npy")), ..set(Format::Npy, &path) }));
    assert_eq!(problem.code, "LMB0507");
}
