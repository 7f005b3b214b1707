//! Reads NumPy array files, `.npy`, versions 1 to 3.
//!
//! Refuses structured and object types, Fortran order with more than one axis, and scalars. The header is parsed as the
//! literal that NumPy writes, nothing is evaluated. Source: `numpy/lib/format.py`.

use super::raw::{Elem, Header, exact};
use crate::diagnostic::Diagnostic;
use std::io::Read;
use std::path::Path;

/// Longest header accepted; NumPy itself stops at 10,000 characters.
const LONGEST: usize = 64 << 10;

/// The header; the reader is at the first element then.
pub(super) fn header(path: &Path, reader: &mut dyn Read) -> Result<Header, Diagnostic> {
    let mut magic = [0; 8];
    exact(path, reader, &mut magic)?;
    let bad = |why: &str| Diagnostic::error("LMB0510", format!("`{}`: {why}", path.display()));
    if !magic.starts_with(b"\x93NUMPY") {
        let help = "write it with `numpy.save`; an `.npz` archive must be unpacked";
        return Err(bad("no NPY file: the first bytes are not `\\x93NUMPY`").help(help));
    }
    let (length, prefix) = match magic[6] {
        1 => {
            let mut length = [0; 2];
            exact(path, reader, &mut length)?;
            (usize::from(u16::from_le_bytes(length)), 10)
        }
        2 | 3 => {
            let mut length = [0; 4];
            exact(path, reader, &mut length)?;
            (u32::from_le_bytes(length) as usize, 12)
        }
        other => return Err(bad(&format!("version {other} of the NPY format is not known"))),
    };
    if length > LONGEST {
        return Err(bad(&format!("header of {length} bytes")));
    }
    let mut text = vec![0; length];
    exact(path, reader, &mut text)?;
    let text = String::from_utf8_lossy(&text);
    let (elem, big_endian) =
        element(value(&text, "descr").unwrap_or_default()).ok_or_else(|| {
            bad(&format!("type {} is not read", value(&text, "descr").unwrap_or("?")))
                .help("numbers and booleans are: u1 … u8, i1 … i8, f2, f4, f8, b1")
        })?;
    let shape = shape(&text).ok_or_else(|| bad("the header has no `shape`"))?;
    if shape.is_empty() {
        return Err(bad("a scalar has no rows"));
    }
    let fortran = value(&text, "fortran_order").is_none_or(|v| v != "False");
    if fortran && shape.len() > 1 {
        return Err(
            bad("the array lies in Fortran order").help("save `numpy.ascontiguousarray(x)`")
        );
    }
    Ok(Header { elem, big_endian, shape, offset: prefix + length as u64 })
}

/// The text of a value that is no tuple, quotes removed.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("'{key}'"))?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start();
    let end = rest.find([',', '}']).unwrap_or(rest.len());
    Some(rest.get(..end)?.trim().trim_matches('\''))
}

fn shape(text: &str) -> Option<Vec<u64>> {
    let (_, rest) = text.split_once("'shape'")?;
    let (_, rest) = rest.split_once('(')?;
    let (inside, _) = rest.split_once(')')?;
    inside.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| s.parse().ok()).collect()
}

fn element(descr: &str) -> Option<(Elem, bool)> {
    let (order, kind) = descr.split_at_checked(1)?;
    let big_endian = match order {
        "<" | "|" => false,
        ">" => true,
        "=" => cfg!(target_endian = "big"),
        _ => return None,
    };
    let elem = match kind {
        "u1" | "b1" => Elem::U8,
        "i1" => Elem::I8,
        "u2" => Elem::U16,
        "i2" => Elem::I16,
        "u4" => Elem::U32,
        "i4" => Elem::I32,
        "u8" => Elem::U64,
        "i8" => Elem::I64,
        "f2" => Elem::F16,
        "f4" => Elem::F32,
        "f8" => Elem::F64,
        _ => return None,
    };
    Some((elem, big_endian))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(version: u8, text: &str) -> Vec<u8> {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        if version == 1 {
            bytes.extend((text.len() as u16).to_le_bytes());
        } else {
            bytes.extend((text.len() as u32).to_le_bytes());
        }
        bytes.extend(text.as_bytes());
        bytes
    }

    #[test]
    fn headers_of_each_version_are_understood() {
        let text = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }   \n";
        let found = header(Path::new("x"), &mut file(1, text).as_slice()).unwrap();
        let offset = 10 + text.len() as u64;
        assert_eq!(found, Header { elem: Elem::F32, big_endian: false, shape: vec![3, 2], offset });
        let text = "{'shape': (5,), 'fortran_order': True, 'descr': '>i8'}";
        let found = header(Path::new("x"), &mut file(3, text).as_slice()).unwrap();
        assert_eq!((found.elem, found.big_endian, found.shape), (Elem::I64, true, vec![5]));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        let case = |version, text: &str| {
            header(Path::new("x"), &mut file(version, text).as_slice()).unwrap_err()
        };
        for (text, part) in [
            ("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", "type |O"),
            ("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}", "is not read"),
            ("{'descr': '<f4', 'fortran_order': True, 'shape': (3, 2)}", "Fortran"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': ()}", "scalar"),
            ("{'descr': '<f4', 'fortran_order': False}", "no `shape`"),
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2)}", "no `shape`"),
        ] {
            let error = case(1, text);
            assert!(error.message.contains(part), "{error:?}");
        }
        assert!(case(9, "").message.contains("version 9"));
        assert_eq!(
            header(Path::new("x"), &mut &b"\x93NUMPY\x02\x00\xff\xff\xff\xff"[..])
                .unwrap_err()
                .code,
            "LMB0510"
        );
        assert!(
            header(Path::new("x"), &mut &b"PK\x03\x04aaaa"[..])
                .unwrap_err()
                .help
                .unwrap()
                .contains("npz")
        );
    }
}
