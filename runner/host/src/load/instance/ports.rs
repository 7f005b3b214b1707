//! Ports and SHAPE_ONLY specs across the boundary.
//!
//! Refuses names and shapes that are not UTF-8, empty or doubled, and element types the host does not know.

use super::core::Core;
use super::{PluginError, Port};
use crate::tensor::{DType, TensorSpec, contiguous_strides};
use limbeck_abi as abi;

/// More ports than any real plugin has.
const MAX_PORTS: u64 = 65_536;

/// Asks the plugin for its ports and copies them.
pub(super) fn ask(core: &Core) -> Result<Vec<Port>, PluginError> {
    let (mut list, mut count) = (std::ptr::null(), 0u64);
    let ports = core.plugin().ports;
    // SAFETY: [main], places for the results alive during the call.
    core.call("ports", 0, |p, e| unsafe { ports(p, &mut list, &mut count, e) })?;
    if count > MAX_PORTS || (count > 0 && list.is_null()) {
        return Err(core.broke("ports", format!("{count} ports at {list:?}")));
    }
    let mut owned: Vec<Port> = Vec::with_capacity(count as usize);
    for i in 0..count as usize {
        // SAFETY: `list` has `count` entries, plugin memory until `destroy`.
        let port = unsafe { &*list.add(i) };
        // SAFETY: as above.
        let port = unsafe { copy(port) }
            .map_err(|text| core.broke("ports", format!("port {i}: {text}")))?;
        if owned.iter().any(|p| p.name == port.name && p.is_output() == port.is_output()) {
            return Err(core.broke("ports", format!("port `{}` twice", port.name)));
        }
        owned.push(port);
    }
    Ok(owned)
}

/// # Safety
/// A port of the plugin, alive.
unsafe fn copy(port: &abi::Port) -> Result<Port, String> {
    let text = |s: abi::Str, what: &str| {
        // SAFETY: R6, the caller's promise.
        unsafe { s.text() }.map(str::to_owned).ok_or_else(|| format!("{what} is not UTF-8"))
    };
    let name = text(port.name, "name")?;
    if name.is_empty() {
        return Err("no name".into());
    }
    if port.num_dtypes > 0 && port.dtypes.is_null() {
        return Err(format!("`{name}`: element types at NULL"));
    }
    let mut dtypes = Vec::new();
    for i in 0..port.num_dtypes.min(64) as usize {
        // SAFETY: `dtypes` has `num_dtypes` entries.
        let dl = unsafe { *port.dtypes.add(i) };
        // A type that this host does not know cannot be bound; the others can.
        dtypes.extend(DType::from_dl(dl));
    }
    if dtypes.is_empty() {
        return Err(format!("`{name}`: no element type that this host knows"));
    }
    Ok(Port {
        shape: text(port.shape, "shape")?,
        rows: text(port.rows, "rows")?,
        doc: text(port.doc, "doc")?,
        name,
        dtypes,
        flags: port.flags,
    })
}

/// Whether a shape has the axes that a port states: as many, numbers equal; symbols fit any size, `*` any shape.
pub(super) fn fits(pattern: &str, shape: &[i64]) -> bool {
    if pattern.trim() == "*" {
        return true;
    }
    let mut sizes = shape.iter();
    let axes = pattern.split(',').map(str::trim).filter(|axis| !axis.is_empty());
    for axis in axes {
        match (sizes.next(), axis.parse::<i64>()) {
            (None, _) => return false,
            (Some(size), Ok(number)) if *size != number => return false,
            _ => {}
        }
    }
    sizes.next().is_none()
}

/// SHAPE_ONLY views; they borrow `specs` and the strides kept here.
pub(super) struct SpecViews {
    pub tensors: Vec<abi::Tensor>,
    _strides: Vec<Vec<i64>>,
}

impl SpecViews {
    pub fn new<'a>(names: impl Iterator<Item = &'a Port>, specs: &'a [Option<TensorSpec>]) -> Self {
        let strides: Vec<Vec<i64>> = specs
            .iter()
            .map(|s| s.as_ref().map_or_else(Vec::new, |s| contiguous_strides(&s.shape)))
            .collect();
        let view = |((port, spec), strides): ((&Port, &Option<TensorSpec>), &Vec<i64>)| match spec {
            None => crate::tensor::absent(&port.name),
            Some(spec) => abi::Tensor {
                name: abi::Str::new(&port.name),
                t: abi::DLTensor {
                    data: std::ptr::null_mut(),
                    device: abi::DLDevice::CPU,
                    ndim: spec.shape.len() as i32,
                    dtype: spec.dtype.dl(),
                    shape: spec.shape.as_ptr().cast_mut(),
                    strides: strides.as_ptr().cast_mut(),
                    byte_offset: 0,
                },
                flags: abi::TENSOR_SHAPE_ONLY | abi::TENSOR_READ_ONLY,
                reserved: 0,
            },
        };
        let tensors = names.zip(specs).zip(&strides).map(view).collect();
        Self { tensors, _strides: strides }
    }
}
