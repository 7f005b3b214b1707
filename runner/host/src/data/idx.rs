//! Reads IDX files, the format of MNIST.
//!
//! Magic `00 00 TYPE NDIM`, big-endian sizes, big-endian elements. Source: LeCun, Cortes, Burges, the MNIST page.
//! Refuses unknown types, no axes, and a length that the header does not explain.

use super::raw::{Elem, Header, exact};
use crate::diagnostic::Diagnostic;
use std::io::Read;
use std::path::Path;

/// The header; the reader is at the first element then.
pub(super) fn header(path: &Path, reader: &mut dyn Read) -> Result<Header, Diagnostic> {
    let mut magic = [0; 4];
    exact(path, reader, &mut magic)?;
    let [zero, zero_too, kind, ndim] = magic;
    let elem = match kind {
        0x08 => Elem::U8,
        0x09 => Elem::I8,
        0x0b => Elem::I16,
        0x0c => Elem::I32,
        0x0d => Elem::F32,
        0x0e => Elem::F64,
        _ => return Err(no_idx(path, &magic)),
    };
    if zero != 0 || zero_too != 0 || ndim == 0 {
        return Err(no_idx(path, &magic));
    }
    let mut shape = Vec::with_capacity(usize::from(ndim));
    for _ in 0..ndim {
        let mut size = [0; 4];
        exact(path, reader, &mut size)?;
        shape.push(u64::from(u32::from_be_bytes(size)));
    }
    Ok(Header { elem, big_endian: true, shape, offset: 4 + 4 * u64::from(ndim) })
}

fn no_idx(path: &Path, magic: &[u8]) -> Diagnostic {
    Diagnostic::error(
        "LMB0510",
        format!("`{}` is no IDX file: it begins with {magic:02x?}", path.display()),
    )
    .help("an IDX file begins with two zero bytes, a type (08, 09, 0b … 0e) and the number of axes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_mnist_images_is_understood() {
        let bytes = [0, 0, 8, 3, 0, 0, 0xea, 0x60, 0, 0, 0, 28, 0, 0, 0, 28, 7];
        let found = header(Path::new("x"), &mut bytes.as_slice()).unwrap();
        let shape = vec![60_000, 28, 28];
        assert_eq!(found, Header { elem: Elem::U8, big_endian: true, shape, offset: 16 });
    }

    #[test]
    fn other_files_are_refused() {
        for bytes in
            [&b"PK\x03\x04"[..], &[0, 0, 7, 1], &[0, 0, 8, 0], &[0, 0], &[0, 0, 8, 2, 0, 0, 0, 1]]
        {
            assert_eq!(
                header(Path::new("x"), &mut &*bytes).unwrap_err().code,
                "LMB0510",
                "{bytes:?}"
            );
        }
    }
}
