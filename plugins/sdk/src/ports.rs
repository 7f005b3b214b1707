//! Ports: the named, shaped, typed inputs and outputs of a plugin.
//!
//! A port here is owned; [`Ports`] also keeps the arrays of the contract alive. Names follow R12 of `limbeck.h`.

use crate::{DType, Error, Result, View, Views};
use limbeck_abi as abi;

/// One port, under construction.
///
/// ```
/// # use limbeck_sdk::{DType, Port};
/// let logits = Port::input("student.logits", "N,V").differentiable().doc("scores before the softmax");
/// let labels = Port::input("labels", "N").dtypes(&[DType::I64]).optional();
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    name: String,
    shape: String,
    rows: String,
    doc: String,
    dtypes: Vec<DType>,
    flags: u64,
}

impl Port {
    /// An input of any floating-point type. `shape` is symbolic: `"N,V"`, `"B,T,768"`, `"*"`.
    pub fn input(name: impl Into<String>, shape: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            shape: shape.into(),
            rows: String::new(),
            doc: String::new(),
            dtypes: DType::FLOATS.to_vec(),
            flags: 0,
        }
    }

    /// An f32 output.
    pub fn output(name: impl Into<String>, shape: impl Into<String>) -> Self {
        let port = Self::input(name, shape).dtypes(&[DType::F32]);
        Self { flags: abi::PORT_OUTPUT, ..port }
    }

    fn flag(mut self, flag: u64) -> Self {
        self.flags |= flag;
        self
    }

    /// Accepted (input) or possible (output) element types.
    #[must_use]
    pub fn dtypes(mut self, dtypes: &[DType]) -> Self {
        self.dtypes = dtypes.to_vec();
        self
    }
    /// One line for `limbeck plugin info` and wiring errors.
    #[must_use]
    pub fn doc(mut self, doc: impl Into<String>) -> Self {
        self.doc = doc.into();
        self
    }
    /// May be left unbound: arrives as absent.
    #[must_use]
    pub fn optional(self) -> Self {
        self.flag(abi::PORT_OPTIONAL)
    }
    /// Input: its gradient can be produced. Output: a cotangent is accepted.
    #[must_use]
    pub fn differentiable(self) -> Self {
        self.flag(abi::PORT_DIFFERENTIABLE)
    }
    /// The gradient may be written over the input itself.
    #[must_use]
    pub fn grad_may_alias(self) -> Self {
        self.flag(abi::PORT_GRAD_MAY_ALIAS)
    }
    /// Output that never changes while active.
    #[must_use]
    pub fn constant(self) -> Self {
        self.flag(abi::PORT_CONSTANT)
    }
    /// Wants CPU memory whatever the instance's device.
    #[must_use]
    pub fn host_memory(self) -> Self {
        self.flag(abi::PORT_HOST_MEMORY)
    }
    /// Scheduler outputs: the row group whose rows the first axis counts.
    #[must_use]
    pub fn rows(mut self, group: impl Into<String>) -> Self {
        self.rows = group.into();
        self
    }

    /// Name.
    pub fn name(&self) -> &str {
        &self.name
    }
    /// Symbolic shape.
    pub fn shape(&self) -> &str {
        &self.shape
    }
    /// Whether it is an output.
    pub fn is_output(&self) -> bool {
        self.flags & abi::PORT_OUTPUT != 0
    }
    /// Whether it may be unbound.
    pub fn is_optional(&self) -> bool {
        self.flags & abi::PORT_OPTIONAL != 0
    }
    /// Whether gradients flow through it.
    pub fn is_differentiable(&self) -> bool {
        self.flags & abi::PORT_DIFFERENTIABLE != 0
    }
    /// Accepted or possible element types.
    pub fn element_types(&self) -> &[DType] {
        &self.dtypes
    }
    /// Whether the first axis counts rows or examples.
    pub fn has_row_axis(&self) -> bool {
        matches!(self.shape.split(',').next().map(str::trim), Some("N" | "B"))
    }
}

/// The ports of a plugin, inputs and outputs in any order; the order of the inputs is the order of [`Views`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ports {
    ports: Vec<Port>,
}

impl Ports {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }
    /// All inputs in CPU memory whatever the instance's device.
    pub(crate) fn in_host_memory(self) -> Self {
        let at_home = |port: Port| if port.is_output() { port } else { port.host_memory() };
        Self { ports: self.ports.into_iter().map(at_home).collect() }
    }
    /// Adds a port.
    #[must_use]
    pub fn with(mut self, port: Port) -> Self {
        self.ports.push(port);
        self
    }
    /// A float input that gets no gradient.
    #[must_use]
    pub fn input(self, name: impl Into<String>, shape: impl Into<String>) -> Self {
        self.with(Port::input(name, shape))
    }
    /// A float input whose gradient the plugin produces.
    #[must_use]
    pub fn input_grad(self, name: impl Into<String>, shape: impl Into<String>) -> Self {
        self.with(Port::input(name, shape).differentiable())
    }
    /// An integer input (i64), for token ids and labels.
    #[must_use]
    pub fn input_ids(self, name: impl Into<String>, shape: impl Into<String>) -> Self {
        self.with(Port::input(name, shape).dtypes(&[DType::I64]))
    }
    /// An f32 output that takes no cotangent.
    #[must_use]
    pub fn output(self, name: impl Into<String>, shape: impl Into<String>) -> Self {
        self.with(Port::output(name, shape))
    }
    /// An f32 output that accepts a cotangent.
    #[must_use]
    pub fn output_grad(self, name: impl Into<String>, shape: impl Into<String>) -> Self {
        self.with(Port::output(name, shape).differentiable())
    }
    /// A metric of a loss: one f32, divided by the normalizer.
    #[must_use]
    pub fn metric(self, name: impl Into<String>, doc: impl Into<String>) -> Self {
        self.with(Port::output(name, "1").doc(doc))
    }
    /// The optional columns that decide which rows count and how much: `labels` (−100 is ignored), `row_mask` (0 is
    /// ignored) and `row_weights`. [`crate::LossCall::counted`] and `sum_rows` obey them.
    #[must_use]
    pub fn counting(self) -> Self {
        self.with(Port::input("labels", "N").dtypes(&[DType::I64]).optional().doc("-100: ignored"))
            .row_mask()
    }
    /// As [`Ports::counting`], for a loss that cannot do without labels.
    #[must_use]
    pub fn labelled(self) -> Self {
        self.with(Port::input("labels", "N").dtypes(&[DType::I64]).doc("class; -100: ignored"))
            .row_mask()
    }
    fn row_mask(self) -> Self {
        let mask = [DType::I64, DType::U8, DType::I32, DType::F32];
        let weights = [DType::F32, DType::F64];
        self.with(Port::input("row_mask", "N").dtypes(&mask).optional().doc("0: ignored")).with(
            Port::input("row_weights", "N").dtypes(&weights).optional().doc("factor of each row"),
        )
    }

    /// All ports.
    pub fn iter(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter()
    }
    /// The input ports in the order of [`Views`].
    pub fn inputs(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().filter(|p| !p.is_output())
    }
    /// The output ports in order.
    pub fn outputs(&self) -> impl Iterator<Item = &Port> {
        self.ports.iter().filter(|p| p.is_output())
    }
    /// Place of an input among the inputs.
    pub fn input_index(&self, name: &str) -> Option<usize> {
        self.inputs().position(|p| p.name == name)
    }

    /// Checks inputs against the ports: presence, element types, number of axes, fixed sizes, equal symbols.
    ///
    /// # Errors
    /// INVALID_ARGUMENT or UNSUPPORTED, naming the tensor and both sides.
    pub fn check(&self, inputs: &Views<'_>) -> Result<()> {
        let mut symbols: Vec<(&str, i64, &str)> = Vec::new();
        let wanted = self.inputs().count();
        if wanted != inputs.len() {
            let message = format!("{} inputs for {wanted} input ports", inputs.len());
            return Err(Error::invalid_argument(message));
        }
        for (i, port) in self.inputs().enumerate() {
            match inputs.get(i)? {
                Some(view) => port.check(&view, &mut symbols)?,
                None if port.is_optional() => {}
                None => {
                    let message = format!("required input `{}` is absent", port.name);
                    return Err(Error::invalid_argument(message).tensor(&port.name));
                }
            }
        }
        Ok(())
    }
}

impl Port {
    fn check<'p>(
        &'p self,
        view: &View<'_>,
        symbols: &mut Vec<(&'p str, i64, &'p str)>,
    ) -> Result<()> {
        if !self.dtypes.contains(&view.dtype()) {
            let names: Vec<_> = self.dtypes.iter().map(|t| t.name()).collect();
            let message =
                format!("`{}` takes {}, got {}", self.name, names.join(", "), view.dtype().name());
            return Err(Error::unsupported(message).tensor(&self.name));
        }
        if self.shape == "*" {
            return Ok(());
        }
        let axes: Vec<&str> = self.shape.split(',').map(str::trim).collect();
        if axes.len() != view.shape().len() {
            let message = format!("`{}` is [{}], got {:?}", self.name, self.shape, view.shape());
            return Err(Error::invalid_argument(message).tensor(&self.name));
        }
        for (axis, size) in
            axes.iter().zip(view.shape()).filter(|(axis, size)| **axis != "*" && **size >= 0)
        {
            let known = match axis.parse::<i64>() {
                Ok(fixed) => Some((fixed, self.name.as_str())),
                Err(_) => {
                    symbols.iter().find(|(s, ..)| s == axis).map(|(_, size, port)| (*size, *port))
                }
            };
            match known {
                None => symbols.push((axis, *size, &self.name)),
                Some((known, _)) if known == *size => {}
                Some((known, port)) => {
                    let message =
                        format!("{axis} is {size} in `{}` and {known} in `{port}`", self.name);
                    return Err(Error::invalid_argument(message).tensor(&self.name));
                }
            }
        }
        Ok(())
    }
}

/// [`Ports`] with the arrays of the contract, at fixed addresses.
pub(crate) struct PortTable {
    pub(crate) ports: Ports,
    /// Boxed so that the pointers in `abi` hold when the table moves.
    _dtypes: Vec<Box<[abi::DLDataType]>>,
    pub(crate) abi: Box<[abi::Port]>,
}

impl PortTable {
    pub(crate) fn new(ports: Ports) -> Self {
        let dtypes: Vec<Box<[abi::DLDataType]>> =
            ports.ports.iter().map(|p| p.dtypes.iter().map(|t| t.dl()).collect()).collect();
        let abi = ports.ports.iter().zip(&dtypes).map(|(port, dtypes)| abi::Port {
            // The strings' heap memory does not move with the table.
            name: abi::Str::new(&port.name),
            shape: abi::Str::new(&port.shape),
            rows: abi::Str::new(&port.rows),
            doc: abi::Str::new(&port.doc),
            dtypes: dtypes.as_ptr(),
            num_dtypes: dtypes.len() as u64,
            flags: port.flags,
            reserved: 0,
        });
        let abi = abi.collect();
        Self { ports, _dtypes: dtypes, abi }
    }
}

// SAFETY: plain owned data; the pointers lead into the table itself.
unsafe impl Send for PortTable {}
