//! Where a run computes: `device` of the pipeline, against what the plugins can and what the machine has.
//!
//! Asks the driver what there is and opens nothing.

use super::wiring::LoadedTeacher;
use super::{Instance, Loaded, codes};
use crate::device;
use crate::diagnostic::Diagnostic;
use crate::plan::{DeviceChoice, Plan, StagePlan};
use crate::tensor::DType;
use limbeck_abi::DLDevice;

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// The device of every instance.
    pub device: DLDevice,
    /// Name and bytes of memory of a GPU.
    pub gpu: Option<(String, u64)>,
    /// `auto` took the CPU: why no GPU.
    pub why_not: Option<String>,
}

impl Loaded {
    /// Where a plan computes that says `device: {choice}`.
    ///
    /// # Errors
    /// A GPU that is asked for and cannot be used (69).
    pub fn place(&self, choice: DeviceChoice) -> Result<Place, Diagnostic> {
        let cpu = |why_not| Place { device: DLDevice::CPU, gpu: None, why_not };
        let found = |n| {
            let device = device::cuda(n);
            device::describe(device).map(|gpu| Place { device, gpu: Some(gpu), why_not: None })
        };
        match choice {
            DeviceChoice::Cpu => Ok(cpu(None)),
            DeviceChoice::Cuda(n) => found(n).map_err(|e| unavailable(n, &e.message)),
            DeviceChoice::Auto => Ok(match &self.only_on_cpu {
                Some(id) => cpu(Some(format!("`{id}` does not compute on GPUs"))),
                None => found(0).unwrap_or_else(|e| cpu(Some(e.message))),
            }),
        }
    }

    /// As [`Loaded::place`]; from then on every instance activates there, and this thread is its step thread.
    ///
    /// # Errors
    /// As [`Loaded::place`]; a device that does not open.
    pub fn settle(&mut self, choice: DeviceChoice) -> Result<Place, Diagnostic> {
        let place = self.place(choice)?;
        device::open(place.device).map_err(|e| Diagnostic::error(codes::NO_DEVICE, e.message))?;
        for instance in self.instances_mut() {
            instance.set_device(place.device);
        }
        Ok(place)
    }

    /// Every instance of every stage.
    pub fn instances(&self) -> impl Iterator<Item = &Instance> {
        let of_stages = self.stages.iter().flatten().flat_map(|stage| {
            let teachers = stage.teachers.iter().filter_map(LoadedTeacher::instance);
            let models = std::iter::once(&stage.student).chain(teachers);
            let losses = stage.terms.iter().map(|t| &t.instance);
            let schedulers = stage.schedulers.iter().map(|s| &s.instance);
            let snapshots = stage.snapshots.iter().map(|s| &s.instance);
            models.chain(losses).chain(schedulers).chain(snapshots)
        });
        of_stages.chain(self.captures.iter().flatten().map(|capture| &capture.teacher))
    }

    fn instances_mut(&mut self) -> impl Iterator<Item = &mut Instance> {
        let of_stages = self.stages.iter_mut().flatten().flat_map(|stage| {
            let teachers = stage.teachers.iter_mut().filter_map(LoadedTeacher::instance_mut);
            let models = std::iter::once(&mut stage.student).chain(teachers);
            let losses = stage.terms.iter_mut().map(|t| &mut t.instance);
            let schedulers = stage.schedulers.iter_mut().map(|s| &mut s.instance);
            let snapshots = stage.snapshots.iter_mut().map(|s| &mut s.instance);
            models.chain(losses).chain(schedulers).chain(snapshots)
        });
        of_stages.chain(self.captures.iter_mut().flatten().map(|capture| &mut capture.teacher))
    }
}

impl Place {
    /// A plan that asks for bf16 and came to the CPU by `auto`; one that names the CPU was warned when it was read.
    pub fn warning(&self, plan: &Plan) -> Option<Diagnostic> {
        let trains = |s: &StagePlan| s.training().is_some_and(|t| t.dtype == DType::BF16);
        let is_single = self.why_not.is_some() && plan.stages.iter().any(trains);
        is_single.then(|| {
            Diagnostic::warning(
                codes::SINGLE,
                "`dtype: bf16` is f32 on the CPU, where `device: auto` came to",
            )
        })
    }
}

/// A GPU that is asked for and cannot be used.
pub fn unavailable(n: u32, why: &str) -> Diagnostic {
    Diagnostic::error(codes::NO_DEVICE, format!("device `cuda:{n}` is not available"))
        .note(why)
        .help("use `device: cpu`, or `device: auto`, which takes a GPU if there is one")
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&device::name(self.device))?;
        match &self.gpu {
            Some((name, bytes)) => {
                write!(f, " ({name}, {:.1} GiB)", *bytes as f64 / f64::from(1 << 30))
            }
            None => Ok(()),
        }
    }
}
