//! The learning rate of a step.
//!
//! A pure function of the plan and the place in the task; nothing to save.

use crate::plan::{LrCurve, LrSchedulePlan, Warmup};

/// Factor of the peak learning rate at step `step` (from 0) of `total`.
///
/// Warm-up over w steps: `(step + 1) / w`, so that the first step already moves. Then, with
/// `x = (step - w) / (total - w)`: constant 1; linear `1 - x`; cosine `(1 + cos(pi x)) / 2` (Loshchilov & Hutter 2017).
pub fn factor(schedule: &LrSchedulePlan, step: u64, total: u64) -> f64 {
    let warmup = match schedule.warmup {
        Warmup::Steps(steps) => steps,
        Warmup::Fraction(part) => (part * total as f64).round() as u64,
    };
    if step < warmup {
        return (step + 1) as f64 / warmup as f64;
    }
    let rest = total.saturating_sub(warmup).max(1);
    let x = ((step - warmup) as f64 / rest as f64).min(1.0);
    match schedule.kind {
        LrCurve::Constant => 1.0,
        LrCurve::Linear => 1.0 - x,
        LrCurve::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * x).cos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(kind: LrCurve, warmup: Warmup, step: u64, total: u64) -> f64 {
        factor(&LrSchedulePlan { kind, warmup }, step, total)
    }

    #[test]
    fn warmup_rises_to_one_and_the_curve_falls_to_zero() {
        let warmup = Warmup::Fraction(0.1);
        assert_eq!(at(LrCurve::Linear, warmup, 0, 100), 0.1);
        assert_eq!(at(LrCurve::Linear, warmup, 9, 100), 1.0);
        assert_eq!(at(LrCurve::Linear, warmup, 10, 100), 1.0);
        assert_eq!(at(LrCurve::Linear, warmup, 55, 100), 0.5);
        assert!((at(LrCurve::Cosine, warmup, 55, 100) - 0.5).abs() < 1e-12);
        assert!(
            (at(LrCurve::Cosine, Warmup::Steps(0), 25, 100) - 0.853_553_390_593_273_8).abs()
                < 1e-12
        );
        assert_eq!(at(LrCurve::Constant, Warmup::Steps(0), 99, 100), 1.0);
    }

    #[test]
    fn odd_lengths_stay_in_range() {
        for kind in [LrCurve::Constant, LrCurve::Linear, LrCurve::Cosine] {
            for (warmup, step, total) in [(0, 0, 0), (5, 3, 2), (5, 9, 5), (2, 50, 10)] {
                let f = at(kind, Warmup::Steps(warmup), step, total);
                assert!((0.0..=1.0).contains(&f), "{kind:?} {warmup} {step} {total}: {f}");
            }
        }
    }
}
