//! The active models of a stage and the tensors that the host owns for them.
//!
//! Everything here lives from the beginning of a stage (or of its continuation) to its end and is used on one thread.
//! Instances are deactivated in reverse order of activation, after every tensor of theirs is gone.

use super::bind::{Bindings, OwnedParam, bind};
use super::error::{RunResult, contract, plugin_error};
use super::evaluate::Judge;
use super::gradient::{Cotangent, GradSet, wants_gradient};
use super::optimizer::Optimizer;
use super::pass::Provided;
use super::random::{Purpose, Random, key};
use super::request::Asked;
use super::rows::RowSet;
use super::schedule::{Knobs, Now};
use crate::data::Datasets;
use crate::load::instance::{CallCtx, LossParam, Param};
use crate::load::wiring::{LoadedStage, LoadedTeacher};
use crate::plan::{TeacherPlan, TrainPlan};
use crate::tensor::{DType, Tensor, TensorSpec};
use std::path::Path;

/// Slots in random keys.
pub(crate) const STUDENT: u64 = 0;
pub(crate) const TEACHER: u64 = 1;
pub(crate) const TERM: u64 = 1 << 8;
pub(crate) const SCHEDULER: u64 = 1 << 16;
pub(crate) const SNAPSHOT: u64 = 1 << 24;

/// Makes random keys: functions of seed, stage, slot and place, never of what ran before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub seed: u64,
    pub stage: u64,
}

impl Keys {
    /// Context of a call.
    pub fn ctx(self, purpose: Purpose, slot: u64, step: u64, micro: u64) -> CallCtx {
        let rng_key = key(purpose, &[self.seed, self.stage, slot, step, micro]);
        CallCtx { step, micro_step: micro, rng_key }
    }
}

/// How the teacher's outputs come about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum TeacherKind {
    None,
    /// Models and caches that stay as they are.
    Frozen,
    /// A copy that follows the student.
    Ema(f64),
    /// The student itself, detached.
    Own,
}

/// A frozen student of a scheduler.
pub(crate) struct SnapshotState {
    pub taken: bool,
    pub params: Vec<Param>,
}

/// See the module.
pub(crate) struct Live<'a> {
    pub loaded: &'a mut LoadedStage,
    pub train: &'a TrainPlan,
    pub keys: Keys,
    pub bound: Bindings,
    pub params: Vec<Param>,
    /// The same as they are trained, f32 masters in the place of 16-bit values: what all but the student's own passes
    /// reads and writes.
    pub exact: Vec<Param>,
    pub teacher: TeacherKind,
    /// Each teacher's, where it is a copy of a student.
    pub teacher_params: Vec<Vec<Param>>,
    pub snapshots: Vec<SnapshotState>,
    /// The student as built, if a scheduler may ask for it.
    pub initial: Option<Vec<Tensor>>,
    pub grads: GradSet,
    /// Gradients of groups that keep theirs apart: (scheduler, group).
    pub own_grads: Vec<((usize, String), GradSet)>,
    pub cotangents: Vec<Cotangent>,
    pub optimizer: Optimizer,
    pub knobs: Knobs,
    pub provided: Provided,
    pub now: Now,
    /// What schedulers asked for and the stage's loop has to do.
    pub asked: Asked,
    /// Rows of the current task, those mixed in by schedulers included.
    pub task_rows: Option<RowSet>,
    pub datasets: &'a Datasets,
    /// Probes inside probes.
    pub depth: u32,
    /// How evaluations of the stream judge.
    pub judge: Judge,
}

impl<'a> Live<'a> {
    /// Activates everything of a stage; initial weights follow from the keys alone.
    ///
    /// # Errors
    /// What a plugin says.
    pub fn activate(
        loaded: &'a mut LoadedStage,
        train: &'a TrainPlan,
        datasets: &'a Datasets,
        keys: Keys,
        work: &Path,
    ) -> RunResult<Self> {
        let teacher = match &train.teacher {
            None => TeacherKind::None,
            Some(TeacherPlan::Ema { decay }) => TeacherKind::Ema(*decay),
            Some(TeacherPlan::SelfOutputs) => TeacherKind::Own,
            Some(_) => TeacherKind::Frozen,
        };
        let result = Self::activate_instances(loaded, keys, work);
        if let Err(error) = result {
            deactivate(loaded);
            return Err(error);
        }
        let params = loaded.student.params().map_err(|e| plugin_error(&e))?;
        let names: Vec<String> = params.iter().map(|p| p.name.clone()).collect();
        let bound = bind(loaded, &names, teacher == TeacherKind::Own)?;
        let mut live = Self {
            knobs: Knobs::default(),
            optimizer: Optimizer::new(&train.optimizer),
            cotangents: bound.student_outputs.iter().map(|_| Cotangent::default()).collect(),
            loaded,
            train,
            keys,
            bound,
            params,
            exact: Vec::new(),
            teacher,
            teacher_params: Vec::new(),
            snapshots: Vec::new(),
            initial: None,
            grads: GradSet::default(),
            own_grads: Vec::new(),
            provided: Provided::new(),
            now: Now::default(),
            asked: Asked::default(),
            task_rows: None,
            datasets,
            depth: 0,
            judge: Judge::default(),
        };
        live.owned_tensors()?;
        Ok(live)
    }

    fn activate_instances(loaded: &mut LoadedStage, keys: Keys, work: &Path) -> RunResult<()> {
        let dir = |slot: &str| {
            let dir = work.join(slot);
            std::fs::create_dir_all(&dir)
                .map(|()| dir.clone())
                .map_err(|e| super::error::io_error("create", &dir, &e))
        };
        let ctx = |slot| keys.ctx(Purpose::Activate, slot, 0, 0);
        let failed = |e| plugin_error(&e);
        loaded.student.activate(ctx(STUDENT), &dir("student")?).map_err(failed)?;
        for (i, teacher) in loaded.teachers.iter_mut().enumerate() {
            if let Some(teacher) = teacher.instance_mut() {
                let dir = dir(&format!("teacher-{i}"))?;
                teacher.activate(ctx(TEACHER + i as u64), &dir).map_err(failed)?;
            }
        }
        for (i, snapshot) in loaded.snapshots.iter_mut().enumerate() {
            let dir = dir(&format!("snapshot-{i}"))?;
            snapshot.instance.activate(ctx(SNAPSHOT + i as u64), &dir).map_err(failed)?;
        }
        for (i, term) in loaded.terms.iter_mut().enumerate() {
            let dir = dir(&format!("loss-{i}"))?;
            term.instance.activate(ctx(TERM + i as u64), &dir).map_err(failed)?;
        }
        for (i, scheduler) in loaded.schedulers.iter_mut().enumerate() {
            let dir = dir(&format!("scheduler-{i}"))?;
            scheduler.instance.activate(ctx(SCHEDULER + i as u64), &dir).map_err(failed)?;
        }
        Ok(())
    }

    /// Loss parameters, gradient buffers, optimizer, parameters of copies.
    fn owned_tensors(&mut self) -> RunResult<()> {
        for i in 0..self.bound.terms.len() {
            self.loss_parameters(i)?;
        }
        let device = self.loaded.student.device();
        self.grads = GradSet::new(&self.params, &self.bound.terms, device)?;
        for (param, grad) in self.params.iter().zip(&self.grads.views) {
            if let (true, Some(grad)) = (wants_gradient(param), grad) {
                let (name, value) = (param.name.clone(), param.value.clone());
                self.optimizer.add(name, value, grad.clone(), !param.no_decay)?;
            }
        }
        self.exact = self.optimizer.exact(&self.params);
        for (term, grads) in self.bound.terms.iter().zip(&self.grads.loss) {
            for (param, grad) in term.params.iter().zip(grads) {
                if param.trainable {
                    let (name, value) = (param.name.clone(), param.value.clone());
                    self.optimizer.add(name, value, grad.buffer.clone(), param.decay)?;
                }
            }
        }
        for scheduler in 0..self.loaded.schedulers.len() {
            for group in &self.loaded.schedulers[scheduler].schedule.groups {
                if group.flags & limbeck_abi::GROUP_OWN_GRAD != 0 {
                    let set = GradSet::new(&self.params, &self.bound.terms, device)?;
                    self.own_grads.push(((scheduler, group.name.clone()), set));
                }
            }
        }
        for teacher in &mut self.loaded.teachers {
            let copy = teacher.instance_mut().filter(|t| t.offers(limbeck_abi::STUDENT_ID));
            let params = copy.map_or(Ok(Vec::new()), |t| t.params());
            self.teacher_params.push(params.map_err(|e| plugin_error(&e))?);
        }
        for snapshot in &mut self.loaded.snapshots {
            let params = snapshot.instance.params().map_err(|e| plugin_error(&e))?;
            self.snapshots.push(SnapshotState { taken: false, params });
        }
        Ok(())
    }

    fn loss_parameters(&mut self, term: usize) -> RunResult<()> {
        let specs: Vec<Option<TensorSpec>> =
            self.bound.terms[term].inputs.iter().map(|i| self.spec(i)).collect();
        let instance = &mut self.loaded.terms[term].instance;
        let wanted = instance.loss_params(&specs).map_err(|e| plugin_error(&e))?;
        let (planned, name) = (self.bound.terms[term].planned, &self.bound.terms[term].name);
        // Entries of one term over several layers have one name; their position tells them apart.
        let nth = self.bound.terms[..term]
            .iter()
            .filter(|t| t.planned == planned && t.name == *name)
            .count();
        let prefix = if nth == 0 { name.clone() } else { format!("{name}.{nth}") };
        let mut owned = Vec::new();
        for param in &wanted {
            let full = format!("loss/{prefix}/{}", param.name);
            let parts = [self.keys.seed, self.keys.stage, term as u64, owned.len() as u64];
            let value = initial_value(param, key(Purpose::LossParam, &parts))
                .map_err(|reason| contract(instance.id(), format!("`{full}`: {reason}")))?
                .to(instance.device())?;
            owned.push(OwnedParam {
                name: full,
                value,
                trainable: param.trainable,
                decay: !param.no_decay,
            });
        }
        self.bound.terms[term].params = owned;
        Ok(())
    }

    /// Shape of an input as far as ports tell it; -1 is not known.
    fn spec(&self, input: &super::bind::Input) -> Option<TensorSpec> {
        use super::bind::Feed;
        let declared = |instance: &crate::load::Instance, name: &str| {
            instance.ports().iter().find(|p| p.is_output() && p.name == name).map(spec_of)
        };
        let mut spec = match input.feed.as_ref()? {
            Feed::Student(i) => declared(&self.loaded.student, self.bound.student_outputs.get(*i)?),
            Feed::Teacher(i) => {
                let port = self.loaded.teacher_output(self.bound.teacher_outputs.get(*i)?);
                port.map(spec_of)
            }
            Feed::Snapshot(s, i) => {
                let snapshot = self.loaded.snapshots.get(*s)?;
                declared(&snapshot.instance, snapshot.wanted.get(*i)?)
            }
            Feed::Param(i) => {
                let value = &self.params.get(*i)?.value;
                Some(TensorSpec { dtype: value.dtype(), shape: value.shape().to_vec() })
            }
            Feed::Batch(_) | Feed::RowClasses | Feed::Scheduler(..) => Some(TensorSpec {
                dtype: if input.name == "labels" { DType::I64 } else { DType::F32 },
                shape: vec![-1; input.axes.unwrap_or(1)],
            }),
        }?;
        if let (true, Some(axes)) = (input.flatten, input.axes) {
            while spec.shape.len() > axes.max(1) {
                spec.shape.remove(0);
                if let Some(first) = spec.shape.first_mut() {
                    *first = -1;
                }
            }
        }
        Some(spec)
    }

    /// Keeps the student as it is now, for `restore("init")`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn keep_initial(&mut self) -> RunResult<()> {
        let wanted = self
            .loaded
            .schedulers
            .iter()
            .any(|s| s.schedule.claims & limbeck_abi::CLAIM_STUDENT != 0);
        if wanted {
            let copies = self.exact.iter().map(|p| copy_of(&p.value));
            self.initial = Some(copies.collect::<RunResult<_>>()?);
        }
        Ok(())
    }

    /// Deactivates everything.
    pub fn deactivate(self) {
        let loaded = {
            let Self { loaded, .. } = self;
            loaded
        };
        deactivate(loaded);
    }
}

/// Deactivates what is active, in reverse order.
pub(crate) fn deactivate(loaded: &mut LoadedStage) {
    let losses = loaded.terms.iter_mut().map(|t| &mut t.instance);
    let schedulers = loaded.schedulers.iter_mut().map(|s| &mut s.instance);
    let snapshots = loaded.snapshots.iter_mut().map(|s| &mut s.instance);
    let teachers = loaded.teachers.iter_mut().filter_map(LoadedTeacher::instance_mut);
    let models = std::iter::once(&mut loaded.student).chain(teachers);
    let all: Vec<_> = models.chain(snapshots).chain(losses).chain(schedulers).collect();
    for instance in all.into_iter().rev() {
        if instance.is_active() {
            instance.deactivate();
        }
    }
}

/// Shape of a port as far as it is known; -1 is not.
fn spec_of(port: &crate::load::instance::Port) -> TensorSpec {
    let axes = port.shape.split(',').map(|a| a.trim().parse().unwrap_or(-1));
    let dtype = port.dtypes.first().copied().unwrap_or(DType::F32);
    TensorSpec { dtype, shape: axes.collect() }
}

/// A copy in host memory.
///
/// # Errors
/// What the driver says.
pub(crate) fn copy_of(tensor: &Tensor) -> RunResult<Tensor> {
    let from = super::rows::contiguous(tensor);
    let to = Tensor::zeros(from.dtype(), from.shape());
    to.copy_from(&from)?;
    Ok(to)
}

/// A loss parameter as its `init` asks: `zeros`, `ones`, `eye`, `normal(mean,std)`, `xavier_uniform`
/// (uniform in ±sqrt(6 / (fan_in + fan_out)), Glorot & Bengio 2010).
fn initial_value(param: &LossParam, key: [u64; 2]) -> Result<Tensor, String> {
    if param.spec.shape.iter().any(|d| *d < 0) || param.spec.dtype != DType::F32 {
        return Err(format!("a loss parameter must be f32 of known shape, not {:?}", param.spec));
    }
    let tensor = Tensor::zeros(DType::F32, &param.spec.shape);
    let shape = &param.spec.shape;
    let mut random = Random::new(key);
    // SAFETY: fresh memory, not shared yet.
    let values = unsafe { tensor.data_mut::<f32>() };
    match param.init.as_str() {
        "" | "zeros" => {}
        "ones" => values.fill(1.0),
        "eye" => {
            let columns = shape.last().map_or(1, |d| *d as usize).max(1);
            for (i, row) in values.chunks_mut(columns).enumerate() {
                if let Some(v) = row.get_mut(i) {
                    *v = 1.0;
                }
            }
        }
        "xavier_uniform" => {
            let (out, inner) = match shape.as_slice() {
                [out, rest @ ..] if !rest.is_empty() => (*out, rest.iter().product::<i64>()),
                _ => return Err("xavier_uniform needs two axes".into()),
            };
            let bound = (6.0 / (out + inner) as f64).sqrt();
            values.iter_mut().for_each(|v| *v = ((random.uniform() * 2.0 - 1.0) * bound) as f32);
        }
        other => {
            let numbers = other.strip_prefix("normal(").and_then(|s| s.strip_suffix(')'));
            let pair = numbers.and_then(|s| s.split_once(','));
            let parsed = pair.and_then(|(m, s)| {
                Some((m.trim().parse::<f64>().ok()?, s.trim().parse::<f64>().ok()?))
            });
            let (mean, deviation) = parsed.ok_or_else(|| format!("unknown init `{other}`"))?;
            values.iter_mut().for_each(|v| *v = (mean + deviation * random.normal()) as f32);
        }
    }
    Ok(tensor)
}
