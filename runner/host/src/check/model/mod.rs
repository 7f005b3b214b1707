//! Tiers `teacher` and `student`: forward is pure, parameters are the whole model, backward is its derivative.
//!
//! Works through [`Instance`], which already refuses what a host would.

mod input;

use super::subject::{ensure, fine};
use super::{Check, Miss, Outcome, Subject, fail};
use crate::load::Instance;
use crate::load::catalogue::PluginKind;
pub(super) use crate::load::instance::ForwardFlags;
use crate::load::instance::{CallCtx, ForwardOut, GradOut, Param, PluginError, Port};
use crate::run::random::Random;
use crate::tensor::{DType, Tensor};

const MODELS: &[PluginKind] = &[PluginKind::Teacher, PluginKind::Student];
const STUDENT: &[PluginKind] = &[PluginKind::Student];

pub(super) const CHECKS: &[Check] = &[
    Check { id: "model.pure", clause: "without TRAIN forward is pure", kinds: MODELS, run: pure },
    Check {
        id: "model.wanted",
        clause: "wanted: nothing else is computed",
        kinds: MODELS,
        run: wanted,
    },
    Check {
        id: "model.seeded",
        clause: "rng_key: the only source of randomness",
        kinds: STUDENT,
        run: seeded,
    },
    Check {
        id: "model.params",
        clause: "params() is the whole model",
        kinds: STUDENT,
        run: params,
    },
    Check {
        id: "model.gradient",
        clause: "backward: cotangents to gradients",
        kinds: STUDENT,
        run: gradient,
    },
    Check {
        id: "model.input-gradient",
        clause: "backward: cotangents to gradients of DIFFERENTIABLE inputs",
        kinds: STUDENT,
        run: input::gradient,
    },
    Check {
        id: "model.accumulate",
        clause: "LMB_TENSOR_ACCUMULATE",
        kinds: STUDENT,
        run: accumulate,
    },
    Check {
        id: "model.tapes",
        clause: "tapes are independent, in any order, or released",
        kinds: STUDENT,
        run: tapes,
    },
];

/// Rows of a batch.
const ROWS: i64 = 4;
/// Tokens of a text.
const TOKENS: i64 = 5;
/// Step of the differences.
const STEP: f64 = 1e-2;
/// Allowed relative error of f32 models against differences.
const LIMIT: f64 = 2e-2;

/// A shorter way to one output may round otherwise than the long way to all: `max |a - b| / (1 + max |b|)`.
const ROUNDING: f64 = 1e-5;

/// An active model.
pub(super) struct Rig {
    instance: Instance,
}

/// An active model and an ordinary batch for it.
///
/// # Errors
/// It cannot be created here.
pub(super) fn start(
    subject: &mut Subject,
    stream: u64,
) -> Result<(Rig, Vec<Option<Tensor>>), Miss> {
    let rig = Rig::new(subject)?;
    let mut draw = Random::new([subject.seed, stream]);
    let batch = inputs(rig.instance.ports(), &mut draw);
    Ok((rig, batch))
}

fn broke(expected: &str) -> impl Fn(PluginError) -> Miss + '_ {
    move |error| fail(expected, error.to_string())
}

const CTX: CallCtx = CallCtx { step: 0, micro_step: 0, rng_key: [3, 9] };

impl Rig {
    fn new(subject: &mut Subject) -> Result<Self, Miss> {
        let described = subject.described()?;
        let kind = PluginKind::from_abi(described.kind)
            .ok_or_else(|| Miss::Skip("unknown kind".into()))?;
        let live = subject.create()?;
        // Files that the ports need may not be here: a skip.
        live.ports()?;
        let plugin = live.into_raw();
        let (id, version) = (described.id.leak(), described.version.leak());
        // SAFETY: from a successful create, owned by nobody else now.
        let mut instance = unsafe { Instance::adopt(plugin, id, version, kind) }
            .map_err(broke("tables and ports as the header says"))?;
        (subject.doing)("activate");
        match instance.activate(CTX, &std::env::temp_dir()) {
            Ok(()) => {}
            Err(e)
                if matches!(e.status, limbeck_abi::STATUS_NOT_FOUND | limbeck_abi::STATUS_IO) =>
            {
                return Err(Miss::Skip(format!(
                    "not activated: {}; give settings with --with",
                    e.message
                )));
            }
            Err(e) => return Err(fail("activate to succeed", e.to_string())),
        }
        (subject.doing)("forward");
        Ok(Self { instance })
    }

    /// Outputs that a cotangent can be given for; all outputs of a teacher.
    pub fn outputs(&self) -> Vec<String> {
        self.instance.ports().iter().filter(|p| p.is_output()).map(|p| p.name.clone()).collect()
    }

    /// A forward pass that may fail.
    ///
    /// # Errors
    /// What the plugin says.
    pub fn attempt(
        &mut self,
        inputs: &[Option<Tensor>],
        wanted: &[String],
    ) -> Result<ForwardOut, PluginError> {
        self.instance.forward(CTX, ForwardFlags::default(), inputs, wanted)
    }

    /// A forward pass that must succeed.
    ///
    /// # Errors
    /// It does not.
    pub fn forward(
        &mut self,
        inputs: &[Option<Tensor>],
        wanted: &[String],
        flags: ForwardFlags,
    ) -> Result<ForwardOut, Miss> {
        self.instance.forward(CTX, flags, inputs, wanted).map_err(broke("forward to succeed"))
    }
}

/// Inputs of an ordinary batch.
fn inputs(ports: &[Port], draw: &mut Random) -> Vec<Option<Tensor>> {
    let shape = |port: &Port| -> Vec<i64> {
        let axes = port.shape.split(',').map(str::trim).enumerate();
        axes.map(|(i, a)| match a {
            _ if i == 0 => ROWS,
            "T" | "L" => TOKENS,
            other => other.parse().unwrap_or(6),
        })
        .collect()
    };
    let tensor = |port: &Port| {
        let dtype = *port.dtypes.iter().find(|t| **t == DType::F32).or(port.dtypes.first())?;
        if port.is_optional() {
            return None;
        }
        let shape = shape(port);
        let count = shape.iter().product::<i64>() as usize;
        let is_mask = port.name.ends_with("mask");
        let floats: Vec<f32> = (0..count).map(|_| draw.normal() as f32).collect();
        let ids: Vec<i64> =
            (0..count).map(|_| if is_mask { 1 } else { draw.below(6) as i64 }).collect();
        Some(match dtype {
            DType::F32 => Tensor::from_slice(&floats, &shape),
            DType::I64 => Tensor::from_slice(&ids, &shape),
            DType::U8 => Tensor::from_slice(&vec![1u8; count], &shape),
            DType::U32 => {
                Tensor::from_slice(&ids.iter().map(|i| *i as u32).collect::<Vec<_>>(), &shape)
            }
            _ => return None,
        })
    };
    let mut tensor = tensor;
    ports.iter().filter(|p| !p.is_output()).map(&mut tensor).collect()
}

fn floats(tensor: &Tensor) -> Result<Vec<f64>, Miss> {
    let data = tensor.data::<f32>();
    let data = data.ok_or_else(|| {
        Miss::Skip(format!("outputs of {} are not looked into", tensor.dtype().name()))
    })?;
    Ok(data.iter().map(|x| f64::from(*x)).collect())
}

/// Bitwise equality.
pub(super) fn same(a: &Tensor, b: &Tensor) -> bool {
    a.shape() == b.shape() && a.dtype() == b.dtype() && a.raw().is_some() && a.raw() == b.raw()
}

/// As [`ROUNDING`] defines it; of what is no float tensor: 0 for the same bits.
fn difference(a: &Tensor, b: &Tensor) -> f64 {
    match (a.shape() == b.shape(), a.data::<f32>(), b.data::<f32>()) {
        (true, Some(a), Some(b)) => {
            let largest = b.iter().fold(0f64, |m, b| m.max(f64::from(b.abs())));
            let pairs = a.iter().zip(b).filter(|(a, b)| a.to_bits() != b.to_bits());
            let apart = pairs.map(|(a, b)| f64::from(a - b).abs());
            // A NaN on one side is no rounding.
            apart.fold(0f64, |m, d| if d <= m { m } else { d }) / (1.0 + largest)
        }
        _ if same(a, b) => 0.0,
        _ => f64::INFINITY,
    }
}

fn pure(subject: &mut Subject) -> Outcome {
    let mut rig = Rig::new(subject)?;
    let mut draw = Random::new([subject.seed, 50]);
    let batch = inputs(rig.instance.ports(), &mut draw);
    let other = inputs(rig.instance.ports(), &mut draw);
    let names = rig.outputs();
    let first = rig.forward(&batch, &names, ForwardFlags::default())?;
    rig.forward(&other, &names, ForwardFlags::default())?;
    let again = rig.forward(&batch, &names, ForwardFlags::default())?;
    for ((a, b), name) in first.outputs.iter().zip(&again.outputs).zip(&names) {
        ensure(same(a, b), &format!("`{name}` bitwise the same from equal inputs"), || {
            "other numbers".into()
        })?;
        let finite = a.data::<f32>().is_none_or(|d| d.iter().all(|x| x.is_finite()));
        ensure(finite, &format!("finite numbers in `{name}`"), || "others".into())?;
    }
    Ok(names.join(" "))
}

fn wanted(subject: &mut Subject) -> Outcome {
    let mut rig = Rig::new(subject)?;
    let mut draw = Random::new([subject.seed, 51]);
    let batch = inputs(rig.instance.ports(), &mut draw);
    let names = rig.outputs();
    let all = rig.forward(&batch, &names, ForwardFlags::default())?;
    for (name, expected) in names.iter().zip(&all.outputs) {
        let one = rig.forward(&batch, std::slice::from_ref(name), ForwardFlags::default())?;
        let difference = one.outputs.first().map_or(f64::INFINITY, |o| difference(o, expected));
        ensure(
            difference <= ROUNDING,
            &format!("`{name}` alone within {ROUNDING} of `{name}` among all"),
            || format!("{difference:.1e}"),
        )?;
    }
    fine()
}

fn seeded(subject: &mut Subject) -> Outcome {
    let (mut one, mut two) = (Rig::new(subject)?, Rig::new(subject)?);
    let list = |rig: &mut Rig| rig.instance.params().map_err(broke("params to succeed"));
    let (a, b) = (list(&mut one)?, list(&mut two)?);
    ensure(a.len() == b.len(), "as many parameters each time", || {
        format!("{} and {}", a.len(), b.len())
    })?;
    for (a, b) in a.iter().zip(&b) {
        ensure(a.name == b.name, "parameters in the same order", || {
            format!("`{}` and `{}`", a.name, b.name)
        })?;
        let what = format!("`{}` bitwise the same from an equal rng_key", a.name);
        ensure(same(&a.value, &b.value), &what, || "other numbers".into())?;
    }
    Ok(format!("{} parameters", a.len()))
}

fn params(subject: &mut Subject) -> Outcome {
    let (mut one, mut two) = (Rig::new(subject)?, Rig::new(subject)?);
    let mut draw = Random::new([subject.seed, 52]);
    let batch = inputs(one.instance.ports(), &mut draw);
    let names = one.outputs();
    let (from, to) = (
        one.instance.params().map_err(broke("params to succeed"))?,
        two.instance.params().map_err(broke("params to succeed"))?,
    );
    // Other values than the common initial ones.
    for param in from.iter().filter(|p| p.value.dtype() == DType::F32 && p.trainable) {
        // SAFETY: between calls the host may write the values (lmb_student.params).
        for x in unsafe { param.value.data_mut::<f32>() } {
            *x += 0.1 * draw.normal() as f32;
        }
    }
    one.instance.params_changed(CTX).map_err(broke("params_changed to succeed"))?;
    for (a, b) in from.iter().zip(&to) {
        let bytes = a.value.raw().ok_or_else(|| fail("contiguous parameters", a.name.clone()))?;
        // SAFETY: as above; the two instances share no memory.
        unsafe { b.value.raw_mut() }.copy_from_slice(bytes);
    }
    two.instance.params_changed(CTX).map_err(broke("params_changed to succeed"))?;
    let a = one.forward(&batch, &names, ForwardFlags::default())?;
    let b = two.forward(&batch, &names, ForwardFlags::default())?;
    for ((a, b), name) in a.outputs.iter().zip(&b.outputs).zip(&names) {
        ensure(same(a, b), &format!("`{name}` bitwise equal after copying parameters"), || {
            "other numbers".into()
        })?;
    }
    fine()
}

/// Cotangents for every differentiable float output, and Σ⟨output, cotangent⟩ in f64.
struct Objective {
    names: Vec<String>,
    cotangents: Vec<(String, Tensor)>,
}

impl Objective {
    fn new(rig: &mut Rig, batch: &[Option<Tensor>], draw: &mut Random) -> Result<Self, Miss> {
        let ports = rig.instance.ports().iter().filter(|p| p.is_output() && p.is_differentiable());
        let names: Vec<String> = ports.map(|p| p.name.clone()).collect();
        if names.is_empty() {
            return Err(fail("an output that takes a cotangent", "none"));
        }
        let out = rig.forward(batch, &names, ForwardFlags::default())?;
        let draw_one = |(name, tensor): (&String, &Tensor)| {
            let values: Vec<f32> = (0..tensor.elements()).map(|_| draw.normal() as f32).collect();
            (name.clone(), Tensor::from_slice(&values, tensor.shape()))
        };
        let cotangents = names.iter().zip(&out.outputs).map(draw_one).collect();
        Ok(Self { names, cotangents })
    }

    fn value(&self, rig: &mut Rig, batch: &[Option<Tensor>]) -> Result<f64, Miss> {
        let out = rig.forward(batch, &self.names, ForwardFlags::default())?;
        let mut total = 0.0;
        for (tensor, (_, cotangent)) in out.outputs.iter().zip(&self.cotangents) {
            total +=
                floats(tensor)?.iter().zip(floats(cotangent)?).map(|(a, b)| a * b).sum::<f64>();
        }
        Ok(total)
    }

    /// Parameter gradients, added to buffers that hold `before`.
    fn backward(
        &self,
        rig: &mut Rig,
        batch: &[Option<Tensor>],
        before: Option<f32>,
    ) -> Result<Vec<Option<Vec<f64>>>, Miss> {
        let params = rig.instance.params().map_err(broke("params to succeed"))?;
        let flags = ForwardFlags { param_grad: true, ..ForwardFlags::default() };
        let out = rig.forward(batch, &self.names, flags)?;
        let tape = out.tape.ok_or_else(|| fail("a tape when PARAM_GRAD is set", "none"))?;
        let grads = buffers(&params, before);
        rig.instance
            .backward(CTX, tape, &self.cotangents, &grads, &[])
            .map_err(broke("backward to succeed"))?;
        grads.iter().map(|g| g.as_ref().map(|g| floats(&g.buffer)).transpose()).collect()
    }
}

fn buffers(params: &[Param], before: Option<f32>) -> Vec<Option<GradOut>> {
    let one = |param: &Param| {
        if !param.trainable || param.tied_to.is_some() {
            return None;
        }
        let fill = vec![before.unwrap_or(f32::NAN); param.value.elements()];
        let buffer = Tensor::from_slice(&fill, param.value.shape());
        Some(GradOut { buffer, accumulate: before.is_some() })
    };
    params.iter().map(one).collect()
}

fn gradient(subject: &mut Subject) -> Outcome {
    let mut rig = Rig::new(subject)?;
    let mut draw = Random::new([subject.seed, 53]);
    let batch = inputs(rig.instance.ports(), &mut draw);
    let objective = Objective::new(&mut rig, &batch, &mut draw)?;
    let grads = objective.backward(&mut rig, &batch, None)?;
    let params = rig.instance.params().map_err(broke("params to succeed"))?;
    let (mut worst, mut count): (f64, usize) = (0.0, 0);
    for (param, gradient) in params.iter().zip(&grads) {
        let Some(gradient) = gradient.as_ref().filter(|_| param.value.dtype() == DType::F32) else {
            continue;
        };
        let name = &param.name;
        ensure(
            gradient.iter().all(|g| g.is_finite()),
            &format!("every element of d`{name}` written, finite"),
            || "NaN or infinity".into(),
        )?;
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        if norm < 1e-6 {
            continue;
        }
        // Along the gradient the objective changes most; kinks of ReLUs weigh least there.
        let direction: Vec<f64> = gradient.iter().map(|g| g / norm).collect();
        let found = slope(&mut rig, &objective, &batch, &param.value, &direction)?;
        let error = (found - norm).abs() / norm.max(found.abs());
        worst = worst.max(error);
        count += 1;
        ensure(
            error <= LIMIT,
            &format!("d`{name}` within {LIMIT} of central differences"),
            || format!("gradient says {norm:.5e}, differences say {found:.5e}"),
        )?;
    }
    Ok(format!("{count} parameters, max relative error {worst:.1e} (limit {LIMIT})"))
}

/// Fourth-order central difference along a direction of one parameter.
fn slope(
    rig: &mut Rig,
    objective: &Objective,
    batch: &[Option<Tensor>],
    value: &Tensor,
    direction: &[f64],
) -> Result<f64, Miss> {
    let original = floats(value)?;
    let mut at = |factor: f64| -> Result<f64, Miss> {
        // SAFETY: between calls the host may write the values (lmb_student.params).
        let written = unsafe { value.data_mut::<f32>() };
        for ((x, o), d) in written.iter_mut().zip(&original).zip(direction) {
            *x = (o + factor * STEP * d) as f32;
        }
        rig.instance.params_changed(CTX).map_err(broke("params_changed to succeed"))?;
        objective.value(rig, batch)
    };
    let near = at(1.0)? - at(-1.0)?;
    let far = at(2.0)? - at(-2.0)?;
    at(0.0)?;
    Ok((8.0 * near - far) / (12.0 * STEP))
}

fn accumulate(subject: &mut Subject) -> Outcome {
    let mut rig = Rig::new(subject)?;
    let mut draw = Random::new([subject.seed, 54]);
    let batch = inputs(rig.instance.ports(), &mut draw);
    let objective = Objective::new(&mut rig, &batch, &mut draw)?;
    let alone = objective.backward(&mut rig, &batch, None)?;
    let sum = objective.backward(&mut rig, &batch, Some(0.5))?;
    for (alone, sum) in alone.iter().flatten().zip(sum.iter().flatten()) {
        let size = alone.iter().fold(1.0_f64, |m, g| m.max(g.abs()));
        let worst = alone.iter().zip(sum).map(|(a, s)| (a + 0.5 - s).abs()).fold(0.0, f64::max);
        ensure(worst <= 1e-5 * size, "buffer + gradient", || {
            format!("a difference of {worst:.2e}")
        })?;
    }
    fine()
}

fn tapes(subject: &mut Subject) -> Outcome {
    let mut rig = Rig::new(subject)?;
    let mut draw = Random::new([subject.seed, 55]);
    let (a, b) = (inputs(rig.instance.ports(), &mut draw), inputs(rig.instance.ports(), &mut draw));
    let objective = Objective::new(&mut rig, &a, &mut draw)?;
    let expected = objective.backward(&mut rig, &a, None)?;
    let flags = ForwardFlags { param_grad: true, ..ForwardFlags::default() };
    let params = rig.instance.params().map_err(broke("params to succeed"))?;
    let first = rig.forward(&a, &objective.names, flags)?;
    let second = rig.forward(&b, &objective.names, flags)?;
    let unused = rig.forward(&b, &objective.names, flags)?;
    let missing = || fail("a tape when PARAM_GRAD is set", "none");
    let (first, second) = (first.tape.ok_or_else(missing)?, second.tape.ok_or_else(missing)?);
    let grads = buffers(&params, None);
    let other = buffers(&params, None);
    let call = broke("backward to succeed");
    rig.instance.backward(CTX, second, &objective.cotangents, &other, &[]).map_err(&call)?;
    drop(unused);
    rig.instance.backward(CTX, first, &objective.cotangents, &grads, &[]).map_err(&call)?;
    for (expected, found) in expected.iter().flatten().zip(grads.iter().flatten()) {
        let equal =
            floats(&found.buffer)?.iter().zip(expected).all(|(a, b)| a.to_bits() == b.to_bits());
        ensure(equal, "the same gradients whatever other tapes exist", || "other numbers".into())?;
    }
    fine()
}
