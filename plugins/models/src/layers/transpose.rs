//! A matrix with rows and columns exchanged, tile by tile; tiles of f32 by shuffles of AVX-512 registers.
//!
//! Invariant: what was in the target before does not matter, so that one buffer serves matrix after matrix.

use rayon::prelude::*;

use super::element::Element;
use super::isa::{self, kernel};

/// Rows and columns of a tile: one line of the cache of f32.
const TILE: usize = 16;

/// Makes `out` the row-major `matrix` of `columns` with rows and columns exchanged.
pub(crate) fn transpose<T: Element>(out: &mut Vec<T>, matrix: &[T], columns: usize) {
    let rows = matrix.len() / columns.max(1);
    out.resize(matrix.len(), T::of(0.0));
    let bands = out.par_chunks_mut((TILE * rows).max(1)).enumerate();
    bands.for_each(|(band, out)| flip_band(out, &matrix[band * TILE..], columns, rows));
}

kernel! {
    /// The first columns of `matrix`, of `rows` rows each, as rows of `out`.
    fn flip_band<T>(out: &mut [T], matrix: &[T], columns: usize, rows: usize) {
        let count = out.len() / rows.max(1);
        for first in (0..rows).step_by(TILE) {
            let height = TILE.min(rows - first);
            if (count, height) == (TILE, TILE) && isa::is_avx512::<T>() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: the machine has the instructions and T the size of an f32, just asked; bits are only moved.
                unsafe {
                    flip_tile(&mut out[first..], &matrix[first * columns..], columns, rows);
                }
            } else {
                for column in 0..count {
                    for i in first..first + height {
                        out[column * rows + i] = matrix[i * columns + column];
                    }
                }
            }
        }
    }
}

/// The first 16 columns of 16 rows of `from`, `columns` elements apart, as rows of `to`, `rows` elements apart.
///
/// # Safety
/// The machine has AVX-512 and T four bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn flip_tile<T: Element>(to: &mut [T], from: &[T], columns: usize, rows: usize) {
    use std::arch::x86_64::*;
    assert!(from.len() >= (TILE - 1) * columns + TILE && to.len() >= (TILE - 1) * rows + TILE);
    let line = |i: usize| from.as_ptr().wrapping_add(i * columns).cast::<f32>();
    // SAFETY: the assertion: each line has 16 elements of four bytes; the instruction asks no alignment.
    let lines: [__m512; TILE] = std::array::from_fn(|i| unsafe { _mm512_loadu_ps(line(i)) });
    // Pairs, then fours of rows, side by side in each quarter of a register.
    let pairs: [__m512; TILE] = std::array::from_fn(|i| match i % 2 {
        0 => _mm512_unpacklo_ps(lines[i], lines[i + 1]),
        _ => _mm512_unpackhi_ps(lines[i - 1], lines[i]),
    });
    let fours: [__m512; TILE] = std::array::from_fn(|i| {
        let first = i / 4 * 4 + i % 4 / 2;
        let (a, b) = (_mm512_castps_pd(pairs[first]), _mm512_castps_pd(pairs[first + 2]));
        _mm512_castpd_ps(match i % 2 {
            0 => _mm512_unpacklo_pd(a, b),
            _ => _mm512_unpackhi_pd(a, b),
        })
    });
    for c in 0..4 {
        let [a, b, d, e] = std::array::from_fn(|k| fours[4 * k + c]);
        let (even, odd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b));
        let (even2, odd2) =
            (_mm512_shuffle_f32x4::<0x88>(d, e), _mm512_shuffle_f32x4::<0xdd>(d, e));
        let turned = [
            _mm512_shuffle_f32x4::<0x88>(even, even2),
            _mm512_shuffle_f32x4::<0x88>(odd, odd2),
            _mm512_shuffle_f32x4::<0xdd>(even, even2),
            _mm512_shuffle_f32x4::<0xdd>(odd, odd2),
        ];
        for (quarter, row) in turned.into_iter().enumerate() {
            let at = to.as_mut_ptr().wrapping_add((4 * quarter + c) * rows).cast::<f32>();
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(at, row) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns_whatever_the_buffer_held() {
        let mut out = vec![f32::NAN; 7];
        for (rows, columns) in [(1, 1), (16, 16), (48, 32), (17, 33), (3, 40), (40, 3), (0, 5)] {
            let matrix: Vec<f32> = (0..rows * columns).map(|x| x as f32).collect();
            transpose(&mut out, &matrix, columns);
            assert_eq!(out.len(), matrix.len());
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(out[column * rows + row], matrix[row * columns + column]);
                }
            }
        }
    }
}
