//! A `capture` stage: a teacher over datasets, batch by batch, its outputs into a cache.
//!
//! Rows of like length share a batch; which rows do changes no output of a row. A stop keeps what was computed.

use super::RunError;
use super::arith::to_f64;
use super::error::{RunResult, bug, contract, io_error};
use super::io::Io;
use super::live::{Keys, TEACHER};
use super::offline::activated;
use super::random::Purpose;
use super::rows::contiguous;
use super::rundir::{StageRecord, Status, stage_dir, stage_hash};
use super::safetensors::Named;
use super::session::{Session, StageEnd};
use super::stage::CANCELLED;
use super::topk::top_k;
use super::training::student_of;
use crate::cache::{
    Manifest, Opened, OutputRecord, Part, Ranges, SourceRecord, TOP_K, TeacherRecord, TopKRecord,
    Writer, teacher_files,
};
use crate::data::{Batch, Dataset};
use crate::diagnostic::Diagnostic;
use crate::load::instance::{ForwardFlags, Port};
use crate::load::wiring::{LoadedCapture, Source};
use crate::plan::{CapturePlan, FromStage, StagePlan, TeacherPlan};
use crate::run::event::Event;
use crate::run::vfs::RealFs;
use crate::tensor::{DType, Tensor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of one source.
struct Rows {
    datasets: Vec<Arc<Dataset>>,
    record: SourceRecord,
}

/// Rows of one batch: positions in a dataset.
type Places = (Arc<Dataset>, Vec<usize>);

/// Where a `capture` stage writes.
pub(crate) fn cache_dir(run: &Path, stage: &StagePlan, capture: &CapturePlan) -> PathBuf {
    capture.to.clone().unwrap_or_else(|| stage_dir(run, stage).join("out"))
}

impl Session<'_, '_> {
    /// A `capture` stage.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn capture_stage(
        &mut self,
        stage: &StagePlan,
        capture: &CapturePlan,
    ) -> RunResult<StageEnd> {
        let dir = cache_dir(self.dir, stage, capture);
        let from = match &capture.teacher {
            TeacherPlan::Stage { from, .. } => Some(from),
            _ => None,
        };
        let rows = self.rows_of(capture)?;
        let manifest = self.manifest(stage, capture, from, &rows)?;
        let total: u64 = rows.iter().map(|r| r.record.rows.len()).sum();
        let opened = Writer::open(&RealFs, &dir, manifest).map_err(|e| taken(&dir, &e))?;
        if let Opened::Writer(writer) = opened
            && let Some((step, reason)) = self.fill(stage, capture, from, &rows, *writer, &dir)?
        {
            return Ok(StageEnd::Stopped { step, reason });
        }
        Ok(StageEnd::Done(StageRecord {
            status: Status::Done,
            resolved: stage_hash(stage),
            steps: 0,
            metrics_offset: self.io.sync()?,
            metrics: vec![("rows".into(), Some(total as f64))],
            exported: Some(dir),
        }))
    }

    /// Rows by source, each once.
    fn rows_of(&self, capture: &CapturePlan) -> RunResult<Vec<Rows>> {
        let mut all: Vec<Rows> = Vec::new();
        for id in &capture.data {
            let data = super::stage::dataset(self.datasets, id)?;
            let places = data.places().iter().copied();
            match all.iter_mut().find(|r| r.record.source == data.source()) {
                Some(same) => {
                    let record = &mut same.record;
                    record.rows = Ranges::new(record.rows.iter().chain(places));
                    record.datasets.push(id.clone());
                    same.datasets.push(data);
                }
                None => {
                    let record = SourceRecord {
                        datasets: vec![id.clone()],
                        source: data.source().to_owned(),
                        files: data.hashes().into_iter().map(|(_, hash)| hash).collect(),
                        rows: Ranges::new(places),
                    };
                    all.push(Rows { datasets: vec![data], record });
                }
            }
        }
        Ok(all)
    }

    /// What the cache is going to be.
    fn manifest(
        &self,
        stage: &StagePlan,
        capture: &CapturePlan,
        from: Option<&FromStage>,
        rows: &[Rows],
    ) -> RunResult<Manifest> {
        let loaded = loaded(&self.loaded.captures, stage)?;
        let Some(plugin) = capture.plugin() else { return Err(bug("a capture without teacher")) };
        let base = plugin.base(self.plan);
        let filled = self.catalogue.check_settings_in(&plugin.id, &plugin.with, Some(base));
        let mut settings = filled.unwrap_or_else(|_| plugin.with.clone());
        let files = teacher_files(&mut settings)
            .map_err(|e| io_error("read", Path::new(&plugin.id), &e))?;
        let parameters = match from {
            Some(from) => {
                let files = student_of(self.plan, self.dir, from)?;
                let model = files.get("model.safetensors").map_or(&[][..], Vec::as_slice);
                Some(super::checkpoint::sha256(model))
            }
            None => None,
        };
        let teacher = TeacherRecord {
            plugin: plugin.id.clone(),
            version: loaded.teacher.version().to_owned(),
            settings,
            files,
            parameters,
        };
        let outputs = loaded.outputs.iter().map(output_record).collect();
        let logits = loaded.teacher.outputs().find(|p| p.name == "logits");
        let width = logits.and_then(|p| p.shape.rsplit(',').next()?.trim().parse().ok());
        let topk = loaded.topk.map(|t| TopKRecord {
            k: t.k,
            temperature: t.temperature,
            width: width.unwrap_or(0),
        });
        let sources = rows.iter().map(|r| r.record.clone()).collect();
        Ok(Manifest::new(teacher, outputs, loaded.tokens.clone(), topk, sources))
    }

    /// Captures what is missing. Gives batches done and the reason if it was asked to stop.
    fn fill(
        &mut self,
        stage: &StagePlan,
        capture: &CapturePlan,
        from: Option<&FromStage>,
        rows: &[Rows],
        mut writer: Writer<'_>,
        dir: &Path,
    ) -> RunResult<Option<(u64, String)>> {
        let files = from.map(|from| student_of(self.plan, self.dir, from)).transpose()?;
        let keys = Keys { seed: self.plan.seed, stage: stage.index as u64 };
        let size = capture.batch_size.max(1);
        let batches: Vec<(usize, Vec<Places>)> = rows
            .iter()
            .enumerate()
            .map(|(s, rows)| (s, in_batches(rows, &writer.missing(s), size)))
            .collect();
        let total: u64 = batches.iter().map(|(_, b)| b.len() as u64).sum();
        let Some(Some(loaded)) = self.loaded.captures.get_mut(stage.index) else {
            return Err(bug(format!("stage `{}` was not loaded", stage.name)));
        };
        let LoadedCapture { teacher, inputs, outputs, wanted, tokens, topk, .. } = loaded;
        let io = &mut self.io;
        let written = |e: &std::io::Error| io_error("write", dir, e);
        let stopped = activated(teacher, files.as_ref(), keys, TEACHER, |teacher| {
            let mut done = 0;
            for (source, batches) in &batches {
                for (dataset, places) in batches {
                    if let Some(reason) = io.stop_wanted() {
                        return stopped(io, &mut writer, dir, (done, reason));
                    }
                    let batch = dataset.gather(places);
                    let given = columns(inputs, teacher.inputs(), &batch)?;
                    let ctx = keys.ctx(Purpose::Forward, TEACHER, done, 0);
                    let out = match teacher.forward(ctx, ForwardFlags::default(), &given, wanted) {
                        Ok(out) => out,
                        Err(error) => {
                            let error = super::error::plugin_error(&error);
                            // A call that obeyed the request to stop.
                            let asked = io.control.stop_requested();
                            let Some(reason) = asked.filter(|_| error.diagnostic.code == CANCELLED)
                            else {
                                return Err(error);
                            };
                            return stopped(io, &mut writer, dir, (done, reason));
                        }
                    };
                    let mut named: BTreeMap<String, Tensor> =
                        wanted.iter().cloned().zip(out.outputs).collect();
                    if let (Some(topk), Some(logits)) = (topk.as_ref(), named.get("logits")) {
                        let parts = top_k(logits, *topk).map_err(|e| contract(teacher.id(), e))?;
                        named.extend(TOP_K.map(str::to_owned).into_iter().zip(parts));
                    }
                    let part = part(dataset, places, tokens.as_deref(), outputs, &named)
                        .map_err(|e| contract(teacher.id(), e))?;
                    writer.add(*source, part).map_err(|e| written(&e))?;
                    done += 1;
                    io.steps_done += 1;
                    let rows = places.len();
                    io.sink.event(&Event::Step { step: done, total, values: Vec::new(), rows });
                }
            }
            Ok(None)
        })?;
        if stopped.is_none() {
            writer.finish().map_err(|e| written(&e))?;
        }
        Ok(stopped)
    }
}

/// Keeps what was computed.
fn stopped(
    io: &mut Io<'_>,
    writer: &mut Writer<'_>,
    dir: &Path,
    at: (u64, String),
) -> RunResult<Option<(u64, String)>> {
    io.sink.event(&Event::Stopping { reason: at.1.clone() });
    writer.flush().map_err(|e| io_error("write", dir, &e))?;
    Ok(Some(at))
}

fn loaded<'l>(
    captures: &'l [Option<LoadedCapture>],
    stage: &StagePlan,
) -> RunResult<&'l LoadedCapture> {
    let found = captures.get(stage.index).and_then(Option::as_ref);
    found.ok_or_else(|| bug(format!("stage `{}` was not loaded", stage.name)))
}

/// A directory that cannot hold the cache.
fn taken(dir: &Path, error: &std::io::Error) -> RunError {
    if error.kind() != std::io::ErrorKind::AlreadyExists {
        return io_error("write", dir, error);
    }
    let message = format!("cannot capture into {}: {error}", dir.display());
    let problem = Diagnostic::error("LMB0741", message)
        .help("name a directory that is new, empty or an earlier cache");
    RunError::new(problem)
}

/// The second axis counts tokens if its size is not known.
fn output_record(port: &Port) -> OutputRecord {
    let second = port.shape.split(',').nth(1).map(str::trim);
    let by_token = second.is_some_and(|axis| axis.parse::<i64>().is_err());
    OutputRecord { name: port.name.clone(), shape: port.shape.clone(), by_token }
}

/// Batches of rows of like length; each of one dataset.
fn in_batches(rows: &Rows, missing: &Ranges, size: usize) -> Vec<Places> {
    let mut seen = std::collections::BTreeSet::new();
    let mut batches = Vec::new();
    for dataset in &rows.datasets {
        let places = dataset.places().iter().enumerate();
        let mut own: Vec<usize> = places
            .filter(|(_, place)| missing.contains(**place) && seen.insert(**place))
            .map(|(position, _)| position)
            .collect();
        own.sort_by_key(|position| dataset.length(*position));
        batches.extend(own.chunks(size).map(|chunk| (Arc::clone(dataset), chunk.to_vec())));
    }
    batches
}

fn columns<'p>(
    sources: &[Option<Source>],
    ports: impl Iterator<Item = &'p Port>,
    batch: &Batch,
) -> RunResult<Vec<Option<Tensor>>> {
    let mut given = Vec::new();
    for (source, port) in sources.iter().zip(ports) {
        let tensor = match source {
            Some(Source::Batch(column)) => batch.columns.get(column).cloned(),
            _ => None,
        };
        if tensor.is_none() && !port.is_optional() {
            return Err(bug(format!("nothing for the teacher's port `{}`", port.name)));
        }
        given.push(tensor);
    }
    Ok(given)
}

/// Outputs of one batch as they are kept: f32, without the padding of tokens.
fn part(
    dataset: &Dataset,
    positions: &[usize],
    tokens: Option<&str>,
    outputs: &[Port],
    named: &BTreeMap<String, Tensor>,
) -> Result<Part, String> {
    let place = |p: &usize| dataset.places().get(*p).map_or(-1, |place| *place as i64);
    let rows: Vec<i64> = positions.iter().map(place).collect();
    let lengths: Option<Vec<i64>> = tokens.and_then(|column| {
        let length = |p: &usize| dataset.length_in(column, *p).map(|n| n as i64);
        positions.iter().map(length).collect()
    });
    let mut kept = Named::new();
    for port in outputs {
        let tensor = named.get(&port.name).ok_or_else(|| format!("no output `{}`", port.name))?;
        if tensor.rows() != positions.len() {
            let shape = tensor.shape();
            return Err(format!(
                "output `{}` has shape {shape:?} for {} rows",
                port.name,
                rows.len()
            ));
        }
        let tensor = as_kept(tensor)?;
        let tensor = match (output_record(port).by_token, &lengths) {
            (false, _) => tensor,
            (true, Some(lengths)) => unpadded(&tensor, lengths)?,
            (true, None) => return Err(format!("output `{}` of no tokens", port.name)),
        };
        kept.insert(port.name.clone(), tensor);
    }
    let lengths = lengths.filter(|_| outputs.iter().any(|p| output_record(p).by_token));
    Ok(Part { rows, lengths, outputs: kept })
}

/// Contiguous, floats as f32.
fn as_kept(tensor: &Tensor) -> Result<Tensor, String> {
    let tensor = contiguous(tensor).to(limbeck_abi::DLDevice::CPU).map_err(|e| e.message)?;
    if matches!(tensor.dtype(), DType::F32 | DType::I32) {
        return Ok(tensor);
    }
    let values = to_f64(&tensor).ok_or_else(|| format!("{tensor:?} cannot be read"))?;
    let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
    Ok(Tensor::from_slice(&values, tensor.shape()))
}

/// The first `lengths[row]` entries of each row, end to end.
fn unpadded(tensor: &Tensor, lengths: &[i64]) -> Result<Tensor, String> {
    let width = tensor.shape().get(1).copied().unwrap_or(0);
    let mut parts = Vec::with_capacity(lengths.len());
    for (row, length) in lengths.iter().enumerate() {
        if *length > width {
            return Err(format!("{width} positions for a text of {length} tokens"));
        }
        let one = tensor.slice_rows(row, row + 1);
        let shape = one.shape().get(1..).unwrap_or_default().to_vec();
        let flat = one.reshape(&shape).ok_or("an output with gaps")?;
        parts.push(flat.slice_rows(0, *length as usize));
    }
    super::rows::concat(&parts.iter().collect::<Vec<_>>(), false)
}
