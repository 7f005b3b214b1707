//! Events to schedulers, and their requests carried out in order after each event.
//!
//! Knows the contract, no method. Requests of a failed event are dropped; one that the event does not allow is
//! answered with LMB_INVALID_STATE before anything happens.

use super::RunError;
use super::error::{RunResult, contract, plugin_error};
use super::live::{Live, SCHEDULER, TeacherKind};
use super::random::Purpose;
use super::request::{Allowed, PendingPass};
use crate::diagnostic::Diagnostic;
use crate::load::instance::{Event, Knob, Param, Request};
use crate::load::wiring::LoadedTeacher;
use crate::tensor::Tensor;
use limbeck_abi as abi;
use std::collections::BTreeMap;

/// Where the run is, as schedulers see it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Now {
    pub task: String,
    pub task_index: u64,
    pub num_tasks: u64,
    pub epoch: u64,
    pub phase: String,
    /// Step of the stage.
    pub step: u64,
    /// Place of the stage's loop, part of every event's random key.
    pub tick: u64,
    /// Events sent since the place was entered.
    pub calls: u64,
}

/// Knobs that schedulers set: key -> (setter, value). Applied again after a resume.
#[derive(Clone, Debug)]
pub(crate) struct Knobs {
    pub set: BTreeMap<String, (usize, f64)>,
    /// Factor of the learning rate.
    pub lr: f64,
}

impl Default for Knobs {
    fn default() -> Self {
        Self { set: BTreeMap::new(), lr: 1.0 }
    }
}

/// Things asked for that the stage's loop does.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flags {
    pub skip: bool,
    pub eval: bool,
    pub checkpoint: bool,
    pub task_end: bool,
    pub stop: bool,
}

/// What an event shows.
#[derive(Default)]
pub(crate) struct Shown {
    pub kind: u64,
    pub group: String,
    pub tensors: Vec<(String, Option<Tensor>)>,
    pub params: bool,
    pub grads: Vec<(String, Vec<Tensor>)>,
    pub metrics: Vec<(String, f64)>,
}

impl Shown {
    /// Only the kind.
    pub fn kind(kind: u64) -> Self {
        Self { kind, ..Self::default() }
    }
}

/// Refuses a request that the stage cannot carry out.
pub(crate) fn refuse(scheduler: &str, message: impl std::fmt::Display) -> RunError {
    let message = format!("scheduler `{scheduler}`: {message}");
    RunError::new(Diagnostic::error("LMB0402", message))
}

fn number(knob: &Knob) -> Option<f64> {
    match knob {
        Knob::Bool(b) => Some(f64::from(u8::from(*b))),
        Knob::I64(i) => Some(*i as f64),
        Knob::F64(f) => Some(*f),
        Knob::Str(_) => None,
    }
}

impl Live<'_> {
    /// Whether scheduler `s` listens to `kind`.
    pub fn listens(&self, s: usize, kind: u64) -> bool {
        self.loaded.schedulers.get(s).is_some_and(|s| s.schedule.events & kind != 0)
    }

    /// Whether any scheduler listens to `kind`.
    pub fn anyone_listens(&self, kind: u64) -> bool {
        (0..self.loaded.schedulers.len()).any(|s| self.listens(s, kind))
    }

    /// Shows an event to one scheduler and carries out what it asks for.
    ///
    /// # Errors
    /// What the plugin says; a request that cannot be carried out.
    pub fn dispatch(&mut self, s: usize, shown: &Shown) -> RunResult<()> {
        if !self.listens(s, shown.kind) {
            return Ok(());
        }
        let requests = self.send(s, shown)?;
        for request in requests {
            self.carry_out(s, shown.kind, request)?;
        }
        Ok(())
    }

    /// Shows an event to every scheduler that listens, in the pipeline's order.
    ///
    /// # Errors
    /// As [`Live::dispatch`].
    pub fn dispatch_all(&mut self, shown: &Shown) -> RunResult<()> {
        (0..self.loaded.schedulers.len()).try_for_each(|s| self.dispatch(s, shown))
    }

    fn send(&mut self, s: usize, shown: &Shown) -> RunResult<Vec<Request>> {
        let keys = self.keys;
        let now = &mut self.now;
        now.calls += 1;
        let mut ctx = keys.ctx(Purpose::Event, SCHEDULER + s as u64, now.tick, now.calls);
        (ctx.step, ctx.micro_step) = (now.step, 0);
        let scheduler = &mut self.loaded.schedulers[s];
        let claims = scheduler.schedule.claims;
        let border = shown.kind & (abi::EVENT_TASK_BEGIN | abi::EVENT_TASK_END) != 0;
        let writable = border && claims & abi::CLAIM_STUDENT != 0;
        let event = Event {
            kind: shown.kind,
            task: &now.task,
            task_index: now.task_index,
            num_tasks: now.num_tasks,
            epoch: now.epoch,
            phase: &now.phase,
            group: &shown.group,
            tensors: &shown.tensors,
            params: if shown.params { &self.exact } else { &[] },
            params_writable: writable,
            grads: &shown.grads,
            metrics: &shown.metrics,
        };
        let ports: Vec<(String, String)> = scheduler
            .instance
            .ports()
            .iter()
            .filter(|p| p.is_output())
            .map(|p| (p.name.clone(), p.rows.clone()))
            .collect();
        let terms: Vec<String> = self.bound.terms.iter().map(|t| t.name.clone()).collect();
        let allowed = Allowed {
            kind: shown.kind,
            schedule: &scheduler.schedule,
            scheduler: &scheduler.name,
            ports: &ports,
            terms: &terms,
        };
        let check = |request: &Request| allowed.check(request);
        let requests =
            scheduler.instance.on_event(ctx, &event, &check).map_err(|e| plugin_error(&e))?;
        if writable {
            self.student_changed()?;
        }
        Ok(requests)
    }

    fn carry_out(&mut self, s: usize, kind: u64, request: Request) -> RunResult<()> {
        let name = self.loaded.schedulers[s].name.clone();
        match request {
            Request::Set(key, value) => self.set_knob(s, &key, &value),
            Request::Snapshot(snapshot, decay) => self.take_snapshot(s, &snapshot, decay),
            Request::Restore(snapshot) => self.restore(s, &snapshot),
            Request::Provide(port, tensor) => {
                let per_row = self.port_counts_rows(s, &port);
                if !per_row {
                    self.provided.insert((s, port), tensor);
                } else if kind == abi::EVENT_STEP_BEGIN || kind == abi::EVENT_EVAL_BATCH {
                    self.asked.provided.insert((s, port), tensor);
                } else {
                    return Err(refuse(&name, format!("`{port}` counts rows and there are none")));
                }
                Ok(())
            }
            Request::Rows { mode, epochs, name: rows, columns } => {
                let columns: BTreeMap<String, Tensor> = columns.into_iter().collect();
                match mode {
                    abi::ROWS_STEP => {
                        if self.asked.groups.iter().any(|g| g.0 == s && g.1 == rows) {
                            return Err(refuse(&name, format!("group `{rows}` joined twice")));
                        }
                        self.asked.groups.push((s, rows, columns));
                    }
                    abi::ROWS_UNION => self.asked.union.push(columns),
                    _ => self.asked.passes.push_back(PendingPass {
                        name: rows,
                        epochs: u64::from(epochs),
                        columns,
                    }),
                }
                Ok(())
            }
            Request::Probe { name, model, term, columns, max_rows, batch_rows } => {
                let columns = columns.into_iter().collect();
                let probe =
                    super::probe::Probe { name, model, term, columns, max_rows, batch_rows };
                self.probe(s, &probe)
            }
        }
    }

    fn port_counts_rows(&self, s: usize, port: &str) -> bool {
        let ports = self.loaded.schedulers[s].instance.ports();
        let port = ports.iter().find(|p| p.is_output() && p.name == port);
        let first = port.and_then(|p| p.shape.split(',').next()).unwrap_or_default().trim();
        matches!(first, "B" | "N")
    }

    fn set_knob(&mut self, s: usize, key: &str, value: &Knob) -> RunResult<()> {
        let name = self.loaded.schedulers[s].name.clone();
        let number = number(value).filter(|v| v.is_finite());
        let number = number.ok_or_else(|| refuse(&name, format!("knob `{key}` = {value:?}")))?;
        match key {
            "step.skip" => self.asked.flags.skip |= number != 0.0,
            "eval" => self.asked.flags.eval |= number != 0.0,
            "checkpoint" => self.asked.flags.checkpoint |= number != 0.0,
            "task.end" => self.asked.flags.task_end |= number != 0.0,
            "stop" => self.asked.flags.stop |= number != 0.0,
            "optimizer.reset" => {
                if number != 0.0 {
                    self.optimizer.reset()?;
                }
            }
            _ => {
                let key = self.full_key(s, key);
                if let Some((other, _)) = self.knobs.set.get(&key)
                    && *other != s
                {
                    let other = &self.loaded.schedulers[*other].name;
                    return Err(refuse(
                        &name,
                        format!("knob `{key}` is already set by scheduler `{other}`"),
                    ));
                }
                self.knobs.set.insert(key, (s, number));
                self.apply_knobs()?;
            }
        }
        Ok(())
    }

    /// A term's own name: the scheduler's terms come first.
    fn full_key(&self, s: usize, key: &str) -> String {
        let Some(term) = key.strip_prefix("weight/") else { return key.to_owned() };
        let own = format!("{}.{term}", self.loaded.schedulers[s].name);
        if self.bound.terms.iter().any(|t| t.scheduler == Some(s) && t.name == own) {
            return format!("weight/{own}");
        }
        key.to_owned()
    }

    /// Puts every knob into effect; called after each change and after a resume.
    ///
    /// # Errors
    /// A pattern that is no glob.
    pub fn apply_knobs(&mut self) -> RunResult<()> {
        self.knobs.lr = 1.0;
        for slot in &mut self.optimizer.slots {
            (slot.lr_factor, slot.frozen) = (1.0, false);
        }
        for (key, (s, value)) in &self.knobs.set {
            let scheduler = &self.loaded.schedulers[*s].name;
            let pattern = |text: &str| {
                glob::Pattern::new(text)
                    .map_err(|e| refuse(scheduler, format!("knob `{key}`: {e}")))
            };
            if key == "lr" {
                self.knobs.lr = *value;
            } else if let Some(text) = key.strip_prefix("lr/") {
                let pattern = pattern(text)?;
                let slots = self.optimizer.slots.iter_mut();
                slots.filter(|s| pattern.matches(&s.name)).for_each(|s| s.lr_factor = *value);
            } else if let Some(text) = key.strip_prefix("freeze/") {
                let pattern = pattern(text)?;
                let slots = self.optimizer.slots.iter_mut();
                slots.filter(|s| pattern.matches(&s.name)).for_each(|s| s.frozen = *value != 0.0);
            } else if let Some(name) = key.strip_prefix("weight/") {
                for term in self.bound.terms.iter_mut().filter(|t| t.name == name) {
                    let fixed = term.scheduler.is_some_and(|s| {
                        let plan = self.train.schedulers.get(s);
                        let local = name.rsplit_once('.').map_or(name, |(_, local)| local);
                        plan.is_some_and(|p| p.term_weights.contains_key(local))
                    });
                    // A weight that the pipeline gives is not the scheduler's to change.
                    if !fixed {
                        term.weight = value * term.share;
                    }
                }
            }
        }
        Ok(())
    }

    /// After [`Live::exact`] was written: rounds masters into the student's parameters and tells it.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn student_changed(&mut self) -> RunResult<()> {
        self.optimizer.masters_changed()?;
        self.student_stepped()
    }

    /// After an update, which wrote masters and parameters.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn student_stepped(&mut self) -> RunResult<()> {
        let ctx = self.keys.ctx(Purpose::State, 0, self.now.step, 0);
        self.loaded.student.params_changed(ctx).map_err(|e| plugin_error(&e))
    }

    fn snapshot_place(&self, s: usize, name: &str) -> RunResult<usize> {
        let found = self.loaded.snapshots.iter().position(|n| n.scheduler == s && n.name == name);
        found.ok_or_else(|| {
            refuse(&self.loaded.schedulers[s].name, format!("snapshot `{name}` is not declared"))
        })
    }

    fn take_snapshot(&mut self, s: usize, name: &str, decay: f64) -> RunResult<()> {
        let place = self.snapshot_place(s, name)?;
        let state = &mut self.snapshots[place];
        let decay = if state.taken { decay } else { 0.0 };
        state.taken = true;
        super::models::blend(&self.exact, &state.params, decay)
            .map_err(|reason| contract(self.loaded.student.id(), reason))?;
        let ctx = self.keys.ctx(Purpose::State, 1, self.now.step, place as u64);
        let instance = &mut self.loaded.snapshots[place].instance;
        instance.params_changed(ctx).map_err(|e| plugin_error(&e))
    }

    fn restore(&mut self, s: usize, name: &str) -> RunResult<()> {
        if name == "init" {
            let Some(initial) = &self.initial else {
                let scheduler = &self.loaded.schedulers[s].name;
                return Err(refuse(scheduler, "the initial student was not kept"));
            };
            for (from, param) in initial.iter().zip(&self.exact) {
                super::optimizer::copy_exact(from, &param.value)
                    .map_err(|reason| contract(self.loaded.student.id(), reason))?;
            }
        } else {
            let place = self.snapshot_place(s, name)?;
            if !self.snapshots[place].taken {
                let scheduler = &self.loaded.schedulers[s].name;
                return Err(refuse(scheduler, format!("snapshot `{name}` was not taken yet")));
            }
            super::models::blend(&self.snapshots[place].params, &self.exact, 0.0)
                .map_err(|reason| contract(self.loaded.student.id(), reason))?;
        }
        self.optimizer.reset()?;
        self.student_changed()
    }

    /// Moves an EMA teacher towards the student: `d * copy + (1 - d) * student`.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn follow_student(&mut self) -> RunResult<()> {
        let TeacherKind::Ema(decay) = self.teacher else { return Ok(()) };
        super::models::blend(&self.exact, self.teacher_copy(), decay)
            .map_err(|reason| contract(self.loaded.student.id(), reason))?;
        self.teacher_changed(0)
    }

    /// Parameters of the one teacher, if it is a copy of a student.
    pub fn teacher_copy(&self) -> &[Param] {
        self.teacher_params.first().map_or(&[], Vec::as_slice)
    }

    /// Tells a teacher that the host wrote its parameters.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn teacher_changed(&mut self, teacher: usize) -> RunResult<()> {
        let ctx = self.keys.ctx(Purpose::State, 2, self.now.step, teacher as u64);
        let teacher = self.loaded.teachers.get_mut(teacher).and_then(LoadedTeacher::instance_mut);
        teacher.map_or(Ok(()), |t| t.params_changed(ctx)).map_err(|e| plugin_error(&e))
    }
}
