//! Writes scalars as a TensorBoard event file.
//!
//! A TFRecord stream of hand-written protobuf messages. The file holds nothing that `metrics.jsonl` does not: after a
//! resume it is thrown away and written again from there, so each step stands in it once.
//!
//! Format: `tensorflow/core/lib/io/record_writer.h` and `tensorflow/core/util/event.proto`.

use crate::diagnostic::Diagnostic;
use serde_json::Value as Json;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

const PREFIX: &str = "events.out.tfevents.";

/// An open event file.
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Writer {
    /// Removes event files that an earlier process left in `dir`, starts a new one and fills it with the rows of
    /// `metrics` (`metrics.jsonl`), which need not exist. A torn last line is left out.
    ///
    /// # Errors
    /// `LMB0743` if a file cannot be read or written.
    pub fn open(dir: &Path, metrics: &Path) -> Result<Self, Diagnostic> {
        fs::create_dir_all(dir).map_err(|e| failed(dir, &e))?;
        for entry in fs::read_dir(dir).map_err(|e| failed(dir, &e))? {
            let entry = entry.map_err(|e| failed(dir, &e))?;
            if entry.file_name().to_string_lossy().starts_with(PREFIX) {
                fs::remove_file(entry.path()).map_err(|e| failed(&entry.path(), &e))?;
            }
        }
        let path = dir.join(format!("{PREFIX}{:010}.limbeck", wall_time() as u64));
        let file = BufWriter::new(File::create(&path).map_err(|e| failed(&path, &e))?);
        let mut writer = Self { path, file };
        writer.record(&version_event(wall_time()))?;
        writer.replay(metrics)?;
        writer.flush()?;
        Ok(writer)
    }

    fn replay(&mut self, metrics: &Path) -> Result<(), Diagnostic> {
        let file = match File::open(metrics) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(failed(metrics, &e)),
        };
        for line in BufReader::new(file).split(b'\n') {
            let line = line.map_err(|e| failed(metrics, &e))?;
            if let Ok(row) = serde_json::from_slice(&line) {
                self.row(&row)?;
            }
        }
        Ok(())
    }

    /// Adds one row of `metrics.jsonl`: `{stage, task, eval, step, name: value}`. The tag of a value is
    /// `stage/task/eval/name` without the parts that are absent or empty. `"nan"`, `"inf"`, `"-inf"` are such numbers,
    /// null (what they become inside the program) is NaN.
    ///
    /// # Errors
    /// `LMB0743`.
    pub fn row(&mut self, row: &Json) -> Result<(), Diagnostic> {
        const WORDS: [&str; 3] = ["stage", "task", "eval"];
        let Some(object) = row.as_object() else { return Ok(()) };
        let text = |key: &str| object.get(key).and_then(Json::as_str).filter(|s| !s.is_empty());
        let prefix: Vec<&str> = WORDS.into_iter().filter_map(text).collect();
        let step = object.get("step").and_then(Json::as_i64).unwrap_or(0);
        for (name, value) in object.iter().filter(|(name, _)| *name != "step") {
            let value = match value {
                Json::Null => Some(f64::NAN),
                Json::String(word) if !WORDS.contains(&name.as_str()) => word.parse().ok(),
                other => other.as_f64(),
            };
            if let Some(value) = value {
                let tag = prefix.iter().copied().chain([name.as_str()]).collect::<Vec<_>>();
                self.scalar(&tag.join("/"), step, value)?;
            }
        }
        Ok(())
    }

    /// Adds one value. TensorBoard stores f32.
    ///
    /// # Errors
    /// `LMB0743`.
    pub fn scalar(&mut self, tag: &str, step: i64, value: f64) -> Result<(), Diagnostic> {
        self.record(&scalar_event(wall_time(), step, tag, value as f32))
    }

    /// Hands everything to the operating system.
    ///
    /// # Errors
    /// `LMB0743`.
    pub fn flush(&mut self) -> Result<(), Diagnostic> {
        self.file.flush().map_err(|e| failed(&self.path, &e))
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length, its checksum, data, its checksum.
    fn record(&mut self, data: &[u8]) -> Result<(), Diagnostic> {
        let length = (data.len() as u64).to_le_bytes();
        let parts: [&[u8]; 4] =
            [&length, &masked_crc(&length).to_le_bytes(), data, &masked_crc(data).to_le_bytes()];
        parts.iter().try_for_each(|p| self.file.write_all(p)).map_err(|e| failed(&self.path, &e))
    }
}

fn failed(path: &Path, error: &io::Error) -> Diagnostic {
    Diagnostic::error("LMB0743", format!("cannot write TensorBoard events: {error}"))
        .note(format!("file `{}`", path.display()))
        .help("`metrics.jsonl` holds the same numbers; the event file is written again on the next start")
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// `Event { wall_time = 1, file_version = 3 }`.
fn version_event(time: f64) -> Vec<u8> {
    let mut event = vec![0x09];
    event.extend(time.to_le_bytes());
    bytes_field(&mut event, 3, b"brain.Event:2");
    event
}

/// `Event { wall_time = 1, step = 2, summary = 5 { value = 1 { tag = 1, simple_value = 2 } } }`.
fn scalar_event(time: f64, step: i64, tag: &str, value: f32) -> Vec<u8> {
    let mut entry = Vec::with_capacity(tag.len() + 8);
    bytes_field(&mut entry, 1, tag.as_bytes());
    entry.push(0x15);
    entry.extend(value.to_le_bytes());
    let mut summary = Vec::new();
    bytes_field(&mut summary, 1, &entry);
    let mut event = vec![0x09];
    event.extend(time.to_le_bytes());
    event.push(0x10);
    varint(&mut event, step as u64);
    bytes_field(&mut event, 5, &summary);
    event
}

fn bytes_field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// TFRecord's mask: rotate right by 15 and add a constant, so that a checksum of checksums stays useful.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected polynomial 0x82F63B78.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc, byte| TABLE[usize::from(crc as u8 ^ byte)] ^ crc >> 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit by bit, no table: independent of the writer's.
    fn slow_crc(data: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in data {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
            }
        }
        !crc
    }

    fn take_varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }

    /// Fields of a message: (number, wire type 0/1/2/5 payload as bytes).
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let tag = take_varint(&mut bytes);
            let length = match tag & 7 {
                0 => {
                    out.push((tag >> 3, take_varint(&mut bytes).to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => take_varint(&mut bytes) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            out.push((tag >> 3, bytes[..length].to_vec()));
            bytes = &bytes[length..];
        }
        out
    }

    /// Reads an event file: (step, tag, value) of each scalar; checks both checksums and the first event.
    fn read(path: &Path) -> Vec<(u64, String, f32)> {
        let bytes = fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut scalars = Vec::new();
        let mut first = true;
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let mask = |crc: u32| crc.rotate_right(15).wrapping_add(0xa282_ead8);
            let stored = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(stored(8), mask(slow_crc(&rest[..8])));
            let data = &rest[12..12 + length];
            assert_eq!(stored(12 + length), mask(slow_crc(data)));
            let event = fields(data);
            if first {
                assert!(event.contains(&(3, b"brain.Event:2".to_vec())));
                first = false;
            } else {
                let get = |n: u64, of: &[(u64, Vec<u8>)]| {
                    of.iter().find(|f| f.0 == n).unwrap_or_else(|| panic!("no field {n}")).1.clone()
                };
                let value = fields(&get(1, &fields(&get(5, &event))));
                scalars.push((
                    u64::from_le_bytes(get(2, &event).try_into().unwrap()),
                    String::from_utf8(get(1, &value)).unwrap(),
                    f32::from_le_bytes(get(2, &value).try_into().unwrap()),
                ));
            }
            rest = &rest[16 + length..];
        }
        scalars
    }

    #[test]
    fn crc32c_gives_the_published_check_value() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(slow_crc(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn scalars_come_back_from_an_independent_reader() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(dir.path(), &dir.path().join("none.jsonl")).unwrap();
        writer.scalar("teacher/loss", 1, 0.5).unwrap();
        writer.scalar("teacher/loss", 1_000_000, -3.25e-7).unwrap();
        writer.flush().unwrap();
        assert_eq!(
            read(writer.path()),
            [(1, "teacher/loss".into(), 0.5), (1_000_000, "teacher/loss".into(), -3.25e-7)]
        );
    }

    #[test]
    fn a_resumed_run_has_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = dir.path().join("metrics.jsonl");
        fs::write(
            &metrics,
            "{\"stage\":\"t\",\"task\":\"\",\"step\":1,\"loss\":2.0,\"kl\":\"-inf\"}\n\
             {\"stage\":\"t\",\"task\":\"a\",\"step\":2,\"eval\":\"v\",\"accuracy\":0.75}\n{\"stage\":\"t\",\"st",
        )
        .unwrap();
        let tb = dir.path().join("tb");
        let mut first = Writer::open(&tb, &metrics).unwrap();
        first.scalar("t/loss", 3, 9.0).unwrap();
        drop(first);
        let second = Writer::open(&tb, &metrics).unwrap();
        assert_eq!(
            read(second.path()),
            [
                (1, "t/loss".into(), 2.0),
                (1, "t/kl".into(), f32::NEG_INFINITY),
                (2, "t/a/v/accuracy".into(), 0.75)
            ]
        );
        assert_eq!(fs::read_dir(&tb).unwrap().count(), 1);
    }

    #[test]
    fn an_unwritable_place_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = Writer::open(&file.join("tb"), &file).err().unwrap();
        assert_eq!(error.code, "LMB0743");
        assert!(error.notes[0].contains("file/tb"), "{error:?}");
    }
}
