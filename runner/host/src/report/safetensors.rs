//! Writes tensors as safetensors files, in shards when they are large.
//!
//! Only CPU tensors; a strided one is written row-major. Equal tensors give equal bytes: the order in the file is by
//! element size (so that every tensor is aligned), then by name.

use crate::tensor::{DType, Tensor};
use serde_json::{Map, Value as Json, json};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Bytes of a shard at most (decimal gigabytes, as elsewhere).
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// The name of an element type in the format.
pub fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::F64 => "F64",
        DType::F16 => "F16",
        DType::BF16 => "BF16",
        DType::I64 => "I64",
        DType::I32 => "I32",
        DType::U8 => "U8",
        DType::U32 => "U32",
    }
}

/// Writes one file and syncs it to the disk.
///
/// # Errors
/// Those of the file system; `InvalidInput` for a tensor that is not on the CPU.
pub fn write_file(path: &Path, tensors: &[(&str, &Tensor)]) -> io::Result<()> {
    let mut order: Vec<&(&str, &Tensor)> = tensors.iter().collect();
    order.sort_by(|a, b| b.1.dtype().bytes().cmp(&a.1.dtype().bytes()).then(a.0.cmp(b.0)));
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0;
    for (name, tensor) in &order {
        let end = offset + tensor.bytes();
        header.insert(
            (*name).into(),
            json!({"dtype": dtype_name(tensor.dtype()), "shape": tensor.shape(), "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut header = Json::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    for (name, tensor) in &order {
        let tensor = tensor.contiguous().ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("tensor `{name}` is not in host memory"),
            )
        })?;
        file.write_all(tensor.raw().unwrap_or_default())?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

/// Writes `model.safetensors`, or `model-00001-of-0000N.safetensors` … with `model.safetensors.index.json` when the
/// tensors need more than `shard_bytes`. Returns the names of the files.
///
/// # Errors
/// As [`write_file`].
pub fn write_model(
    dir: &Path,
    tensors: &[(&str, &Tensor)],
    shard_bytes: u64,
) -> io::Result<Vec<String>> {
    let shards = divide(tensors, shard_bytes);
    if let [only] = shards.as_slice() {
        let name = "model.safetensors".to_owned();
        write_file(&dir.join(&name), only)?;
        return Ok(vec![name]);
    }
    let mut files = Vec::new();
    let mut map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write_file(&dir.join(&name), shard)?;
        map.extend(shard.iter().map(|(tensor, _)| ((*tensor).to_owned(), json!(name))));
        files.push(name);
    }
    map.sort_keys();
    let total: usize = tensors.iter().map(|(_, t)| t.bytes()).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    let name = "model.safetensors.index.json".to_owned();
    let mut file = File::create(dir.join(&name))?;
    file.write_all(format!("{index:#}\n").as_bytes())?;
    file.sync_all()?;
    files.push(name);
    Ok(files)
}

/// Greedy, in the given order; at least one shard, and a tensor larger than the limit has one of its own.
fn divide<'a>(tensors: &[(&'a str, &'a Tensor)], limit: u64) -> Vec<Vec<(&'a str, &'a Tensor)>> {
    let mut shards = vec![Vec::new()];
    let mut used = 0;
    for entry in tensors {
        let bytes = entry.1.bytes() as u64;
        if used > 0 && used + bytes > limit {
            shards.push(Vec::new());
            used = 0;
        }
        used += bytes;
        if let Some(last) = shards.last_mut() {
            last.push(*entry);
        }
    }
    shards
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_safetensors_crate_reads_every_type_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let a = Tensor::from_slice(&[1.5f32, -2.0, 3.25, 0.0, 7.0, -0.5], &[2, 3]);
        let b = Tensor::from_slice(&[9i64, -100], &[2]);
        let c = Tensor::from_slice(&[half::bf16::from_f32(0.5)], &[1]);
        let d = Tensor::from_slice(&[7u8, 8, 9], &[3]);
        let empty = Tensor::zeros(DType::F32, &[0, 4]);
        write_file(&path, &[("a", &a), ("b", &b), ("c", &c), ("d", &d), ("e", &empty)]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), 5);
        for (name, tensor) in [("a", &a), ("b", &b), ("c", &c), ("d", &d), ("e", &empty)] {
            let view = read.tensor(name).unwrap();
            assert_eq!(view.data(), tensor.raw().unwrap(), "{name}");
            let shape: Vec<i64> = view.shape().iter().map(|d| *d as i64).collect();
            assert_eq!(shape, tensor.shape(), "{name}");
            assert_eq!(format!("{:?}", view.dtype()), dtype_name(tensor.dtype()));
        }
    }

    #[test]
    fn a_transposed_view_is_written_row_major() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let base = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
        let (shape, strides) = ([3i64, 2], [1i64, 3]);
        let dl = limbeck_abi::DLTensor {
            shape: shape.as_ptr().cast_mut(),
            strides: strides.as_ptr().cast_mut(),
            ..base.view("x", 0).t
        };
        // SAFETY: same memory, all indices inside it; `base` outlives the view.
        let view = unsafe { Tensor::borrowed(&dl) }.unwrap();
        write_file(&path, &[("x", &view)]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let read = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let values: Vec<f32> = read
            .tensor("x")
            .unwrap()
            .data()
            .chunks(4)
            .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
            .collect();
        assert_eq!(values, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }

    #[test]
    fn large_models_are_sharded_with_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let tensors: Vec<(String, Tensor)> =
            (0..5).map(|i| (format!("w{i}"), Tensor::from_slice(&[i as f32; 10], &[10]))).collect();
        let list: Vec<(&str, &Tensor)> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let files = write_model(dir.path(), &list, 80).unwrap();
        assert_eq!(
            files,
            [
                "model-00001-of-00003.safetensors",
                "model-00002-of-00003.safetensors",
                "model-00003-of-00003.safetensors",
                "model.safetensors.index.json"
            ]
        );
        let index: Json =
            serde_json::from_slice(&std::fs::read(dir.path().join(&files[3])).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 200);
        for (name, tensor) in &list {
            let shard = index["weight_map"][name].as_str().unwrap();
            let bytes = std::fs::read(dir.path().join(shard)).unwrap();
            let read = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(read.tensor(name).unwrap().data(), tensor.raw().unwrap());
        }
        assert_eq!(write_model(dir.path(), &list, 200).unwrap(), ["model.safetensors"]);
    }
}
