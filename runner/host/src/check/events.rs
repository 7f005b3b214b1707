//! A scheduler shown streams of events that are legal and drawn by seed, its requests carried out in small.
//!
//! Tensors are random, shaped as the ports say; parameters move a little after each step. The same seed shows the same
//! stream, whatever the scheduler asks for, so that two instances can be compared request by request.

use super::live::{Live, ctx};
use super::subject::told;
use super::{Miss, fail};
use crate::load::instance::{Event, Knob, Param, Request, Schedule, copy_schedule, with_event};
use crate::load::services::ErrorSlot;
use crate::run::random::Random;
use crate::run::request::Allowed;
use crate::tensor::{DType, Tensor};
use limbeck_abi as abi;

const TASKS: u64 = 3;
const STEPS: u64 = 4;
/// Rows of a step, and of a task for a probe that names none.
const ROWS: i64 = 3;
const CLASSES: i64 = 5;
/// The name that the scheduler goes by.
const NAME: &str = "checked";

/// An instance on its way through a stream.
pub(super) struct Rig<'s> {
    pub live: Live,
    schedule: Schedule,
    /// Name, shape, element type of each input; `batch.*` as one column.
    inputs: Vec<(String, String, DType)>,
    /// Name and row group of each output.
    outputs: Vec<(String, String)>,
    terms: Vec<String>,
    draw: Random,
    params: Vec<Param>,
    calls: u64,
    step: u64,
    epoch: u64,
    task: u64,
    phase: String,
    depth: u32,
    /// What the scheduler did: requests, and gradients that it wrote.
    pub log: Vec<String>,
    doing: &'s dyn Fn(&str),
}

/// The declaration of an instance.
pub(super) fn schedule_of(live: &Live) -> Result<Schedule, Miss> {
    let table = live.interface::<abi::Scheduler>(abi::SCHEDULER_ID);
    let table = table.ok_or_else(|| fail("lmb.scheduler/1", "NULL"))?;
    // SAFETY: a struct of numbers and pointers; "comes zeroed but for struct_size".
    let mut out: abi::Schedule = unsafe { std::mem::zeroed() };
    out.struct_size = abi::struct_size::<abi::Schedule>();
    let slot = ErrorSlot::default();
    // SAFETY: [main], after create.
    let status = unsafe { ((*table).plan)(live.as_ptr(), &raw mut out, slot.as_ptr()) };
    if status != abi::STATUS_OK {
        return Err(fail("plan to succeed", told(status, slot)));
    }
    // SAFETY: what a successful plan filled.
    unsafe { copy_schedule(&out) }.map_err(|why| fail("a readable schedule", why))
}

/// Bytes of a tensor as one number.
fn digest(tensor: &Tensor) -> String {
    let bytes = tensor.raw().unwrap_or_default();
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    format!("{:?} {hash:016x}", tensor.shape())
}

fn words(request: &Request) -> String {
    let columns = |all: &[(String, Tensor)]| -> String {
        all.iter().map(|(name, t)| format!(" {name} {}", digest(t))).collect()
    };
    match request {
        Request::Set(key, value) => format!("set {key} = {value:?}"),
        Request::Rows { mode, epochs, name, columns: c } => {
            format!("rows {mode} `{name}` {epochs}{}", columns(c))
        }
        Request::Probe { name, model, term, columns: c, max_rows, batch_rows } => {
            format!("probe `{name}` {model} `{term}` {max_rows} {batch_rows}{}", columns(c))
        }
        Request::Snapshot(name, decay) => format!("snapshot `{name}` {decay}"),
        Request::Restore(name) => format!("restore `{name}`"),
        Request::Provide(port, tensor) => format!("provide {port} {}", digest(tensor)),
    }
}

impl<'s> Rig<'s> {
    /// An active instance at the beginning of the stream of `seed`.
    pub fn new(live: Live, seed: u64, doing: &'s dyn Fn(&str)) -> Result<Self, Miss> {
        let schedule = schedule_of(&live)?;
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for port in live.ports()? {
            let name = super::subject::text(port.name, "port.name")?;
            if port.flags & abi::PORT_OUTPUT != 0 {
                outputs.push((name, super::subject::text(port.rows, "port.rows")?));
                continue;
            }
            // SAFETY: plugin memory of `num_dtypes` entries, unchanged until destroy.
            let dtypes = (0..port.num_dtypes as usize).map(|i| unsafe { *port.dtypes.add(i) });
            let known: Vec<DType> = dtypes.filter_map(DType::from_dl).collect();
            let dtype = known.first().copied().unwrap_or(DType::F32);
            let shape = super::subject::text(port.shape, "port.shape")?;
            match name.as_str() {
                "batch.*" => inputs.push(("pixel_values".into(), "B,4".into(), DType::F32)),
                _ => inputs.push((name, shape, dtype)),
            }
        }
        let mut draw = Random::new([seed, 17]);
        let weights = |draw: &mut Random, name: &str, shape: &[i64]| {
            let count = shape.iter().product::<i64>();
            let values: Vec<f32> = (0..count).map(|_| draw.normal() as f32).collect();
            let value = Tensor::from_slice(&values, shape);
            Param { name: name.into(), value, tied_to: None, trainable: true, no_decay: false }
        };
        let params = vec![
            weights(&mut draw, "layer.weight", &[4, 3]),
            weights(&mut draw, "layer.bias", &[4]),
        ];
        let own = schedule.terms.iter().map(|t| format!("{NAME}.{}", t.name));
        let terms = own.chain(["ce".to_owned()]).collect();
        let (task, phase, log) = (0, String::new(), Vec::new());
        let (calls, step, epoch, depth) = (0, 0, 0, 0);
        Ok(Self {
            live,
            schedule,
            inputs,
            outputs,
            terms,
            draw,
            params,
            calls,
            step,
            epoch,
            task,
            phase,
            depth,
            log,
            doing,
        })
    }

    /// Whether it listens to anything.
    pub fn is_idle(&self) -> bool {
        self.schedule.events == 0
    }

    /// Another instance goes on from here.
    pub fn replace(&mut self, live: Live) {
        self.live = live;
    }

    /// A random tensor for an input of `rows` rows.
    fn tensor(&mut self, name: &str, shape: &str, dtype: DType, rows: i64) -> Tensor {
        let size = |axis: &str| match axis.trim() {
            "B" | "N" => rows,
            "V" => CLASSES,
            "H" => 4,
            axis => axis.parse().unwrap_or(3),
        };
        let shape: Vec<i64> = match shape {
            "*" | "" => vec![rows],
            axes => axes.split(',').map(size).collect(),
        };
        let count = shape.iter().product::<i64>().max(0) as usize;
        let draw = &mut self.draw;
        match (name, dtype) {
            ("row_ids", _) => {
                let first = draw.below(1000) as i64 * ROWS;
                Tensor::from_slice(&(first..first + count as i64).collect::<Vec<_>>(), &shape)
            }
            (_, DType::I64) => {
                let values: Vec<i64> =
                    (0..count).map(|_| draw.below(CLASSES as u64) as i64).collect();
                Tensor::from_slice(&values, &shape)
            }
            (_, DType::U8) => {
                let values: Vec<u8> = (0..count).map(|_| draw.below(2) as u8).collect();
                Tensor::from_slice(&values, &shape)
            }
            (_, DType::F32) => {
                let values: Vec<f32> = (0..count).map(|_| draw.normal() as f32).collect();
                Tensor::from_slice(&values, &shape)
            }
            _ => Tensor::zeros(dtype, &shape),
        }
    }

    /// All inputs for some rows, with these in the place of drawn ones.
    fn shown(&mut self, rows: i64, given: &[(String, Tensor)]) -> Vec<(String, Option<Tensor>)> {
        let mut all = Vec::new();
        for (name, shape, dtype) in self.inputs.clone() {
            let drawn = self.tensor(&name, &shape, dtype, rows);
            let own = given.iter().find(|(n, _)| *n == name).map(|(_, t)| t.clone());
            all.push((name, Some(own.unwrap_or(drawn))));
        }
        all
    }

    fn gradients(&mut self) -> Vec<Tensor> {
        let shapes: Vec<Vec<i64>> = self.params.iter().map(|p| p.value.shape().to_vec()).collect();
        shapes.iter().map(|s| self.tensor("gradient", &join(s), DType::F32, 0)).collect()
    }

    /// Shows one event if it is listened to; gives what was asked for, after a check that it may be.
    fn show(
        &mut self,
        kind: u64,
        group: &str,
        tensors: &[(String, Option<Tensor>)],
        grads: &[(String, Vec<Tensor>)],
    ) -> Result<Vec<Request>, Miss> {
        self.calls += 1;
        if self.schedule.events & kind == 0 {
            return Ok(Vec::new());
        }
        (self.doing)(&format!("on_event {kind:#x}"));
        let Some(table) = self.live.interface::<abi::Scheduler>(abi::SCHEDULER_ID) else {
            return Err(fail("lmb.scheduler/1", "NULL"));
        };
        let allowed = Allowed {
            kind,
            schedule: &self.schedule,
            scheduler: NAME,
            ports: &self.outputs,
            terms: &self.terms,
        };
        let border = kind & (abi::EVENT_TASK_BEGIN | abi::EVENT_TASK_END) != 0;
        let inside = kind
            & (abi::EVENT_TASK_BEGIN
                | abi::EVENT_BACKWARD
                | abi::EVENT_PENALTY
                | abi::EVENT_PROJECT
                | abi::EVENT_STEP_END
                | abi::EVENT_TASK_END
                | abi::EVENT_PROBE
                | abi::EVENT_PROBE_END)
            != 0;
        let task = format!("task-{}", self.task);
        let event = Event {
            kind,
            task: &task,
            task_index: self.task,
            num_tasks: TASKS,
            epoch: self.epoch,
            phase: &self.phase,
            group,
            tensors,
            params: if inside { &self.params } else { &[] },
            params_writable: border && self.schedule.claims & abi::CLAIM_STUDENT != 0,
            grads,
            metrics: &[],
        };
        let mut context = ctx([self.calls, 23]);
        context.step = self.step;
        let slot = ErrorSlot::default();
        let check = |request: &Request| allowed.check(request);
        let (status, filed) = with_event(&context, &event, &check, |raw, requests| {
            // SAFETY: [step], active; the event and the requests live during the call.
            unsafe { ((*table).on_event)(self.live.as_ptr(), raw, requests, slot.as_ptr()) }
        });
        if status != abi::STATUS_OK {
            let what =
                format!("on_event {kind:#x} in task {} step {} to succeed", self.task, self.step);
            return Err(fail(what, told(status, slot)));
        }
        self.log.extend(filed.iter().map(words));
        if kind & (abi::EVENT_PENALTY | abi::EVENT_PROJECT) != 0 {
            self.log.extend(grads.iter().take(1).flat_map(|(_, g)| g.iter().map(digest)));
        }
        Ok(filed)
    }

    /// Shows an event and carries out what can be: probes.
    fn event(
        &mut self,
        kind: u64,
        tensors: &[(String, Option<Tensor>)],
    ) -> Result<Vec<Request>, Miss> {
        let filed = self.show(kind, "", tensors, &[])?;
        for request in &filed {
            if let Request::Probe { name, term, columns, max_rows, batch_rows, .. } = request {
                self.probe(name, !term.is_empty(), columns, *max_rows, *batch_rows)?;
            }
        }
        Ok(filed)
    }

    fn probe(
        &mut self,
        name: &str,
        with_term: bool,
        columns: &[(String, Tensor)],
        max_rows: u64,
        batch_rows: u64,
    ) -> Result<(), Miss> {
        self.depth += 1;
        if self.depth > 64 {
            return Err(fail("probes that end", "probes asked for by probes, 64 deep"));
        }
        let phase = std::mem::replace(&mut self.phase, name.to_owned());
        let mut rows = columns.first().map_or(2 * ROWS, |(_, t)| t.rows() as i64);
        if max_rows > 0 {
            rows = rows.min(max_rows as i64);
        }
        let size = if batch_rows == 0 { ROWS } else { batch_rows as i64 };
        let mut from = 0;
        while from < rows {
            let to = (from + size).min(rows);
            let given: Vec<(String, Tensor)> = columns
                .iter()
                .map(|(name, t)| (name.clone(), t.slice_rows(from as usize, to as usize)))
                .collect();
            let tensors = self.shown(to - from, &given);
            let grads = self.gradients();
            let grads = if with_term { vec![(String::new(), grads)] } else { Vec::new() };
            self.show(abi::EVENT_PROBE, "", &tensors, &grads)?;
            from = to;
        }
        self.event(abi::EVENT_PROBE_END, &[])?;
        self.phase = phase;
        self.depth -= 1;
        Ok(())
    }

    /// One step; whether the scheduler ended the task.
    fn one_step(&mut self) -> Result<bool, Miss> {
        let fresh = self.shown(ROWS, &[]);
        let asked = self.event(abi::EVENT_STEP_BEGIN, &fresh)?;
        let knob = |wanted: &str| {
            asked
                .iter()
                .any(|r| matches!(r, Request::Set(k, v) if k == wanted && *v != Knob::Bool(false)))
        };
        let (skip, ended) = (knob("step.skip"), knob("task.end"));
        self.step += 1;
        if skip {
            return Ok(ended);
        }
        self.show(abi::EVENT_FORWARD, "", &fresh, &[])?;
        let mut sets = vec![(String::new(), self.gradients())];
        for request in &asked {
            let Request::Rows { mode: abi::ROWS_STEP, name, columns, .. } = request else {
                continue;
            };
            let rows = columns.first().map_or(0, |(_, t)| t.rows() as i64);
            let joined = self.shown(rows, columns);
            self.show(abi::EVENT_FORWARD, name, &joined, &[])?;
            let flags =
                self.schedule.groups.iter().find(|g| g.name == *name).map_or(0, |g| g.flags);
            if flags & abi::GROUP_OWN_GRAD != 0 {
                sets.push((name.clone(), self.gradients()));
            }
        }
        for kind in [abi::EVENT_BACKWARD, abi::EVENT_PENALTY, abi::EVENT_PROJECT] {
            self.show(kind, "", &[], &sets)?;
        }
        let moved = self.gradients();
        for (param, step) in self.params.iter_mut().zip(&moved) {
            let old = param.value.data::<f32>().unwrap_or_default();
            let by = step.data::<f32>().unwrap_or_default();
            let new: Vec<f32> = old.iter().zip(by).map(|(p, g)| p - 0.01 * g).collect();
            param.value = Tensor::from_slice(&new, param.value.shape());
        }
        self.event(abi::EVENT_STEP_END, &[])?;
        Ok(ended)
    }

    fn evaluation(&mut self) -> Result<(), Miss> {
        self.event(abi::EVENT_EVAL_BEGIN, &[])?;
        for _ in 0..2 {
            let batch = self.shown(ROWS, &[]);
            self.show(abi::EVENT_EVAL_BATCH, "", &batch, &[])?;
        }
        self.event(abi::EVENT_EVAL_END, &[]).map(|_| ())
    }

    /// A stream of three tasks. `border` is called with a counter wherever a checkpoint may be written.
    pub fn stream(
        &mut self,
        border: &mut dyn FnMut(&mut Self, u64) -> Result<(), Miss>,
    ) -> Result<(), Miss> {
        let mut place = 0;
        let mut at_border = |rig: &mut Self| {
            place += 1;
            border(rig, place)
        };
        self.evaluation()?;
        for task in 0..TASKS {
            at_border(self)?;
            (self.task, self.epoch) = (task, 0);
            let classes = [(2 * task as i64) % CLASSES, (2 * task as i64 + 1) % CLASSES];
            let classes = Tensor::from_slice(&classes, &[2]);
            self.event(abi::EVENT_TASK_BEGIN, &[("task.classes".into(), Some(classes))])?;
            for step in 0..STEPS {
                at_border(self)?;
                self.epoch = step / 2;
                if self.one_step()? {
                    break;
                }
                if step == 1 {
                    self.evaluation()?;
                }
            }
            at_border(self)?;
            self.event(abi::EVENT_TASK_END, &[])?;
            self.evaluation()?;
        }
        Ok(())
    }
}

fn join(shape: &[i64]) -> String {
    shape.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}
