//! Evaluation: a student over a dataset, batch by batch, in the data's order.
//!
//! Changes no parameter and no statistic. Schedulers may supply the scores that decide the class.

use super::RunError;
use super::arith::{to_f64, to_i64};
use super::classes::within;
use super::ensemble::mean_of_softmax;
use super::error::{RunResult, contract, plugin_error};
use super::forward::{Mode, Wanted};
use super::live::{Keys, Live, STUDENT, TeacherKind};
use super::pass::{Pass, PassOut, Sources};
use super::random::Purpose;
use super::rows::contiguous;
use super::schedule::Shown;
use super::scores::Scores;
use super::step::Terms;
use crate::data::{Batch, Dataset};
use crate::diagnostic::Diagnostic;
use crate::load::Instance;
use crate::load::instance::ForwardFlags;
use crate::load::wiring::Source;
use crate::plan::Metric;
use crate::tensor::Tensor;
use limbeck_abi as abi;

/// Which classes a prediction may choose from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Judge {
    /// Classes of the task that is evaluated, in streams whose tasks have their own; else `None`.
    pub classes: Option<Vec<i64>>,
    /// Metrics under their plain names are within the task (`all.NAME` over all classes), not the other way round
    /// (`task.NAME`).
    pub task_is_known: bool,
}

impl Judge {
    /// Evaluation mask of the plain names, and of the others.
    pub fn masks(&self) -> (&'static str, &'static str) {
        if self.task_is_known { ("task", "all") } else { ("all", "task") }
    }
}

/// Metrics by name.
pub(crate) type Values = Vec<(String, f64)>;

fn malformed(dataset: &Dataset, message: impl std::fmt::Display) -> RunError {
    let message = format!("evaluation on `{}`: {message}", dataset.id());
    RunError::new(Diagnostic::error("LMB0519", message))
}

/// Adds the rows of one batch to the scores.
fn score(
    scores: &mut Judged,
    dataset: &Dataset,
    batch: &Batch,
    logits: &Tensor,
    decide: Option<&Tensor>,
    teacher: Option<&Tensor>,
) -> RunResult<()> {
    let floats = |t: &Tensor| {
        to_f64(&contiguous(t)).ok_or_else(|| malformed(dataset, format!("{t:?} cannot be read")))
    };
    let classes = logits.shape().last().map_or(0, |d| *d as usize);
    let labels = batch.columns.get("labels").and_then(to_i64);
    let own = floats(logits)?;
    let decide = decide.map(floats).transpose()?;
    let decide = decide.as_deref().unwrap_or(&own);
    let teacher = teacher.map(floats).transpose()?;
    let (labels, teacher) = (labels.as_deref(), teacher.as_deref());
    let refused = |e| malformed(dataset, e);
    if let Some((inside, kept)) = &mut scores.within {
        let (own, decide) = (within(&own, classes, kept), within(decide, classes, kept));
        inside.add(&own, &decide, labels, teacher, classes).map_err(refused)?;
    }
    scores.all.add(&own, decide, labels, teacher, classes).map_err(refused)
}

/// Counts over all classes and, in streams whose tasks have their own, within the task.
struct Judged {
    all: Scores,
    within: Option<(Scores, Vec<i64>)>,
}

impl Judged {
    fn new(judge: &Judge) -> Self {
        let within = judge.classes.clone().map(|classes| (Scores::default(), classes));
        Self { all: Scores::default(), within }
    }

    /// Metrics under their plain names, then under the other mask's. `copy`: the counts of the EMA teacher.
    fn values(&self, judge: &Judge, metrics: &[Metric], loss: f64, copy: &Self) -> Values {
        let (plain, other) = self.masked(judge);
        let (copy_plain, copy_other) = copy.masked(judge);
        let value = |own: &Scores, copy: &Scores, m: &Metric| match m {
            Metric::Loss => loss,
            Metric::Ema(of) => copy.value(of),
            of => own.value(of),
        };
        let mut values: Values =
            metrics.iter().map(|m| (m.name(), value(plain, copy_plain, m))).collect();
        if let (Some(other), Some(copy)) = (other, copy_other) {
            let prefix = judge.masks().1;
            let masked = metrics.iter().filter(|m| **m != Metric::Loss);
            values
                .extend(masked.map(|m| (format!("{prefix}.{}", m.name()), value(other, copy, m))));
        }
        values
    }

    /// Counts under the plain names' mask, and under the other one if there is one.
    fn masked(&self, judge: &Judge) -> (&Scores, Option<&Scores>) {
        match &self.within {
            None => (&self.all, None),
            Some((inside, _)) if judge.task_is_known => (inside, Some(&self.all)),
            Some((inside, _)) => (&self.all, Some(inside)),
        }
    }
}

impl Live<'_> {
    /// Metrics of the student on a dataset, in the order asked for.
    ///
    /// # Errors
    /// What a plugin says; rows that do not fit the student.
    pub fn evaluate(&mut self, dataset: &Dataset, metrics: &[Metric]) -> RunResult<Values> {
        let Some(logits) = self.bound.student_outputs.iter().position(|o| o == "logits") else {
            return Err(contract(self.loaded.student.id(), "no output `logits` to evaluate"));
        };
        self.dispatch_all(&Shown { params: true, ..Shown::kind(abi::EVENT_EVAL_BEGIN) })?;
        let wanted = self.wanted_in_evaluation(logits, metrics);
        let teacher = self.bound.teacher_outputs.iter().position(|o| o == "logits");
        let with_loss = metrics.contains(&Metric::Loss);
        let judge = self.judge.clone();
        let (mut scores, mut copy) = (Judged::new(&judge), Judged::new(&judge));
        let mut losses = Losses::default();
        let rows: Vec<usize> = (0..dataset.rows()).collect();
        for (n, places) in rows.chunks(self.train.batch_size.max(1)).enumerate() {
            let pass = Pass::fresh(dataset.gather(places));
            let (out, _) = self.forward(&pass, Mode::Look { record: false }, &wanted, n as u64)?;
            let decide = self.show_batch(&pass, &out)?;
            let Some(own) = out.student.get(logits).and_then(Option::as_ref) else { continue };
            let taught = match self.teacher {
                TeacherKind::Own => Some(own),
                _ => teacher.and_then(|t| out.teacher.get(t)).and_then(Option::as_ref),
            };
            score(&mut scores, dataset, &pass.batch, own, decide.as_ref(), taught)?;
            if let (TeacherKind::Ema(_), Some(taught)) = (self.teacher, taught) {
                score(&mut copy, dataset, &pass.batch, taught, None, None)?;
            }
            if with_loss {
                self.add_losses(&pass, &out, &mut losses)?;
            }
        }
        let values = scores.values(&judge, metrics, losses.value(), &copy);
        let shown = Shown { metrics: values.clone(), ..Shown::kind(abi::EVENT_EVAL_END) };
        self.dispatch_all(&shown)?;
        Ok(values)
    }

    fn wanted_in_evaluation(&self, logits: usize, metrics: &[Metric]) -> Wanted {
        let everything =
            self.anyone_listens(abi::EVENT_EVAL_BATCH) || metrics.contains(&Metric::Loss);
        let mut wanted = if everything { self.wanted_in_training() } else { Wanted::default() };
        if !wanted.student.contains(&logits) {
            wanted.student.push(logits);
        }
        if self.bound.teacher_reads_student {
            let read = self.bound.teacher_inputs.iter().flatten().filter_map(|i| match i.feed {
                Some(super::bind::Feed::Student(place)) => Some(place),
                _ => None,
            });
            wanted.student.extend(read);
            wanted.student.sort_unstable();
            wanted.student.dedup();
        }
        let teacher_is_measured = |m: &Metric| matches!(m, Metric::Agreement | Metric::Ema(_));
        if metrics.iter().any(teacher_is_measured)
            && let Some(place) = self.bound.teacher_outputs.iter().position(|o| o == "logits")
            && !wanted.teacher.contains(&place)
        {
            wanted.teacher.push(place);
        }
        wanted
    }

    /// Shows a batch to the schedulers; gives the scores that one of them supplied.
    fn show_batch(&mut self, pass: &Pass, out: &PassOut) -> RunResult<Option<Tensor>> {
        for s in 0..self.loaded.schedulers.len() {
            if self.listens(s, abi::EVENT_EVAL_BATCH) {
                let tensors = self.ports_of(s, pass, out, (0, pass.batch.rows))?;
                self.dispatch(s, &Shown { tensors, ..Shown::kind(abi::EVENT_EVAL_BATCH) })?;
            }
        }
        let provided = std::mem::take(&mut self.asked.provided);
        Ok(provided.into_iter().find(|((_, port), _)| port == "eval.scores").map(|(_, t)| t))
    }

    fn add_losses(&mut self, pass: &Pass, out: &PassOut, losses: &mut Losses) -> RunResult<()> {
        let counts = self.count(std::slice::from_ref(pass))?;
        let given = self.terms(pass, out, &counts, Terms::Pipeline, None, 0)?;
        for (i, value) in given {
            let term = &self.bound.terms[i];
            losses.add(i, term.weight, value.read()?.value, counts[i][0]);
        }
        Ok(())
    }
}

/// Weighted loss terms over an evaluation: the sum of each term's mean over all counted items.
#[derive(Default)]
struct Losses {
    /// By term: (weight, sum, items).
    by_term: std::collections::BTreeMap<usize, (f64, f64, f64)>,
}

impl Losses {
    fn add(&mut self, term: usize, weight: f64, value: f64, items: f64) {
        let entry = self.by_term.entry(term).or_insert((weight, 0.0, 0.0));
        entry.1 += value * items;
        entry.2 += items;
    }

    fn value(&self) -> f64 {
        if self.by_term.is_empty() {
            return f64::NAN;
        }
        self.by_term.values().map(|(weight, sum, items)| weight * sum / items).sum()
    }
}

/// An active student outside its stage, with the sources of its inputs.
pub(crate) struct Alone<'a> {
    pub student: &'a mut Instance,
    pub sources: &'a [Option<Source>],
    pub keys: Keys,
}

impl Alone<'_> {
    /// Its logits on a batch; `n` tells calls apart.
    fn logits(&mut self, dataset: &Dataset, batch: &Batch, n: u64) -> RunResult<Option<Tensor>> {
        let mut inputs = Vec::new();
        for (port, source) in self.student.inputs().zip(self.sources) {
            let tensor = match source {
                Some(Source::Batch(column)) => batch.columns.get(column).cloned(),
                _ => None,
            };
            if tensor.is_none() && !port.is_optional() {
                let message = format!("no column for the student's port `{}`", port.name);
                return Err(malformed(dataset, message));
            }
            inputs.push(tensor);
        }
        let ctx = self.keys.ctx(Purpose::Forward, STUDENT, 0, n);
        let out = self
            .student
            .forward(ctx, ForwardFlags::default(), &inputs, &["logits".to_owned()])
            .map_err(|e| plugin_error(&e))?;
        Ok(out.outputs.into_iter().next())
    }
}

/// Metrics of active students outside their stages (`eval` stages, `limbeck eval`): of one, or of several as an
/// ensemble. Metrics that need a teacher or loss terms are undefined here.
///
/// # Errors
/// What a plugin says; rows that do not fit a student; students of different classes.
pub(crate) fn evaluate_alone(
    students: &mut [&mut Alone<'_>],
    dataset: &Dataset,
    metrics: &[Metric],
    batch_size: usize,
    judge: &Judge,
) -> RunResult<Values> {
    let mut scores = Judged::new(judge);
    let rows: Vec<usize> = (0..dataset.rows()).collect();
    for (n, places) in rows.chunks(batch_size.max(1)).enumerate() {
        let batch = dataset.gather(places);
        let mut logits = Vec::new();
        for student in students.iter_mut() {
            logits.extend(student.logits(dataset, &batch, n as u64)?);
        }
        let decided = match logits.as_slice() {
            [one] => one.clone(),
            several => mean_of_softmax(several).map_err(|e| malformed(dataset, e))?,
        };
        score(&mut scores, dataset, &batch, &decided, None, None)?;
    }
    Ok(scores.values(judge, metrics, f64::NAN, &Judged::new(judge)))
}

/// Rows of an evaluation by scheduler ports, shared with the step.
impl Live<'_> {
    /// `lmb_event.tensors` of STEP_BEGIN: batch columns of all fresh rows of the step.
    ///
    /// # Errors
    /// Rows that lack a column.
    pub fn step_columns(
        &self,
        s: usize,
        batch: &Batch,
    ) -> RunResult<Vec<(String, Option<Tensor>)>> {
        let pass = Pass::fresh(batch.clone());
        let none = PassOut::default();
        let sources = Sources {
            bound: &self.bound,
            pass: &pass,
            out: &none,
            params: &[],
            provided: &self.provided,
        };
        let inputs = &self.bound.schedulers[s];
        let get = |i: &super::bind::Input| {
            let column = matches!(i.feed, Some(super::bind::Feed::Batch(_)));
            let tensor = if column { sources.get(i, 0, batch.rows)? } else { None };
            Ok((i.name.clone(), tensor))
        };
        inputs.iter().map(get).collect()
    }
}
