//! Tier `loss`: value and gradients against differences, and everything the header says about a call.

mod case;
mod gradient;
mod outputs;
mod rig;
mod rows;

pub(super) use outputs::start;
pub(super) use rig::{Answer, Rig, Setup};

use super::Check;
use crate::load::catalogue::PluginKind;

const LOSS: &[PluginKind] = &[PluginKind::Loss];

/// f32 results that must agree up to rounding: linearity, accumulation, order of rows.
const ROUNDING: f64 = 2e-5;

/// Largest difference of two lists, relative to the larger of their norms.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let difference = norm(&mut a.iter().zip(b).map(|(x, y)| x - y));
    let size = norm(&mut a.iter().copied()).max(norm(&mut b.iter().copied()));
    if size == 0.0 { difference } else { difference / size.max(1e-30) }
}

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "loss.finite",
        clause: "LMB_OK means finite results for ordinary inputs",
        kinds: LOSS,
        run: outputs::finite,
    },
    Check {
        id: "loss.gradient",
        clause: "every gradient = grad_scale * d(value)",
        kinds: LOSS,
        run: gradient::differences,
    },
    Check {
        id: "loss.overwrite",
        clause: "unset ACCUMULATE: overwrite all of it",
        kinds: LOSS,
        run: outputs::overwrite,
    },
    Check {
        id: "loss.accumulate",
        clause: "LMB_TENSOR_ACCUMULATE: add to the buffer",
        kinds: LOSS,
        run: outputs::accumulate,
    },
    Check {
        id: "loss.grad-scale",
        clause: "grad_scale multiplies gradients, never the value",
        kinds: LOSS,
        run: outputs::grad_scale,
    },
    Check {
        id: "loss.normalizer",
        clause: "value and gradients are divided by normalizer",
        kinds: LOSS,
        run: outputs::normalizer,
    },
    Check {
        id: "loss.absent",
        clause: "LMB_TENSOR_ABSENT: `t` is garbage",
        kinds: LOSS,
        run: outputs::absent,
    },
    Check {
        id: "loss.optional",
        clause: "LMB_PORT_OPTIONAL may be left unbound",
        kinds: LOSS,
        run: outputs::optional,
    },
    Check {
        id: "loss.strided",
        clause: "strides and byte offsets of DLPack",
        kinds: LOSS,
        run: outputs::strided,
    },
    Check {
        id: "loss.bounds",
        clause: "R5: only the given buffers are touched",
        kinds: LOSS,
        run: outputs::bounds,
    },
    Check { id: "loss.alias", clause: "LMB_PORT_GRAD_MAY_ALIAS", kinds: LOSS, run: outputs::alias },
    Check {
        id: "loss.stateless",
        clause: "no state is kept between calls",
        kinds: LOSS,
        run: outputs::stateless,
    },
    Check {
        id: "loss.workspace",
        clause: "workspace contents are garbage",
        kinds: LOSS,
        run: outputs::workspace,
    },
    Check {
        id: "loss.memory",
        clause: "compute allocates nothing that stays",
        kinds: LOSS,
        run: outputs::memory,
    },
    Check {
        id: "loss.dtypes",
        clause: "accepted element types give the f32 result",
        kinds: LOSS,
        run: outputs::dtypes,
    },
    Check {
        id: "loss.empty",
        clause: "zero-sized dimensions are legal",
        kinds: LOSS,
        run: rows::empty,
    },
    Check { id: "loss.one-row", clause: "any number of rows", kinds: LOSS, run: rows::one },
    Check {
        id: "loss.additive",
        clause: "sum over counted items / normalizer",
        kinds: LOSS,
        run: rows::additive,
    },
    Check {
        id: "loss.permuted",
        clause: "sum over counted items / normalizer",
        kinds: LOSS,
        run: rows::permuted,
    },
    Check {
        id: "loss.ignored",
        clause: "label -100 or row_mask 0: not counted",
        kinds: LOSS,
        run: rows::ignored,
    },
    Check {
        id: "loss.extremes",
        clause: "finite, or LMB_NON_FINITE",
        kinds: LOSS,
        run: rows::extremes,
    },
    Check {
        id: "loss.refuses",
        clause: "plan checks shapes and dtypes",
        kinds: LOSS,
        run: rows::refuses,
    },
];
