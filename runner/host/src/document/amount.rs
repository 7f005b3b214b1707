//! Amounts: `500 steps`, `2 epochs`, `10 min`, `6%`, `2 GiB`, `8/255`.
//!
//! A number and a unit, a space between them or not. Refuses unknown units, negative amounts and parts of a step.
//! [`Amount::to_string`] gives a text that [`parse`] reads as the same amount.

use std::fmt;
use std::time::Duration;

/// A quantity with its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Optimizer steps.
    Steps(u64),
    /// Passes over the rows.
    Epochs(u64),
    /// Wall time.
    Time(Duration),
    /// Percent, as a fraction of 1.
    Percent(f64),
    /// Bytes.
    Bytes(u64),
    /// A bare number or a fraction such as `8/255`.
    Number(f64),
}

/// Why a text is no amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// No number at the start.
    #[error("no number at the start")]
    NoNumber,
    /// A unit that nobody knows.
    #[error("unknown unit `{0}`")]
    Unit(String),
    /// Steps, epochs and bytes are whole.
    #[error("{0} must be a whole number")]
    Whole(&'static str),
    /// Negative, infinite or too large.
    #[error("out of range")]
    Range,
}

/// Reads an amount.
///
/// # Errors
/// [`AmountError`].
pub fn parse(text: &str) -> Result<Amount, AmountError> {
    let text = text.trim();
    let split = text
        .char_indices()
        .find(|(_, c)| !c.is_ascii_digit() && !matches!(c, '.' | '-' | '+'))
        .map_or(text.len(), |(i, _)| i);
    let (digits, rest) = exponent(text, split);
    let number: f64 = digits.parse().map_err(|_| AmountError::NoNumber)?;
    if !number.is_finite() || (number < 0.0 && !rest.is_empty()) {
        return Err(AmountError::Range);
    }
    let unit = rest.trim();
    if let Some(divisor) = unit.strip_prefix('/') {
        let divisor: f64 = divisor.trim().parse().map_err(|_| AmountError::NoNumber)?;
        let ratio = number / divisor;
        return if ratio.is_finite() { Ok(Amount::Number(ratio)) } else { Err(AmountError::Range) };
    }
    with_unit(number, unit)
}

/// `1e-4` has an `e` that is no unit.
fn exponent(text: &str, split: usize) -> (&str, &str) {
    let rest = &text[split..];
    let Some(after) = rest.strip_prefix(['e', 'E']) else { return (&text[..split], rest) };
    let sign = usize::from(after.starts_with(['+', '-']));
    let digits = after[sign..].bytes().take_while(u8::is_ascii_digit).count();
    let end = if digits == 0 { split } else { split + 1 + sign + digits };
    (&text[..end], &text[end..])
}

fn with_unit(number: f64, unit: &str) -> Result<Amount, AmountError> {
    Ok(match unit {
        "" => Amount::Number(number),
        "step" | "steps" => Amount::Steps(whole(number, "steps")?),
        "epoch" | "epochs" => Amount::Epochs(whole(number, "epochs")?),
        "%" => Amount::Percent(number / 100.0),
        "ms" => seconds(number / 1e3)?,
        "s" | "sec" | "second" | "seconds" => seconds(number)?,
        "m" | "min" | "minute" | "minutes" => seconds(number * 60.0)?,
        "h" | "hour" | "hours" => seconds(number * 3600.0)?,
        "d" | "day" | "days" => seconds(number * 86400.0)?,
        "B" => Amount::Bytes(whole(number, "bytes")?),
        "kB" | "KB" => bytes(number, 1e3)?,
        "MB" => bytes(number, 1e6)?,
        "GB" => bytes(number, 1e9)?,
        "KiB" => bytes(number, 1024.0)?,
        "MiB" => bytes(number, 1024.0 * 1024.0)?,
        "GiB" => bytes(number, 1024.0 * 1024.0 * 1024.0)?,
        _ => return Err(AmountError::Unit(unit.chars().take(20).collect())),
    })
}

fn whole(number: f64, what: &'static str) -> Result<u64, AmountError> {
    // Above 2^53 a float no longer tells neighbours apart.
    match number {
        n if n.fract() != 0.0 => Err(AmountError::Whole(what)),
        n if (0.0..=9_007_199_254_740_992.0).contains(&n) => Ok(n as u64),
        _ => Err(AmountError::Range),
    }
}

fn bytes(number: f64, unit: f64) -> Result<Amount, AmountError> {
    whole((number * unit).round(), "bytes").map(Amount::Bytes)
}

fn seconds(number: f64) -> Result<Amount, AmountError> {
    Duration::try_from_secs_f64(number).map(Amount::Time).map_err(|_| AmountError::Range)
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Steps(n) => write!(f, "{n} steps"),
            Self::Epochs(n) => write!(f, "{n} epochs"),
            Self::Time(t) if t.as_secs() % 60 == 0 && t.subsec_nanos() == 0 => {
                write!(f, "{} min", t.as_secs() / 60)
            }
            Self::Time(t) => write!(f, "{} s", t.as_secs_f64()),
            Self::Percent(p) => write!(f, "{}%", p * 100.0),
            Self::Bytes(n) => write!(f, "{n} B"),
            Self::Number(n) => write!(f, "{n}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_amount_is_read() {
        let cases = [
            ("500 steps", Amount::Steps(500)),
            ("1 step", Amount::Steps(1)),
            ("2 epochs", Amount::Epochs(2)),
            ("10 min", Amount::Time(Duration::from_secs(600))),
            ("4h", Amount::Time(Duration::from_secs(4 * 3600))),
            ("1.5 s", Amount::Time(Duration::from_millis(1500))),
            ("6%", Amount::Percent(0.06)),
            ("2 GiB", Amount::Bytes(2 << 30)),
            ("1.5 GB", Amount::Bytes(1_500_000_000)),
            ("8/255", Amount::Number(8.0 / 255.0)),
            ("1e-4", Amount::Number(1e-4)),
            ("1e3 steps", Amount::Steps(1000)),
            ("-3", Amount::Number(-3.0)),
        ];
        for (text, amount) in cases {
            assert_eq!(parse(text), Ok(amount), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_says_why() {
        assert_eq!(parse("steps"), Err(AmountError::NoNumber));
        assert_eq!(parse(""), Err(AmountError::NoNumber));
        assert_eq!(parse("5 stepz"), Err(AmountError::Unit("stepz".into())));
        assert_eq!(parse("1.5 steps"), Err(AmountError::Whole("steps")));
        assert_eq!(parse("-5 steps"), Err(AmountError::Range));
        assert_eq!(parse("1e300 steps"), Err(AmountError::Range));
        assert_eq!(parse("1e300 days"), Err(AmountError::Range));
        assert_eq!(parse("1/0"), Err(AmountError::Range));
        assert_eq!(parse("5 é"), Err(AmountError::Unit("é".into())));
    }

    #[test]
    fn a_written_amount_is_read_back() {
        for text in ["500 steps", "3 epochs", "10 min", "90 s", "6%", "1024 B", "0.25"] {
            let amount = parse(text).expect("an amount");
            assert_eq!(parse(&amount.to_string()), Ok(amount), "{text}");
        }
    }
}
