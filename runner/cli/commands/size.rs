//! What a stage will cost: optimizer steps, parameters, memory, disk.
//!
//! Asks plugins for estimates where they give them; a number nobody can know is `None`, never a guess.

use super::inputs::Inputs;
use limbeck_host::data::Dataset;
use limbeck_host::load::Instance;
use limbeck_host::load::wiring::{LoadedStage, Source};
use limbeck_host::plan::{OptimizerKind, TrainPlan, estimate};
use limbeck_host::tensor::{DType, TensorSpec};

/// Cost of a training stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Size {
    /// Optimizer steps over all tasks.
    pub steps: Option<u64>,
    /// Parameters of the student.
    pub params: Option<u64>,
    /// Bytes at the peak of a step: models, moments, gradients, activations.
    pub peak: Option<u64>,
    /// Bytes of the checkpoints that are kept.
    pub disk: Option<u64>,
}

/// Shape and type of a batch column.
fn column_spec(dataset: &Dataset, column: &str, rows: usize) -> Option<TensorSpec> {
    let spec = dataset.columns().into_iter().find(|c| c.name == column)?;
    let mut shape = vec![rows as i64];
    shape.extend(spec.row_shape);
    Some(TensorSpec { dtype: spec.dtype, shape })
}

fn ask(
    model: &Instance,
    sources: &[Option<Source>],
    data: &Dataset,
    rows: usize,
) -> Option<(u64, u64)> {
    let specs: Vec<Option<TensorSpec>> = sources
        .iter()
        .map(|source| match source {
            Some(Source::Batch(column)) => column_spec(data, column, rows),
            _ => None,
        })
        .collect();
    model.estimate(&specs).ok().flatten()
}

/// Cost of one stage, `None` if it does not train.
pub fn of_stage(inputs: &Inputs, index: usize) -> Option<Size> {
    let train = inputs.plan.stages.get(index)?.training()?;
    let loaded = inputs.loaded.stages.get(index)?.as_ref()?;
    let rows = |id: &str| inputs.datasets.get(id).map(|d| d.rows() as u64);
    let steps = estimate::steps(train, rows).into_iter().sum();
    Some(Size { steps, ..memory(inputs, train, loaded).unwrap_or_default() })
}

fn memory(inputs: &Inputs, train: &TrainPlan, loaded: &LoadedStage) -> Option<Size> {
    let data = inputs.datasets.get(&train.tasks.first()?.train)?;
    let (held, extra) = ask(&loaded.student, &loaded.student_inputs, data, train.batch_size)?;
    let mut teachers = 0;
    for teacher in &loaded.teachers {
        if let Some(model) = teacher.instance() {
            let (held, extra) = ask(model, &teacher.inputs, data, train.batch_size)?;
            teachers += held + extra;
        }
    }
    let moments = match train.optimizer.kind {
        OptimizerKind::Adamw { .. } => 2,
        OptimizerKind::Sgd { momentum } => u64::from(momentum > 0.0),
    };
    // Estimates are of f32; 16-bit parameters have an f32 master, which counts as one moment more.
    let single = DType::F32.bytes() as u64;
    let params = held / single;
    let masters = u64::from(train.dtype != DType::F32);
    let optimizer = params * single * (moments + 1 + masters);
    let trained = params * train.dtype.bytes() as u64;
    let copies = held * loaded.snapshots.len() as u64;
    let kept = (train.checkpoint.keep_last + train.checkpoint.keep_best) as u64;
    let moments_on_disk = params * single * moments;
    Some(Size {
        steps: None,
        params: Some(params),
        peak: Some(trained + extra + teachers + optimizer + copies),
        disk: Some((held + moments_on_disk + copies) * kept + held),
    })
}
