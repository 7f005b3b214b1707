//! One loss instance, called through its raw table on observed memory.

use super::super::live::{Live, ctx};
use super::super::memory::{Layout, Watched};
use super::super::subject::told;
use super::super::{Miss, Subject, fail};
use super::case::{self, Case};
use crate::load::instance::Port;
use crate::load::services::ErrorSlot;
use crate::run::random::Random;
use crate::tensor::DType;
use limbeck_abi as abi;

/// How a call is laid out.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Inputs and gradients.
    pub layout: Layout,
    /// Gradient buffers hold this and are added to; `None`: they hold NaN and are overwritten.
    pub accumulate: Option<f64>,
    /// Ask for no gradient.
    pub no_grads: bool,
    /// Ask for the gradient of this input alone.
    pub only_grad: Option<usize>,
    /// Gradients are written over inputs that allow it.
    pub alias: bool,
    /// What the workspace holds.
    pub garbage: u8,
    /// Element type of gradients; `None`: that of the input.
    pub grad_dtype: Option<DType>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            layout: Layout::Banded,
            accumulate: None,
            no_grads: false,
            only_grad: None,
            alias: false,
            garbage: 0xA5,
            grad_dtype: Some(DType::F32),
        }
    }
}

/// What a call gave.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Value.
    pub value: f64,
    /// By output port.
    pub metrics: Vec<f64>,
    /// By input port; empty when not asked for.
    pub grads: Vec<Vec<f64>>,
    /// Of the loss's own parameters.
    pub param_grads: Vec<Vec<f64>>,
    /// Guard bands and gaps are as before.
    pub intact: bool,
}

impl Answer {
    /// Every number.
    pub fn numbers(&self) -> impl Iterator<Item = f64> + '_ {
        let grads = self.grads.iter().chain(&self.param_grads).flatten();
        std::iter::once(&self.value).chain(&self.metrics).chain(grads).copied()
    }

    /// Bits of every number, for "the same".
    pub fn bits(&self) -> Vec<u64> {
        self.numbers().map(f64::to_bits).collect()
    }
}

/// Status and words of a refused call.
pub type Refused = (abi::Status, String);

/// A parameter of the loss.
struct Own {
    name: String,
    shape: Vec<i64>,
    init: String,
}

/// An active loss instance.
pub struct Rig {
    live: Live,
    loss: *const abi::Loss,
    /// Input and output ports.
    pub ports: Vec<Port>,
}

/// Owned copy of a raw port.
fn owned(port: &abi::Port) -> Result<Port, Miss> {
    use super::super::subject::text;
    let dtype = |i: usize| {
        // SAFETY: plugin memory of `num_dtypes` entries.
        DType::from_dl(unsafe { *port.dtypes.add(i) })
    };
    Ok(Port {
        name: text(port.name, "port.name")?,
        shape: text(port.shape, "port.shape")?,
        rows: text(port.rows, "port.rows")?,
        doc: text(port.doc, "port.doc")?,
        dtypes: (0..port.num_dtypes as usize).filter_map(dtype).collect(),
        flags: port.flags,
    })
}

impl Rig {
    /// Creates and activates the plugin under test.
    ///
    /// # Errors
    /// A skip when it cannot be created here.
    pub fn new(subject: &mut Subject) -> Result<Self, Miss> {
        let mut live = subject.create()?;
        let ports = live.ports()?.iter().map(owned).collect::<Result<_, _>>()?;
        (subject.doing)("activate");
        live.activate()?;
        let loss = live.interface::<abi::Loss>(abi::LOSS_ID);
        let loss = loss.ok_or_else(|| fail("lmb.loss/1", "NULL"))?;
        (subject.doing)("compute");
        Ok(Self { live, loss, ports })
    }

    /// An ordinary case with values for the loss's own parameters.
    ///
    /// # Errors
    /// The loss refuses to state its parameters.
    pub fn case(&self, rows: usize, optional: bool, draw: &mut Random) -> Result<Case, Miss> {
        let mut case = case::make(&self.ports, rows, optional, draw);
        self.settle(&mut case, rows, draw);
        for own in self.own_params(&case)? {
            let count = own.shape.iter().product::<i64>() as usize;
            case.params.push(initial(&own, count, draw));
        }
        Ok(case)
    }

    /// Some optional inputs exclude each other, or one of several is needed: looks for a set that `plan` accepts, from
    /// the case's own by leaving one out, then by adding one.
    fn settle(&self, case: &mut Case, rows: usize, draw: &mut Random) {
        let refused = |case: &Case| {
            let refusal = self.plan(case).err().map(|(status, _)| status);
            matches!(refusal, Some(abi::STATUS_INVALID_ARGUMENT | abi::STATUS_UNSUPPORTED))
        };
        if !refused(case) {
            return;
        }
        let full = case::make(&self.ports, rows, true, draw);
        let ports: Vec<&Port> = self.ports.iter().filter(|p| !p.is_output()).collect();
        let free: Vec<usize> = (0..ports.len()).filter(|i| ports[*i].is_optional()).collect();
        let with = |left: &[usize], added: &[usize]| {
            let mut other = case.clone();
            for index in left {
                other.inputs[*index] = None;
            }
            for index in added {
                other.inputs[*index].clone_from(&full.inputs[*index]);
            }
            other
        };
        let singles = free.iter().flat_map(|i| [with(&[*i], &[]), with(&[], &[*i])]);
        let pairs = free
            .iter()
            .flat_map(|i| free.iter().map(move |j| (*i, *j)))
            .map(|(i, j)| with(&[i, j], &[]));
        if let Some(accepted) = singles.chain(pairs).find(|c| !refused(c)) {
            *case = accepted;
        }
    }

    /// Optional inputs that the full set had to leave out.
    pub fn left_out(&self, case: &Case) -> Vec<String> {
        let inputs = self.ports.iter().filter(|p| !p.is_output());
        let out = inputs.zip(&case.inputs).filter(|(_, input)| input.is_none());
        out.map(|(port, _)| port.name.clone()).collect()
    }

    fn table(&self) -> &abi::Loss {
        // SAFETY: lives until destroy; `Tables` of 1.0 (the descriptor tier checks its size).
        unsafe { &*self.loss }
    }

    fn specs(case: &Case, ports: &[Port]) -> (Vec<Watched>, Vec<abi::Tensor>) {
        let inputs = ports.iter().filter(|p| !p.is_output());
        let mut memory = Vec::new();
        for input in case.inputs.iter().flatten() {
            memory.push(Watched::new(input.dtype, &input.shape, Layout::Banded));
        }
        let mut held = memory.iter();
        let view = |(port, input): (&Port, &Option<case::Input>)| match input {
            Some(_) => held.next().map_or_else(
                || crate::tensor::absent(&port.name),
                |m| {
                    let mut view =
                        m.view(&port.name, abi::TENSOR_SHAPE_ONLY | abi::TENSOR_READ_ONLY);
                    view.t.data = std::ptr::null_mut();
                    view
                },
            ),
            None => crate::tensor::absent(&port.name),
        };
        let views = inputs.zip(&case.inputs).map(view).collect();
        (memory, views)
    }

    fn own_params(&self, case: &Case) -> Result<Vec<Own>, Miss> {
        let Some(params) = self.table().params else { return Ok(Vec::new()) };
        let (_memory, specs) = Self::specs(case, &self.ports);
        let (slot, mut out, mut num) = (ErrorSlot::default(), std::ptr::null(), 0);
        // SAFETY: [step], active; arguments live during the call.
        let status = unsafe {
            let inputs = (specs.as_ptr(), specs.len() as u64);
            params(
                self.live.as_ptr(),
                inputs.0,
                inputs.1,
                &raw mut out,
                &raw mut num,
                slot.as_ptr(),
            )
        };
        if status != abi::STATUS_OK {
            return Err(fail("params to succeed", told(status, slot)));
        }
        let one = |i: usize| {
            // SAFETY: plugin memory of `num` entries until deactivate.
            let param: &abi::Param = unsafe { &*out.add(i) };
            let ndim = param.value.t.ndim as usize;
            // SAFETY: a spec's shape has `ndim` entries.
            let shape = (0..ndim).map(|d| unsafe { *param.value.t.shape.add(d) }).collect();
            let name = super::super::subject::text(param.value.name, "param.name")?;
            Ok(Own { name, shape, init: super::super::subject::text(param.init, "param.init")? })
        };
        (0..num as usize).map(one).collect()
    }

    fn plan(&self, case: &Case) -> Result<u64, Refused> {
        let (_memory, specs) = Self::specs(case, &self.ports);
        let (slot, mut bytes) = (ErrorSlot::default(), 0);
        // SAFETY: [step], active; arguments live during the call.
        let status = unsafe {
            let me = self.live.as_ptr();
            (self.table().plan)(
                me,
                specs.as_ptr(),
                specs.len() as u64,
                &raw mut bytes,
                slot.as_ptr(),
            )
        };
        if status == abi::STATUS_OK { Ok(bytes) } else { Err((status, told(status, slot))) }
    }

    /// Plans and computes with an ordinary set-up; every miss is a failure.
    ///
    /// # Errors
    /// The call is refused.
    pub fn evaluate(&self, case: &Case) -> Result<Answer, Miss> {
        self.with(case, Setup::default())
    }

    /// Plans and computes; every miss is a failure.
    ///
    /// # Errors
    /// The call is refused, or memory around a buffer changed.
    pub fn with(&self, case: &Case, setup: Setup) -> Result<Answer, Miss> {
        let answer = self
            .attempt(case, setup)
            .map_err(|(_, said)| fail(format!("compute to succeed for {}", case.words()), said))?;
        if answer.intact {
            return Ok(answer);
        }
        Err(fail(
            "writes inside the given buffers only",
            "bytes around a buffer or between rows changed",
        ))
    }

    /// Plans and computes.
    ///
    /// # Errors
    /// Status and words.
    pub fn attempt(&self, case: &Case, setup: Setup) -> Result<Answer, Refused> {
        let bytes = self.plan(case)?;
        let names: Vec<&str> =
            self.ports.iter().filter(|p| !p.is_output()).map(|p| p.name.as_str()).collect();
        let mut inputs = Vec::new();
        let mut grads = Vec::new();
        for (index, input) in case.inputs.iter().enumerate() {
            let memory =
                input.as_ref().map(|i| Watched::filled(i.dtype, &i.shape, setup.layout, &i.values));
            let wanted = input.as_ref().is_some_and(|i| i.differentiable) && !setup.no_grads;
            let wanted = wanted && setup.only_grad.is_none_or(|only| only == index);
            let aliased = setup.alias && input.as_ref().is_some_and(|i| i.may_alias);
            grads.push(input.as_ref().filter(|_| wanted && !aliased).map(|i| {
                let dtype = setup.grad_dtype.unwrap_or(i.dtype);
                let before = vec![setup.accumulate.unwrap_or(f64::NAN); i.values.len()];
                Watched::filled(dtype, &i.shape, setup.layout, &before)
            }));
            if let Some(memory) = &memory
                && !(aliased && wanted)
            {
                memory.lock();
            }
            inputs.push((memory, aliased && wanted));
        }
        self.call(case, setup, bytes, &names, &inputs, &grads)
    }

    fn call(
        &self,
        case: &Case,
        setup: Setup,
        workspace_bytes: u64,
        names: &[&str],
        inputs: &[(Option<Watched>, bool)],
        grads: &[Option<Watched>],
    ) -> Result<Answer, Refused> {
        let adding = if setup.accumulate.is_some() { abi::TENSOR_ACCUMULATE } else { 0 };
        let mut input_views = Vec::new();
        let mut grad_views = Vec::new();
        for ((name, (input, aliased)), grad) in names.iter().zip(inputs).zip(grads) {
            let read_only = if *aliased { 0 } else { abi::TENSOR_READ_ONLY };
            input_views
                .push(input.as_ref().map_or_else(|| garbage(name), |m| m.view(name, read_only)));
            grad_views.push(match (grad, input) {
                (Some(grad), _) => grad.view(name, adding),
                (None, Some(input)) if *aliased => input.view(name, 0),
                _ => garbage(name),
            });
        }
        let own = self.own_memory(case, setup)?;
        let param_views: Vec<_> =
            own.iter().map(|(n, p, _)| p.view(n, abi::TENSOR_READ_ONLY)).collect();
        let param_grad_views: Vec<_> = own
            .iter()
            .map(|(n, _, g)| if setup.no_grads { garbage(n) } else { g.view(n, adding) })
            .collect();
        let scalar = |_| Watched::filled(DType::F32, &[1], setup.layout, &[f64::NAN]);
        let value = scalar(0);
        let outputs: Vec<&Port> = self.ports.iter().filter(|p| p.is_output()).collect();
        let metrics: Vec<Watched> = (0..outputs.len()).map(scalar).collect();
        let value_view = value.view("value", 0);
        let metric_views: Vec<_> =
            metrics.iter().zip(&outputs).map(|(m, p)| m.view(&p.name, 0)).collect();
        let workspace = Workspace::new(workspace_bytes as usize, setup.garbage);
        let context = ctx([5, case.rows as u64]);
        let call = abi::LossCall {
            struct_size: abi::struct_size::<abi::LossCall>(),
            ctx: &raw const context,
            inputs: input_views.as_ptr(),
            num_inputs: input_views.len() as u64,
            grads: grad_views.as_ptr(),
            params: param_views.as_ptr(),
            param_grads: param_grad_views.as_ptr(),
            num_params: param_views.len() as u64,
            value: &raw const value_view,
            metrics: metric_views.as_ptr(),
            num_metrics: metric_views.len() as u64,
            normalizer: case.normalizer,
            grad_scale: case.grad_scale,
            workspace: workspace.start().cast(),
            workspace_bytes,
        };
        let slot = ErrorSlot::default();
        // SAFETY: [step], active, planned for these shapes; every view lives during the call.
        let status =
            unsafe { (self.table().compute)(self.live.as_ptr(), &raw const call, slot.as_ptr()) };
        if status != abi::STATUS_OK {
            return Err((status, told(status, slot)));
        }
        let aliased =
            inputs.iter().zip(grads).map(|((input, aliased), grad)| match (grad, input) {
                (Some(grad), _) => grad.read(),
                (None, Some(input)) if *aliased => input.read(),
                _ => Vec::new(),
            });
        let every = inputs.iter().filter_map(|(i, _)| i.as_ref()).chain(grads.iter().flatten());
        let every =
            every.chain(own.iter().flat_map(|(_, p, g)| [p, g])).chain(&metrics).chain([&value]);
        Ok(Answer {
            intact: every.fold(true, |all, m| all & m.is_intact()) && workspace.is_intact(),
            grads: aliased.collect(),
            value: value.read()[0],
            metrics: metrics.iter().map(|m| m.read()[0]).collect(),
            param_grads: if setup.no_grads {
                Vec::new()
            } else {
                own.iter().map(|(_, _, g)| g.read()).collect()
            },
        })
    }

    /// Name, value and gradient memory of each own parameter.
    fn own_memory(
        &self,
        case: &Case,
        setup: Setup,
    ) -> Result<Vec<(String, Watched, Watched)>, Refused> {
        let own = self
            .own_params(case)
            .map_err(|_| (abi::STATUS_INTERNAL, "params failed".to_owned()))?;
        let one = |(own, values): (Own, &Vec<f64>)| {
            let before = vec![setup.accumulate.unwrap_or(f64::NAN); values.len()];
            let value = Watched::filled(DType::F32, &own.shape, Layout::Banded, values);
            let grad = Watched::filled(DType::F32, &own.shape, Layout::Banded, &before);
            (own.name, value, grad)
        };
        Ok(own.into_iter().zip(&case.params).map(one).collect())
    }
}

/// An absent tensor whose pointers lead to nowhere.
fn garbage(name: &str) -> abi::Tensor {
    let mut tensor = crate::tensor::absent(name);
    tensor.t.data = std::ptr::without_provenance_mut(0x10);
    tensor
}

/// As the host would initialise it, with noise so that no gradient vanishes by symmetry.
fn initial(own: &Own, count: usize, draw: &mut Random) -> Vec<f64> {
    let columns = own.shape.last().copied().unwrap_or(1).max(1) as usize;
    let base = |i: usize| match own.init.as_str() {
        "ones" => 1.0,
        "eye" if i / columns == i % columns => 1.0,
        _ => 0.0,
    };
    (0..count).map(|i| base(i) + 0.3 * draw.normal()).collect()
}

/// Scratch memory of a call, aligned to 256 bytes, guarded on both sides.
struct Workspace {
    memory: Vec<u8>,
    at: usize,
    len: usize,
}

impl Workspace {
    const GUARD: u8 = 0x5A;

    fn new(len: usize, garbage: u8) -> Self {
        let mut memory = vec![Self::GUARD; len + 1024];
        let at = memory.as_ptr().align_offset(256) + 256;
        memory[at..at + len].fill(garbage);
        Self { memory, at, len }
    }

    fn start(&self) -> *mut u8 {
        self.memory.as_ptr().cast_mut().wrapping_add(self.at)
    }

    fn is_intact(&self) -> bool {
        let (before, rest) = self.memory.split_at(self.at);
        before.iter().chain(&rest[self.len..]).all(|b| *b == Self::GUARD)
    }
}
