//! `metrics.jsonl`: one line a step and one a evaluation, in order, the same bytes in every run.
//!
//! Holds nothing that differs between two runs of one pipeline: no clock, no host name. A line is
//! `{"stage","task","step",name: value...}`; a line of an evaluation also has `"eval"`, the name of the rows measured.
//! Values that are not finite are the strings `"nan"`, `"inf"`, `"-inf"`, never left out. After a resume the file is
//! cut to the offset of the checkpoint, so each step stands in it exactly once.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

/// The open file.
pub struct Metrics {
    file: io::BufWriter<File>,
    offset: u64,
    line: Vec<u8>,
}

/// What a line is about.
#[derive(Clone, Copy, Debug)]
pub struct LineOf<'a> {
    /// Stage name.
    pub stage: &'a str,
    /// Task name, `""` outside a stream.
    pub task: &'a str,
    /// Step of the stage.
    pub step: u64,
    /// Dataset or task that was evaluated.
    pub eval: Option<&'a str>,
}

impl Metrics {
    /// Opens the file and cuts it to `offset`.
    ///
    /// # Errors
    /// What the system says; `InvalidData` if the file is shorter than `offset`.
    pub fn open(path: &Path, offset: u64) -> io::Result<Self> {
        let mut file =
            File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        if length < offset {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{length} bytes where the checkpoint says {offset}"),
            ));
        }
        file.set_len(offset)?;
        file.seek(SeekFrom::Start(offset))?;
        Ok(Self { file: io::BufWriter::with_capacity(1 << 15, file), offset, line: Vec::new() })
    }

    /// Opens the file as it is, to be cut once the place to go on from is known.
    ///
    /// # Errors
    /// What the system says.
    pub fn open_whole(path: &Path) -> io::Result<Self> {
        let length = std::fs::metadata(path).map_or(0, |m| m.len());
        Self::open(path, length)
    }

    /// Appends a line.
    ///
    /// # Errors
    /// What the system says.
    pub fn line(&mut self, of: LineOf<'_>, values: &[(String, f64)]) -> io::Result<()> {
        self.line.clear();
        self.line.extend_from_slice(b"{\"stage\":");
        text(&mut self.line, of.stage);
        self.line.extend_from_slice(b",\"task\":");
        text(&mut self.line, of.task);
        write!(self.line, ",\"step\":{}", of.step)?;
        if let Some(eval) = of.eval {
            self.line.extend_from_slice(b",\"eval\":");
            text(&mut self.line, eval);
        }
        for (name, value) in values {
            self.line.push(b',');
            text(&mut self.line, name);
            self.line.push(b':');
            number(&mut self.line, *value)?;
        }
        self.line.extend_from_slice(b"}\n");
        self.offset += self.line.len() as u64;
        self.file.write_all(&self.line)
    }

    /// Hands everything to the system, for readers of a running run.
    ///
    /// # Errors
    /// What the system says.
    pub fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }

    /// Makes everything durable; gives the offset that a checkpoint records.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync(&mut self) -> io::Result<u64> {
        self.file.flush()?;
        self.file.get_ref().sync_data()?;
        Ok(self.offset)
    }
}

fn text(line: &mut Vec<u8>, text: &str) {
    // A string always serializes.
    if let Ok(quoted) = serde_json::to_string(text) {
        line.extend_from_slice(quoted.as_bytes());
    }
}

fn number(line: &mut Vec<u8>, value: f64) -> io::Result<()> {
    if value.is_nan() {
        line.extend_from_slice(b"\"nan\"");
        Ok(())
    } else if value.is_infinite() {
        line.extend_from_slice(if value > 0.0 { b"\"inf\"" } else { b"\"-inf\"" });
        Ok(())
    } else {
        serde_json::to_writer(line, &value).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reopened_file_is_cut_and_continues() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let of = |step, eval| LineOf { stage: "a\"b", task: "", step, eval };
        let mut metrics = Metrics::open(&path, 0).unwrap();
        metrics.line(of(1, None), &[("loss".into(), 0.1)]).unwrap();
        let offset = metrics.sync().unwrap();
        metrics.line(of(2, None), &[("loss".into(), 9.0)]).unwrap();
        drop(metrics);
        let mut metrics = Metrics::open(&path, offset).unwrap();
        metrics.line(of(2, None), &[("loss".into(), f64::NAN)]).unwrap();
        metrics.line(of(2, Some("held-out")), &[("nll".into(), f64::INFINITY)]).unwrap();
        drop(metrics);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "{\"stage\":\"a\\\"b\",\"task\":\"\",\"step\":1,\"loss\":0.1}\n\
             {\"stage\":\"a\\\"b\",\"task\":\"\",\"step\":2,\"loss\":\"nan\"}\n\
             {\"stage\":\"a\\\"b\",\"task\":\"\",\"step\":2,\"eval\":\"held-out\",\"nll\":\"inf\"}\n"
        );
        assert!(Metrics::open(&path, 10_000).is_err());
    }
}
