//! A fixed change of a row's values, made when the row enters a batch: permuted and rotated variants of one set of images
//! cost no memory of their own (Goodfellow et al. 2013, permuted digits; Lopez-Paz and Ranzato 2017, rotated ones).

use super::column::Numbers;
use crate::plan::{TensorPlan, Transform};
use crate::run::random::{Purpose, Random, key};
use crate::tensor::DType;

/// What is done to each row.
pub(super) enum Change {
    /// Value `k` comes from place `from[k]`; bytes of a value.
    Permute { from: Vec<usize>, size: usize },
    /// Value `k` is the sum of four values by their weights, in f32.
    Rotate32(Vec<[(usize, f32); 4]>),
    /// The same in f64.
    Rotate64(Vec<[(usize, f64); 4]>),
}

impl Change {
    /// The change that a tensor asks for.
    ///
    /// # Errors
    /// A rotation of what is no image of floats.
    pub(super) fn of(plan: &TensorPlan, numbers: &Numbers) -> Result<Option<Self>, String> {
        let shape = numbers.row_shape.clone().unwrap_or_default();
        let count: usize = shape.iter().product();
        match plan.transform {
            None => Ok(None),
            Some(Transform::Permute(number)) => {
                let mut from: Vec<usize> = (0..count).collect();
                Random::new(key(Purpose::Permute, &[number])).shuffle(&mut from);
                let size = numbers.row_bytes() / count.max(1);
                Ok(Some(Self::Permute { from, size }))
            }
            Some(Transform::Rotate(degrees)) => {
                let (channels, height, width) = match shape[..] {
                    [height, width] => (1, height, width),
                    [channels, height, width] => (channels, height, width),
                    // A flat row of a square number of values.
                    [count] if count.isqrt() * count.isqrt() == count => {
                        (1, count.isqrt(), count.isqrt())
                    }
                    _ => {
                        return Err(format!(
                            "`rotate` needs images: `shape: [height, width]`, [channels, height, width] or a square number of values, found {shape:?}"
                        ));
                    }
                };
                let taps = taps(degrees, channels, height, width);
                match numbers.dtype {
                    DType::F32 => {
                        let narrow = |tap: [(usize, f64); 4]| tap.map(|(at, w)| (at, w as f32));
                        Ok(Some(Self::Rotate32(taps.into_iter().map(narrow).collect())))
                    }
                    DType::F64 => Ok(Some(Self::Rotate64(taps))),
                    other => {
                        Err(format!("`rotate` needs `dtype: f32` or f64, not {}", other.name()))
                    }
                }
            }
        }
    }

    /// Fills `to` from a row.
    pub(super) fn apply(&self, row: &[u8], to: &mut [u8]) {
        match self {
            Self::Permute { from, size } => {
                for (to, from) in to.chunks_exact_mut((*size).max(1)).zip(from) {
                    to.copy_from_slice(&row[from * size..(from + 1) * size]);
                }
            }
            Self::Rotate32(taps) => {
                let value = |at: usize| f32::from_ne_bytes(array(&row[at * 4..at * 4 + 4]));
                for (to, taps) in to.chunks_exact_mut(4).zip(taps) {
                    let sum = taps.iter().fold(0.0, |sum, (at, weight)| sum + weight * value(*at));
                    to.copy_from_slice(&sum.to_ne_bytes());
                }
            }
            Self::Rotate64(taps) => {
                let value = |at: usize| f64::from_ne_bytes(array(&row[at * 8..at * 8 + 8]));
                for (to, taps) in to.chunks_exact_mut(8).zip(taps) {
                    let sum = taps.iter().fold(0.0, |sum, (at, weight)| sum + weight * value(*at));
                    to.copy_from_slice(&sum.to_ne_bytes());
                }
            }
        }
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

/// Sine and cosine, exact at quarter turns.
fn turn(degrees: f64) -> (f64, f64) {
    match degrees.rem_euclid(360.0) {
        0.0 => (0.0, 1.0),
        90.0 => (1.0, 0.0),
        180.0 => (0.0, -1.0),
        270.0 => (-1.0, 0.0),
        other => other.to_radians().sin_cos(),
    }
}

/// Where each value comes from: bilinear among the four pixels around the place that turns onto it.
fn taps(degrees: f64, channels: usize, height: usize, width: usize) -> Vec<[(usize, f64); 4]> {
    let (sin, cos) = turn(degrees);
    let (middle_y, middle_x) = ((height as f64 - 1.0) / 2.0, (width as f64 - 1.0) / 2.0);
    let mut out = Vec::with_capacity(channels * height * width);
    for channel in 0..channels {
        for y in 0..height {
            for x in 0..width {
                // Rows count downwards: against the clock on the screen is with it in these coordinates.
                let (dy, dx) = (y as f64 - middle_y, x as f64 - middle_x);
                let (from_y, from_x) =
                    (middle_y + sin * dx + cos * dy, middle_x + cos * dx - sin * dy);
                let (low_y, low_x) = (from_y.floor(), from_x.floor());
                let (part_y, part_x) = (from_y - low_y, from_x - low_x);
                let tap = |up: f64, right: f64| {
                    let (row, column) = (low_y + up, low_x + right);
                    let weight = (if up == 0.0 { 1.0 - part_y } else { part_y })
                        * (if right == 0.0 { 1.0 - part_x } else { part_x });
                    let inside =
                        row >= 0.0 && column >= 0.0 && row < height as f64 && column < width as f64;
                    match inside {
                        true => {
                            ((channel * height + row as usize) * width + column as usize, weight)
                        }
                        false => (0, 0.0),
                    }
                };
                out.push([tap(0.0, 0.0), tap(0.0, 1.0), tap(1.0, 0.0), tap(1.0, 1.0)]);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::column::{Builder, Request};

    fn numbers(shape: &[usize], dtype: DType) -> (TensorPlan, Numbers) {
        let plan = TensorPlan {
            columns: None,
            shape: Some(shape.to_vec()),
            scale: 1.0,
            dtype,
            transform: None,
            span: None,
        };
        let request = Request::Numbers { name: "x".into(), tensor: plan.clone() };
        let Builder::Numbers(numbers) = request.builder() else { panic!("numbers") };
        (plan, numbers)
    }

    fn change(shape: &[usize], transform: Transform, row: &[f32]) -> Vec<f32> {
        let (mut plan, numbers) = numbers(shape, DType::F32);
        plan.transform = Some(transform);
        let change = Change::of(&plan, &numbers).unwrap().unwrap();
        let bytes: Vec<u8> = row.iter().flat_map(|v| v.to_ne_bytes()).collect();
        let mut to = vec![0; bytes.len()];
        change.apply(&bytes, &mut to);
        to.chunks_exact(4).map(|b| f32::from_ne_bytes(array(b))).collect()
    }

    #[test]
    fn quarter_turns_move_pixels_exactly_against_the_clock() {
        let row = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        let turned = |degrees| change(&[3, 3], Transform::Rotate(degrees), &row);
        assert_eq!(turned(0.0), row);
        assert_eq!(turned(90.0), [3.0, 6.0, 9.0, 2.0, 5.0, 8.0, 1.0, 4.0, 7.0]);
        assert_eq!(turned(180.0), [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]);
        assert_eq!(turned(-90.0), turned(270.0));
        let channels = change(&[2, 1, 2], Transform::Rotate(180.0), &[1.0, 2.0, 3.0, 4.0]);
        assert_eq!(channels, [2.0, 1.0, 4.0, 3.0]);
    }

    #[test]
    fn a_turn_by_45_degrees_interpolates_and_keeps_the_centre() {
        let mut row = [0.0f32; 9];
        row[4] = 8.0;
        row[5] = 2.0;
        let turned = change(&[3, 3], Transform::Rotate(45.0), &row);
        assert_eq!(turned[4], 8.0);
        // What turns onto the upper right corner lies at row 1, column 1 + √2: between the last pixel and nothing.
        let root = std::f64::consts::SQRT_2;
        assert!((f64::from(turned[2]) - 2.0 * (2.0 - root)).abs() < 1e-6, "{turned:?}");
    }

    #[test]
    fn a_permutation_depends_on_its_number_alone_and_loses_no_value() {
        let row: Vec<f32> = (0..64).map(|v| v as f32).collect();
        let one = change(&[64], Transform::Permute(1), &row);
        assert_eq!(one, change(&[8, 8], Transform::Permute(1), &row));
        assert_ne!(one, change(&[64], Transform::Permute(2), &row));
        assert_ne!(one, row);
        let mut sorted = one;
        sorted.sort_by(f32::total_cmp);
        assert_eq!(sorted, row);
    }

    #[test]
    fn only_images_of_floats_turn() {
        for (shape, dtype, word) in
            [(&[63usize][..], DType::F32, "[height, width]"), (&[8, 8], DType::U8, "dtype: f32")]
        {
            let (mut plan, numbers) = numbers(shape, dtype);
            plan.transform = Some(Transform::Rotate(10.0));
            let why = Change::of(&plan, &numbers).err().unwrap();
            assert!(why.contains(word), "{why}");
        }
    }
}
