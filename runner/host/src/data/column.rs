//! What a reader fills and a dataset keeps: numbers, labels, texts, a row each.
//!
//! Refuses values that the element type cannot hold, NaN and infinity, and labels that are no class. Every stored
//! number is finite.

use super::problem::CellError;
use crate::plan::{Column, TensorColumns, TensorPlan};
use crate::tensor::DType;
use half::{bf16, f16};

/// The label that no loss and no metric counts.
pub(super) const IGNORED: i64 = -100;

/// Largest whole number up to which f64 holds every whole number.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// What a dataset wants from its files; equal requests are read once.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    /// An entry of `tensors`.
    Numbers { name: String, tensor: TensorPlan },
    /// `label`.
    Label { column: Column, ignore: Option<i64> },
    /// `text` or its pair; no column in a file of lines.
    Text { column: Column },
}

impl Request {
    /// An empty column for it.
    pub(super) fn builder(&self) -> Builder {
        match self {
            Self::Numbers { tensor, .. } => Builder::Numbers(Numbers {
                dtype: tensor.dtype,
                scale: tensor.scale,
                row_shape: tensor.shape.clone(),
                bytes: Vec::new(),
            }),
            Self::Label { ignore, .. } => {
                Builder::Labels(Labels { ignore: *ignore, values: Vec::new() })
            }
            Self::Text { .. } => Builder::Texts(Texts::default()),
        }
    }

    /// The one column it names; `None` for a range.
    pub(super) fn column(&self) -> Option<&Column> {
        match self {
            Self::Numbers { tensor, .. } => match &tensor.columns {
                Some(TensorColumns::Named(column)) => Some(column),
                _ => None,
            },
            Self::Label { column, .. } | Self::Text { column } => Some(column),
        }
    }

    /// For messages: `labels`, or the batch column.
    pub(super) fn target(&self) -> &str {
        match self {
            Self::Numbers { name, .. } => name,
            Self::Label { .. } => "labels",
            Self::Text { .. } => "input_ids",
        }
    }
}

/// A column as users name it.
pub(super) fn column_name(column: &Column) -> String {
    match column {
        Column::Name(name) => format!("`{name}`"),
        Column::Index(index) => index.to_string(),
    }
}

/// A column while it is read, and after.
pub(super) enum Builder {
    Numbers(Numbers),
    Labels(Labels),
    Texts(Texts),
}

/// Numbers of one element type, as bytes in native order.
pub(super) struct Numbers {
    pub(super) dtype: DType,
    scale: f64,
    /// Shape of a row; known after the first row at the latest.
    pub(super) row_shape: Option<Vec<usize>>,
    pub(super) bytes: Vec<u8>,
}

/// Extends `$bytes` by every scaled value; `$fits` says whether the type holds it.
macro_rules! extend {
    ($self:ident, $values:ident, $type:ty, $cast:expr, $fits:expr) => {{
        $self.bytes.reserve($values.len() * size_of::<$type>());
        for (cell, value) in $values.iter().enumerate() {
            let scaled = *value * $self.scale;
            let element: $type = $cast(scaled);
            if !$fits(scaled, element) {
                return Err($self.does_not_fit(cell, *value, scaled));
            }
            $self.bytes.extend_from_slice(&element.to_ne_bytes());
        }
    }};
}

impl Numbers {
    /// Adds a row. The first fixes the number of values, if `shape` does not.
    pub(super) fn push(&mut self, values: &[f64]) -> Result<(), CellError> {
        if values.is_empty() {
            return Err(CellError::new("LMB0508", "no values"));
        }
        let shape = self.row_shape.get_or_insert_with(|| vec![values.len()]);
        let expected: usize = shape.iter().product();
        if expected != values.len() {
            let shape = shape.clone();
            return Err(CellError::new(
                "LMB0508",
                format!("{} values, but shape {shape:?} needs {expected}", values.len()),
            ));
        }
        let whole = |range: std::ops::RangeInclusive<f64>| {
            move |v: f64| v.fract() == 0.0 && range.contains(&v)
        };
        match self.dtype {
            DType::F32 => extend!(self, values, f32, |v| v as f32, |_, e: f32| e.is_finite()),
            DType::F64 => extend!(self, values, f64, |v| v, |_, e: f64| e.is_finite()),
            DType::F16 => extend!(self, values, f16, f16::from_f64, |_, e: f16| e.is_finite()),
            DType::BF16 => extend!(self, values, bf16, bf16::from_f64, |_, e: bf16| e.is_finite()),
            DType::I64 => {
                let fits = whole(-EXACT + 1.0..=EXACT - 1.0);
                extend!(self, values, i64, |v| v as i64, |v, _| fits(v));
            }
            DType::I32 => {
                let fits = whole(f64::from(i32::MIN)..=f64::from(i32::MAX));
                extend!(self, values, i32, |v| v as i32, |v, _| fits(v));
            }
            DType::U8 => {
                let fits = whole(0.0..=255.0);
                extend!(self, values, u8, |v| v as u8, |v, _| fits(v));
            }
            DType::U32 => {
                let fits = whole(0.0..=f64::from(u32::MAX));
                extend!(self, values, u32, |v| v as u32, |v, _| fits(v));
            }
        }
        Ok(())
    }

    fn does_not_fit(&self, cell: usize, value: f64, scaled: f64) -> CellError {
        let dtype = self.dtype.name();
        let message = if !value.is_finite() {
            format!("{value} is not a finite number")
        } else if value == scaled {
            format!("{value} is no value of type {dtype}")
        } else {
            format!("{value} times scale is {scaled}, no value of type {dtype}")
        };
        CellError { cell, ..CellError::new("LMB0506", message) }
    }

    /// Bytes of one row.
    pub(super) fn row_bytes(&self) -> usize {
        self.row_shape.as_ref().map_or(0, |s| s.iter().product::<usize>()) * self.dtype.bytes()
    }
}

/// Class numbers, `IGNORED` for rows that do not count.
pub(super) struct Labels {
    ignore: Option<i64>,
    pub(super) values: Vec<i64>,
}

impl Labels {
    pub(super) fn push(&mut self, label: i64) -> Result<(), CellError> {
        let value = if self.ignore == Some(label) { IGNORED } else { label };
        if value < 0 && value != IGNORED {
            return Err(CellError::new("LMB0507", format!("label {label} is negative"))
                .help(format!("classes are 0, 1, …; if {label} marks rows without a label, set `ignore_label: {label}`")));
        }
        self.values.push(value);
        Ok(())
    }

    /// A label that is stored as a number of any kind.
    pub(super) fn push_number(&mut self, label: f64) -> Result<(), CellError> {
        if label.fract() != 0.0 || label.is_nan() || label.abs() >= EXACT {
            return Err(CellError::new("LMB0507", format!("label {label} is no whole number")));
        }
        self.push(label as i64)
    }

    /// A label that is stored as text: a number, never a name.
    pub(super) fn push_text(&mut self, label: &[u8]) -> Result<(), CellError> {
        match parse_number(label) {
            Some(number) => self.push_number(number),
            None if label.trim_ascii().is_empty() => {
                Err(CellError::new("LMB0518", "the label is missing"))
            }
            None => Err(CellError::new(
                "LMB0507",
                format!("label `{}` is no class number", super::problem::shown(label)),
            )
            .help(
                "write classes as 0, 1, …: names would be numbered by what a file happens to hold",
            )),
        }
    }
}

/// Texts, end to end.
#[derive(Default)]
pub(super) struct Texts {
    text: String,
    ends: Vec<usize>,
}

impl Texts {
    pub(super) fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// A text that must be UTF-8; the error's cell is the byte that is not.
    pub(super) fn push_bytes(&mut self, text: &[u8]) -> Result<(), CellError> {
        match std::str::from_utf8(text) {
            Ok(text) => {
                self.push(text);
                Ok(())
            }
            Err(e) => Err(CellError::new(
                "LMB0504",
                format!("`{}` is not UTF-8 text", super::problem::shown(text)),
            )
            .help(format!("byte {} of the value; save the file as UTF-8", e.valid_up_to() + 1))),
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.ends.len()
    }

    /// A text by row; empty for a row that is not there.
    pub(super) fn get(&self, row: usize) -> &str {
        let from = row.checked_sub(1).and_then(|r| self.ends.get(r)).copied().unwrap_or(0);
        self.ends.get(row).and_then(|to| self.text.get(from..*to)).unwrap_or_default()
    }
}

impl Builder {
    /// A value that is one number.
    pub(super) fn push_number(&mut self, value: f64) -> Result<(), CellError> {
        match self {
            Self::Numbers(numbers) => numbers.push(&[value]),
            Self::Labels(labels) => labels.push_number(value),
            Self::Texts(_) => {
                Err(CellError::new("LMB0509", format!("{value} is a number, expected text")))
            }
        }
    }

    /// Several numbers.
    pub(super) fn push_numbers(&mut self, values: &[f64]) -> Result<(), CellError> {
        match self {
            Self::Numbers(numbers) => numbers.push(values),
            Self::Labels(labels) => match values {
                [one] => labels.push_number(*one),
                _ => Err(CellError::new(
                    "LMB0507",
                    format!("{} values, expected one label", values.len()),
                )),
            },
            Self::Texts(_) => Err(CellError::new("LMB0509", "a list of numbers, expected text")),
        }
    }

    /// Text: taken as text, a label, or one number.
    pub(super) fn push_text(&mut self, text: &[u8]) -> Result<(), CellError> {
        match self {
            Self::Numbers(numbers) => numbers.push(&[number(text)?]),
            Self::Labels(labels) => labels.push_text(text),
            Self::Texts(texts) => texts.push_bytes(text),
        }
    }
}

/// A number of a text file.
pub(super) fn number(text: &[u8]) -> Result<f64, CellError> {
    parse_number(text).ok_or_else(|| {
        if text.trim_ascii().is_empty() {
            CellError::new("LMB0518", "the value is missing")
        } else {
            CellError::new("LMB0506", format!("`{}` is not a number", super::problem::shown(text)))
        }
    })
}

/// Correctly rounded, like `str::parse`; short decimals go the fast way (Clinger 1990: both operands exact).
pub(super) fn parse_number(text: &[u8]) -> Option<f64> {
    const POWERS: [f64; 16] =
        [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15];
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    if digits.is_empty() || digits.len() > 16 {
        return slow_number(text);
    }
    let (mut mantissa, mut decimals, mut point) = (0u64, 0usize, false);
    for byte in digits {
        match byte {
            b'0'..=b'9' => {
                mantissa = mantissa * 10 + u64::from(byte - b'0');
                decimals += usize::from(point);
            }
            b'.' if !point => point = true,
            _ => return slow_number(text),
        }
    }
    let has_digits = digits.len() > usize::from(point);
    match POWERS.get(decimals) {
        Some(power) if has_digits && (mantissa as f64) < EXACT => {
            let value = mantissa as f64 / power;
            Some(if negative { -value } else { value })
        }
        _ => slow_number(text),
    }
}

#[cold]
fn slow_number(text: &[u8]) -> Option<f64> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_numbers_equal_the_standard_parser_bit_for_bit() {
        let mut random = crate::run::random::Random::new([3, 5]);
        for i in 0..200_000u32 {
            let digits = random.next_u64() % 10u64.pow(1 + i % 17);
            let mut text = digits.to_string();
            if i % 3 > 0 {
                text.insert((random.below(text.len() as u64 + 1)) as usize, '.');
            }
            if i % 2 == 0 {
                text.insert(0, '-');
            }
            let expected = text.parse::<f64>().ok();
            assert_eq!(
                parse_number(text.as_bytes()).map(f64::to_bits),
                expected.map(f64::to_bits),
                "{text}"
            );
        }
        for text in ["", "-", ".", "-.", "1e", "1..2", "0x10", "1,5", "--1", "1 2", "e5"] {
            assert_eq!(parse_number(text.as_bytes()), None, "{text}");
        }
        assert_eq!(parse_number(b" 7.5 "), Some(7.5));
        assert_eq!(parse_number(b"1e-3"), Some(0.001));
    }

    fn numbers(dtype: DType, scale: f64) -> Numbers {
        Numbers { dtype, scale, row_shape: None, bytes: Vec::new() }
    }

    #[test]
    fn values_outside_the_type_are_refused_with_their_position() {
        for (dtype, bad) in [
            (DType::F32, 1e39),
            (DType::F16, 70_000.0),
            (DType::U8, 256.0),
            (DType::U8, 1.5),
            (DType::I32, 3e9),
            (DType::I64, 1e16),
            (DType::F64, f64::NAN),
            (DType::BF16, f64::INFINITY),
            (DType::U32, -1.0),
        ] {
            let mut column = numbers(dtype, 1.0);
            let error = column.push(&[1.0, bad]).unwrap_err();
            assert_eq!((error.code, error.cell), ("LMB0506", 1), "{dtype:?} {bad}");
        }
        let mut column = numbers(DType::U8, 2.0);
        let error = column.push(&[200.0]).unwrap_err();
        assert_eq!(error.message, "200 times scale is 400, no value of type u8");
    }

    #[test]
    fn rows_of_another_width_are_refused() {
        let mut column = numbers(DType::F32, 1.0);
        column.push(&[1.0, 2.0]).unwrap();
        assert_eq!(column.push(&[1.0]).unwrap_err().code, "LMB0508");
        let mut column = Numbers { row_shape: Some(vec![2, 3]), ..numbers(DType::F32, 1.0) };
        assert_eq!(
            column.push(&[0.0; 5]).unwrap_err().message,
            "5 values, but shape [2, 3] needs 6"
        );
    }

    #[test]
    fn labels_are_classes_or_ignored() {
        let mut labels = Labels { ignore: Some(255), values: Vec::new() };
        labels.push(3).unwrap();
        labels.push(255).unwrap();
        labels.push(-100).unwrap();
        labels.push_text(b"4.0").unwrap();
        assert_eq!(labels.values, [3, -100, -100, 4]);
        assert_eq!(labels.push(-1).unwrap_err().code, "LMB0507");
        assert_eq!(labels.push_number(f64::NAN).unwrap_err().code, "LMB0507");
        assert_eq!(labels.push_number(0.5).unwrap_err().code, "LMB0507");
        assert_eq!(labels.push_text(b"cat").unwrap_err().code, "LMB0507");
        assert_eq!(labels.push_text(b" ").unwrap_err().code, "LMB0518");
    }

    #[test]
    fn texts_come_back_by_row() {
        let mut texts = Texts::default();
        texts.push("a");
        texts.push("");
        texts.push("bc");
        assert_eq!([texts.get(0), texts.get(1), texts.get(2), texts.get(3)], ["a", "", "bc", ""]);
    }
}
