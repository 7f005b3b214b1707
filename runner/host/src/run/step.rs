//! One optimizer step's gradient: forwards, loss terms, backwards, over all passes of the step.
//!
//! The objective is the weighted sum of the terms, each a sum over counted items divided by the step's whole count,
//! so micro-batches add up exactly. Gradients of groups that keep theirs apart never mix with the step's own.

use super::RunError;
use super::bind::{Feed, Term};
use super::error::{RunResult, contract, plugin_error};
use super::forward::Mode;
use super::gradient::{Cotangent, GradSet};
use super::live::{Live, STUDENT, TERM};
use super::pass::{Pass, PassOut, Sources, counted, sequence_weights};
use super::random::Purpose;
use super::schedule::Shown;
use crate::diagnostic::Diagnostic;
use crate::load::instance::{GradOut, LossCall, LossOut, LossPending, Tape};
use crate::plan::Reduction;
use crate::tensor::Tensor;
use limbeck_abi as abi;

/// What the loss terms of a step gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepValues {
    /// Weighted sum.
    pub objective: f64,
    /// Each term's own value, then its metrics as `term.metric`.
    pub values: Vec<(String, f64)>,
}

impl StepValues {
    fn add(&mut self, name: String, value: f64) {
        match self.values.iter_mut().find(|(n, _)| *n == name) {
            Some((_, sum)) => *sum += value,
            None => self.values.push((name, value)),
        }
    }
}

/// Which terms are computed, and how they are scaled.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Terms<'t> {
    /// Those with a weight, by weight.
    Weighted,
    /// The pipeline's own ones with a weight, by weight (probes of `*`, the metric `loss`).
    Pipeline,
    /// One term whatever its weight, unscaled (probes).
    Only(&'t str),
}

impl Terms<'_> {
    fn scale(self, term: &Term) -> Option<f64> {
        match self {
            Self::Weighted => (term.weight != 0.0).then_some(term.weight),
            Self::Pipeline => (term.planned.is_some() && term.weight != 0.0).then_some(term.weight),
            Self::Only(name) => (term.name == name).then_some(term.share),
        }
    }
}

/// What the terms of a pass gave, by term.
pub(crate) type Given = Vec<(usize, LossPending)>;

/// Counted items by term and gradient set.
pub(crate) type Counts = Vec<Vec<f64>>;

impl Live<'_> {
    /// Gradients of a step's passes into [`Live::grads`] and [`Live::own_grads`]; schedulers see each forward.
    ///
    /// # Errors
    /// What a plugin says; rows that lack a column.
    pub fn gradients(&mut self, passes: &[Pass]) -> RunResult<StepValues> {
        let counts = self.count(passes)?;
        let clear = self.a_term_reads_parameters();
        let mut grads = std::mem::take(&mut self.grads);
        let mut own = std::mem::take(&mut self.own_grads);
        let result = self.all_passes(passes, &counts, &mut grads, &mut own, clear);
        (self.grads, self.own_grads) = (grads, own);
        result
    }

    fn all_passes(
        &mut self,
        passes: &[Pass],
        counts: &Counts,
        grads: &mut GradSet,
        own: &mut [((usize, String), GradSet)],
        clear: bool,
    ) -> RunResult<StepValues> {
        grads.begin(clear)?;
        for (_, set) in own.iter_mut() {
            set.begin(clear)?;
        }
        let wanted = self.wanted_in_training();
        let mut all = Vec::with_capacity(passes.len());
        for (micro, pass) in passes.iter().enumerate() {
            let terms = Terms::Weighted;
            let record = self.flows_back(pass, terms);
            let micro = micro as u64;
            let (out, tape) = self.forward(pass, Mode::Train { record }, &wanted, micro)?;
            self.show_forward(pass, &out)?;
            let (target, is_recorded) = match pass.set.checked_sub(1) {
                None => (&mut *grads, true),
                Some(i) => match own.get_mut(i) {
                    Some((_, set)) => (set, false),
                    None => continue,
                },
            };
            let given = self.terms(pass, &out, counts, terms, Some(target), micro)?;
            if is_recorded {
                all.push(given);
            }
            self.flow_back(tape, target, micro)?;
        }
        // Behind the last pass, so that a device computes while the host goes on.
        let mut values = StepValues::default();
        for given in all {
            self.collect(given, &mut values)?;
        }
        grads.finish()?;
        own.iter_mut().try_for_each(|(_, set)| set.finish())?;
        Ok(values)
    }

    fn a_term_reads_parameters(&self) -> bool {
        let reads = |t: &Term| t.inputs.iter().any(|i| matches!(i.feed, Some(Feed::Param(_))));
        self.bound.terms.iter().any(|t| t.is_active() && reads(t))
    }

    /// Whether a term of `terms` sees rows of the pass.
    pub fn flows_back(&self, pass: &Pass, terms: Terms<'_>) -> bool {
        let sees = |t: &&Term| terms.scale(t).is_some() && pass.range(&t.rows).is_some();
        self.bound.terms.iter().find(sees).is_some()
    }

    /// Counted items over all passes, before anything is computed.
    ///
    /// # Errors
    /// Labels or masks that cannot be read.
    pub fn count(&self, passes: &[Pass]) -> RunResult<Counts> {
        let none = PassOut::default();
        let sets = 1 + self.own_grads.len();
        let mut counts = vec![vec![0.0; sets]; self.bound.terms.len()];
        for pass in passes {
            let sources = Sources {
                bound: &self.bound,
                pass,
                out: &none,
                params: &self.params,
                provided: &self.provided,
            };
            for (term, counts) in self.bound.terms.iter().zip(&mut counts) {
                if let Some(range) = pass.range(&term.rows) {
                    let n = counted(term, &sources, range)?;
                    match term.reduction {
                        Reduction::Sum => counts[pass.set] = n,
                        _ => counts[pass.set] += n,
                    }
                }
            }
        }
        Ok(counts)
    }

    /// Computes terms on a pass. Gradients go to `grads` and the cotangents, unless `grads` is `None`.
    ///
    /// # Errors
    /// What a plugin says.
    pub fn terms(
        &mut self,
        pass: &Pass,
        out: &PassOut,
        counts: &Counts,
        terms: Terms<'_>,
        mut grads: Option<&mut GradSet>,
        micro: u64,
    ) -> RunResult<Given> {
        let mut cotangents = std::mem::take(&mut self.cotangents);
        for (cotangent, output) in cotangents.iter_mut().zip(&out.student) {
            if let Some(output) = output {
                cotangent.begin(output.shape(), self.loaded.student.device())?;
            }
        }
        let mut given = Vec::new();
        let mut result = Ok(());
        for (i, counts) in counts.iter().enumerate().take(self.bound.terms.len()) {
            let term = &self.bound.terms[i];
            let Some(scale) = terms.scale(term) else { continue };
            let Some(range) = pass.range(&term.rows) else { continue };
            let normalizer = counts[pass.set];
            if normalizer <= 0.0 {
                continue;
            }
            let call = Call { term: i, range, normalizer, scale, micro };
            match self.term(&call, pass, out, grads.as_deref_mut(), &mut cotangents) {
                Ok(Some(value)) => given.push((i, value)),
                Ok(None) => {}
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        self.cotangents = cotangents;
        result.map(|()| given)
    }

    fn term(
        &mut self,
        call: &Call,
        pass: &Pass,
        out: &PassOut,
        grads: Option<&mut GradSet>,
        cotangents: &mut [Cotangent],
    ) -> RunResult<Option<LossPending>> {
        let Some(inputs) = self.term_inputs(call, pass, out)? else { return Ok(None) };
        let term = &self.bound.terms[call.term];
        let rows = (pass.batch.rows, call.range.0, call.range.1);
        let mut grad_outs: Vec<Option<GradOut>> = vec![None; inputs.len()];
        let mut param_grads: &[GradOut] = &[];
        if let Some(grads) = grads {
            for (i, input) in term.inputs.iter().enumerate().filter(|(_, i)| i.differentiable) {
                grad_outs[i] = match input.feed {
                    Some(Feed::Param(place)) => grads.param(canonical(&self.params, place)),
                    Some(Feed::Student(place)) if inputs[i].is_some() => {
                        let same = |i: &&super::bind::Input| i.feed == input.feed;
                        let alone = term.inputs.iter().filter(same).count() == 1;
                        let axis = self.bound.student_rows[place].then_some(rows);
                        let part = cotangents[place].part(axis, alone)?;
                        part.map(|p| like_input(p, inputs[i].as_ref()))
                    }
                    _ => None,
                };
            }
            param_grads = &grads.loss[call.term];
        }
        let params: Vec<Tensor> = term.params.iter().map(|p| p.value.clone()).collect();
        let scratch: Vec<GradOut>;
        if param_grads.len() != params.len() {
            // Nobody wants them, but the contract has a place for each.
            scratch = params
                .iter()
                .map(|p| {
                    let buffer = Tensor::zeros_on(p.device(), p.dtype(), p.shape())?;
                    Ok(GradOut { buffer, accumulate: false })
                })
                .collect::<RunResult<_>>()?;
            param_grads = &scratch;
        }
        let loss = LossCall {
            inputs: &inputs,
            grads: &grad_outs,
            params: &params,
            param_grads,
            normalizer: call.normalizer,
            grad_scale: call.scale,
        };
        let slot = TERM + call.term as u64;
        let ctx = self.keys.ctx(Purpose::Loss, slot, self.now.step, call.micro);
        match self.loaded.terms[call.term].instance.loss_start(ctx, &loss) {
            Ok(value) => Ok(Some(value)),
            // The step's policy for values that are not finite decides.
            Err(e) if e.status == abi::STATUS_NON_FINITE => {
                let nothing = LossOut { value: f64::NAN, metrics: Vec::new() };
                Ok(Some(LossPending::Read(nothing)))
            }
            Err(e) => Err(plugin_error(&e).within(format!("term `{}`", term.name))),
        }
    }

    /// Inputs of a term; `None`: a snapshot that it needs was not taken yet.
    fn term_inputs(
        &self,
        call: &Call,
        pass: &Pass,
        out: &PassOut,
    ) -> RunResult<Option<Vec<Option<Tensor>>>> {
        let term = &self.bound.terms[call.term];
        let sources = Sources {
            bound: &self.bound,
            pass,
            out,
            params: &self.params,
            provided: &self.provided,
        };
        let (from, to) = call.range;
        let mut inputs = Vec::with_capacity(term.inputs.len());
        for input in &term.inputs {
            let tensor = sources.get(input, from, to)?;
            match (&tensor, &input.feed) {
                (None, Some(Feed::Snapshot(..))) => return Ok(None),
                (None, Some(Feed::Scheduler(s, port))) if !input.optional => {
                    let name = &self.loaded.schedulers[*s].name;
                    let message =
                        format!("port `{port}` was not provided for term `{}`", term.name);
                    return Err(super::schedule::refuse(name, message));
                }
                (None, Some(_)) if !input.optional => {
                    let message =
                        format!("nothing for port `{}` of term `{}`", input.name, term.name);
                    return Err(contract(self.loaded.student.id(), message));
                }
                _ => {}
            }
            inputs.push(tensor);
        }
        if term.reduction == Reduction::SeqMean {
            let Some(place) = term.row_weights else {
                let message =
                    format!("term `{}` takes no row weights, so no `seq_mean`", term.name);
                return Err(RunError::new(Diagnostic::error("LMB0232", message)));
            };
            if inputs[place].is_none() {
                let items =
                    term.inputs.iter().zip(&inputs).find(|(i, t)| i.row_axis && t.is_some());
                let items = items.and_then(|(_, t)| t.as_ref()).map_or(to - from, Tensor::rows);
                inputs[place] = Some(sequence_weights(term, &sources, call.range, items)?);
            }
        }
        Ok(Some(inputs))
    }

    fn collect(&self, given: Given, values: &mut StepValues) -> RunResult<()> {
        for (i, pending) in given {
            let out = pending.read()?;
            let term = &self.bound.terms[i];
            values.objective += term.weight * out.value;
            values.add(term.name.clone(), term.share * out.value);
            for (metric, value) in &out.metrics {
                values.add(format!("{}.{metric}", term.name), term.share * value);
            }
        }
        Ok(())
    }

    /// Cotangents of the pass to parameter gradients. A tape without cotangents is dropped.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn flow_back(
        &mut self,
        tape: Option<Tape>,
        grads: &mut GradSet,
        micro: u64,
    ) -> RunResult<()> {
        let outputs = self.bound.student_outputs.iter();
        let cotangents: Vec<(String, Tensor)> = outputs
            .zip(&self.cotangents)
            .filter_map(|(name, c)| c.taken().map(|t| (name.clone(), t.clone())))
            .collect();
        let (Some(tape), false) = (tape, cotangents.is_empty()) else { return Ok(()) };
        let ctx = self.keys.ctx(Purpose::Backward, STUDENT, self.now.step, micro);
        self.loaded
            .student
            .backward(ctx, tape, &cotangents, grads.next(), &[])
            .map_err(|e| plugin_error(&e))
    }

    fn show_forward(&mut self, pass: &Pass, out: &PassOut) -> RunResult<()> {
        for s in 0..self.loaded.schedulers.len() {
            if !self.listens(s, abi::EVENT_FORWARD) {
                continue;
            }
            for segment in &pass.segments {
                // Names of groups are local to their scheduler: it sees the fresh rows and its own.
                if segment.scheduler.is_some_and(|owner| owner != s) {
                    continue;
                }
                let tensors = self.ports_of(s, pass, out, (segment.from, segment.to))?;
                let shown = Shown {
                    kind: abi::EVENT_FORWARD,
                    group: segment.group.clone(),
                    tensors,
                    ..Shown::default()
                };
                self.dispatch(s, &shown)?;
            }
        }
        Ok(())
    }
}

/// One loss call.
struct Call {
    term: usize,
    range: (usize, usize),
    normalizer: f64,
    scale: f64,
    micro: u64,
}

/// The parameter whose buffer a tied name shares.
fn canonical(params: &[crate::load::instance::Param], place: usize) -> usize {
    let tied = params.get(place).and_then(|p| p.tied_to.as_ref());
    tied.and_then(|name| params.iter().position(|p| p.name == *name)).unwrap_or(place)
}

/// The gradient buffer in the shape in which the loss sees its input (rows flattened).
fn like_input(out: GradOut, input: Option<&Tensor>) -> GradOut {
    match input {
        Some(input) if input.shape() != out.buffer.shape() => {
            let buffer = out.buffer.reshape(input.shape()).unwrap_or(out.buffer);
            GradOut { buffer, ..out }
        }
        _ => out,
    }
}
