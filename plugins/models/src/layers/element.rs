//! The two element types of the fused layers, matrix products on slices, and the way in and out of candle's storage.
//!
//! Refuses strided storage (callers make tensors contiguous first) and other dtypes. Invariant: the number of threads
//! divides rows and columns of a product among workers, never the sum over its inner dimension.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Storage, Tensor, WithDType, bail};

/// f32 or f64.
pub(crate) trait Element:
    WithDType
    + Default
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::AddAssign
    + std::ops::Neg<Output = Self>
{
    /// Of an f64, rounded.
    fn of(x: f64) -> Self;
    fn tanh(self) -> Self;
    fn exp(self) -> Self;
    fn sqrt(self) -> Self;
    /// Gauss error function.
    fn erf(self) -> Self;
    fn is_nan(self) -> bool;
}

impl Element for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn tanh(self) -> Self {
        self.tanh()
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn erf(self) -> Self {
        candle_core::cpu::erf::erf_f64(self)
    }
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

impl Element for f32 {
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    fn tanh(self) -> Self {
        self.tanh()
    }
    /// `2^k · p(r)`, x = k ln 2 + r, within 2 units in the last place where the result is a normal number; 0 below
    /// -87.3. Straight-line code, so loops over it become vector code. Source: Cephes `expf`, Moshier 1989.
    #[inline(always)]
    fn exp(self) -> Self {
        let x = self.clamp(-87.3, 88.7);
        let k = (x * std::f32::consts::LOG2_E + 12_582_912.0) - 12_582_912.0;
        let r = (x - k * 0.693_359_4) + k * 2.121_944_4e-4;
        let mut p = 1.987_569_1e-4;
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_66, 0.5] {
            p = p * r + c;
        }
        let scale = f32::from_bits(((k as i32 + 127) << 23) as u32);
        if self < -87.3 { 0.0 } else { (p * r * r + r + 1.0) * scale }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    /// A ratio of polynomials in x² on [-4, 4], within 4e-7. Source: Eigen and XLA, `generic_fast_erf_float`.
    #[inline(always)]
    fn erf(self) -> Self {
        let x = self.clamp(-4.0, 4.0);
        let z = x * x;
        let mut p = -2.726_142_4e-10_f32;
        for c in [
            2.770_681_4e-8,
            -2.101_024e-6,
            -5.692_506_4e-5,
            -7.349_906e-4,
            -2.954_6e-3,
            -1.609_603_3e-2,
        ] {
            p = p * z + c;
        }
        let mut q = -1.456_607_2e-5_f32;
        for c in [-2.133_740_5e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
            q = q * z + c;
        }
        x * p / q
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

/// Runs `$body` with `$T` bound to the element type of `$dtype`.
macro_rules! by_dtype {
    ($dtype:expr, $name:expr, $T:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $T = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $T = f64;
                $body
            }
            other => candle_core::bail!("{} has no fused form for {other:?}", $name),
        }
    };
}
pub(crate) use by_dtype;

/// The elements of a contiguous CPU storage.
pub(crate) fn elements<'a, T: Element>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    let all = T::cpu_storage_as_slice(storage)?;
    match layout.contiguous_offsets().and_then(|(begin, end)| all.get(begin..end)) {
        Some(elements) => Ok(elements),
        None => bail!("a fused layer got a strided tensor"),
    }
}

/// Calls `f` with the elements of a contiguous CPU tensor.
pub(crate) fn with_elements<T: Element, R>(
    tensor: &Tensor,
    f: impl FnOnce(&[T]) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(elements(storage, layout)?),
        _ => bail!("a fused layer got a tensor that is not on the CPU"),
    }
}

/// A CPU tensor of `values`.
pub(crate) fn tensor<T: Element>(values: Vec<T>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// A matrix as a slice: `rows × columns` with row and column strides.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T> Matrix<'a, T> {
    /// Row-major.
    pub(crate) fn new(data: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// Rows that start `row_stride` elements apart, the first one at the start of `data`.
    pub(crate) fn strided(data: &'a [T], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            data: self.data,
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
        }
    }

    /// Whether every element lies in the slice.
    fn fits(&self) -> bool {
        last(self.rows, self.columns, self.row_stride, self.column_stride)
            .is_some_and(|end| end <= self.data.len())
    }
}

/// One past the largest index of a strided matrix.
fn last(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> Option<usize> {
    if rows == 0 || columns == 0 {
        return Some(0);
    }
    let row = (rows - 1).checked_mul(row_stride)?;
    row.checked_add((columns - 1).checked_mul(column_stride)?)?.checked_add(1)
}

/// Products of fewer multiplications run on the calling thread: they take below 0.1 ms, and waking a second thread
/// that the machine has not free costs more than it saves (a 64-256-256-10 step: 207 us against 258 us, measured).
const SERIAL: usize = 4_000_000;

/// `out = a·b`, or `out += a·b`; `out` is row-major. Sums in the element type over a fixed blocking.
///
/// # Errors
/// If the inner dimensions or the lengths of the slices do not agree.
pub(crate) fn matmul<T: Element>(
    out: &mut [T],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    accumulate: bool,
) -> Result<()> {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    if out.len() != m * n {
        bail!("matrix product of {m}x{k} and {}x{n} into {} elements", b.rows, out.len());
    }
    let parallelism =
        if m * n * k < SERIAL { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(0) };
    product(Target { out, row_stride: n, accumulate, scale: T::of(1.0) }, a, b, parallelism)
}

/// Where a product goes.
pub(crate) struct Target<'a, T> {
    /// The elements from the first one of the result on.
    pub(crate) out: &'a mut [T],
    /// Elements between the starts of two rows; what lies between rows is left alone.
    pub(crate) row_stride: usize,
    /// Add to what is there.
    pub(crate) accumulate: bool,
    /// Factor of the product.
    pub(crate) scale: T,
}

/// As [`matmul`] on the calling thread, for callers that divide their work themselves.
///
/// # Errors
/// As [`matmul`].
pub(crate) fn matmul_serial<T: Element>(
    to: Target<'_, T>,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
) -> Result<()> {
    product(to, a, b, gemm::Parallelism::None)
}

fn product<T: Element>(
    to: Target<'_, T>,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    parallelism: gemm::Parallelism,
) -> Result<()> {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    let is_dense = m < 2 || to.row_stride >= n;
    let fits = last(m, n, to.row_stride, 1).is_some_and(|end| end <= to.out.len());
    if b.rows != k || !is_dense || !fits || !a.fits() || !b.fits() {
        bail!("matrix product of {m}x{k} and {}x{n} into {} elements", b.rows, to.out.len());
    }
    if !matches!(T::DTYPE, DType::F32 | DType::F64) {
        bail!("matrix product of {:?}", T::DTYPE);
    }
    if m == 0 || n == 0 {
        return Ok(());
    }
    let alpha = if to.accumulate { T::of(1.0) } else { T::of(0.0) };
    // SAFETY: no clause of the header is concerned; `gemm` reads `rows * columns` elements of `a` and `b` and writes
    // m * n of `out` at the given strides. That all of them lie in their slices was checked above, rows of `out` do
    // not overlap, and `out` is a unique borrow. `gemm` knows f32 and f64, checked above.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            to.out.as_mut_ptr(),
            1,
            to.row_stride as isize,
            to.accumulate,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            alpha,
            to.scale,
            false,
            false,
            false,
            parallelism,
        );
    }
    Ok(())
}

/// Σ f(xᵢ, yᵢ) in f64 over eight interleaved partial sums, a fixed order that compiles to vector code.
#[inline(always)]
pub(crate) fn sum_pairs<T: Element>(x: &[T], y: &[T], f: impl Fn(f64, f64) -> f64) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0f64; LANES];
    let (mut xs, mut ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    for (x, y) in xs.by_ref().zip(ys.by_ref()) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(x.to_f64(), y.to_f64());
        }
    }
    let rest = xs.remainder().iter().zip(ys.remainder());
    lanes.iter().sum::<f64>() + rest.map(|(x, y)| f(x.to_f64(), y.to_f64())).sum::<f64>()
}

/// Adds the rows of a row-major matrix of `columns` to `sums`.
///
/// Rows are summed 64 at a time before they join the total, so that the rounding error grows with rows/64.
pub(crate) fn add_rows<T: Element>(sums: &mut [T], rows: &[T]) {
    let columns = sums.len();
    if columns == 0 {
        return;
    }
    let mut block_sums = vec![T::of(0.0); columns];
    for block in rows.chunks(columns * 64) {
        block_sums.fill(T::of(0.0));
        for row in block.chunks_exact(columns) {
            for (sum, &x) in block_sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
        for (sum, &block_sum) in sums.iter_mut().zip(&block_sums) {
            *sum += block_sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_exp_and_erf_stay_within_their_bounds() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let wanted = f64::from(x).exp();
            let error = (f64::from(Element::exp(x)) - wanted).abs() / wanted;
            assert!(error < 2.5e-7, "exp({x}): {error}");
        }
        for i in -6_000..6_000 {
            let x = i as f32 * 1e-3;
            let error = (f64::from(Element::erf(x)) - Element::erf(f64::from(x))).abs();
            assert!(error < 4e-7, "erf({x}): {error}");
        }
        assert!(Element::exp(f32::NAN).is_nan() && Element::erf(f32::NAN).is_nan());
        assert_eq!(Element::exp(-1e4f32), 0.0);
    }

    #[test]
    fn products_match_a_triple_loop_for_every_transposition() {
        let (m, k, n) = (5, 7, 3);
        let a: Vec<f64> = (0..m * k).map(|i| (i as f64 * 0.7).sin()).collect();
        let b: Vec<f64> = (0..k * n).map(|i| (i as f64 * 0.3).cos()).collect();
        let wanted: Vec<f64> =
            (0..m * n).map(|i| (0..k).map(|l| a[i / n * k + l] * b[l * n + i % n]).sum()).collect();
        let transpose = |x: &[f64], rows: usize, columns: usize| -> Vec<f64> {
            (0..x.len()).map(|i| x[i % rows * columns + i / rows]).collect()
        };
        let (at, bt) = (transpose(&a, m, k), transpose(&b, k, n));
        for (a, b) in [
            (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
            (Matrix::new(&at, k, m).transposed(), Matrix::new(&bt, n, k).transposed()),
        ] {
            let mut out = vec![1.0; m * n];
            matmul(&mut out, a, b, true).unwrap();
            for (x, w) in out.iter().zip(&wanted) {
                assert!((x - 1.0 - w).abs() < 1e-12);
            }
            matmul(&mut out, a, b, false).unwrap();
            for (x, w) in out.iter().zip(&wanted) {
                assert!((x - w).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_product_of_unequal_inner_dimensions_is_refused() {
        let (a, b) = ([0f32; 6], [0f32; 6]);
        let mut out = [0f32; 4];
        let refused = matmul(&mut out, Matrix::new(&a, 2, 3), Matrix::new(&b, 2, 3), false);
        assert!(refused.is_err());
    }

    #[test]
    fn row_sums_keep_their_precision_over_many_rows() {
        let rows = vec![0.1f32; 3 * 100_000];
        let mut sums = [0f32; 3];
        add_rows(&mut sums, &rows);
        for sum in sums {
            assert!((f64::from(sum) / (f64::from(0.1f32) * 1e5) - 1.0).abs() < 1e-5, "{sum}");
        }
    }

    #[test]
    fn one_thread_and_four_give_the_same_bits() {
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        // The last two exceed the threshold at which gemm starts its threads.
        for (m, k, n) in [(32, 64, 256), (32, 256, 10), (96, 700, 130), (300, 1_030, 257)] {
            let a: Vec<f32> = (0..m * k).map(|i| (i as f32 * 0.7).sin()).collect();
            let b: Vec<f32> = (0..k * n).map(|i| (i as f32 * 0.3).cos()).collect();
            let product = |threads: usize, transposed: bool| {
                let mut out = vec![0f32; m * n];
                let right = if transposed {
                    Matrix::new(&b, n, k).transposed()
                } else {
                    Matrix::new(&b, k, n)
                };
                pool(threads)
                    .install(|| matmul(&mut out, Matrix::new(&a, m, k), right, false))
                    .unwrap();
                out.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            for transposed in [false, true] {
                let one = product(1, transposed);
                assert_eq!(one, product(2, transposed), "{m} {k} {n}");
                assert_eq!(one, product(4, transposed), "{m} {k} {n}");
            }
        }
    }
}
