// Row by row: layer normalization and attention weights, forward and backward. A warp a row, which it reads again from
// the cache for each pass; sums in f64 over lanes in one order.
#include "quads.cuh"

namespace lmb {

constexpr int kLineThreads = 128;

// Mean and 1/√(σ² + ε) of a row.
template <class T> LMB_FN void moments(const NormArgs &a, int64_t row, float &mean, float &scale) {
  const int64_t start = row * a.columns;
  float x[4], sum = 0, squares = 0;
  each_quad(a.columns, [&](int64_t, int64_t column, int64_t left) {
    load_quad<T>(a.x, start + column, left, x);
    sum += (x[0] + x[1]) + (x[2] + x[3]);
  });
  mean = float(warp_add(double(sum)) / double(a.columns));
  each_quad(a.columns, [&](int64_t, int64_t column, int64_t left) {
    load_quad<T>(a.x, start + column, left, x);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float d = k < left ? x[k] - mean : 0.0f;
      squares = fmaf(d, d, squares);
    }
  });
  scale = 1.0f / sqrtf(float(warp_add(double(squares)) / double(a.columns)) + a.eps);
}

template <class T> LMB_FN void norm(const NormArgs &a) {
  const int64_t row = row_of_warp(), start = row * a.columns;
  if (row >= a.rows) return;
  float mean, scale;
  moments<T>(a, row, mean, scale);
  each_quad(a.columns, [&](int64_t, int64_t column, int64_t left) {
    float x[4], w[4], b[4];
    load_quad<T>(a.x, start + column, left, x);
    load_quad<T>(a.weight, column, left, w);
    load_quad<T>(a.other, column, left, b);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = (x[k] - mean) * scale * w[k] + b[k];
    store_quad<T>(a.y, start + column, left, x);
  });
}

// dx = scale (g - mean g - x̂ mean(g x̂)), g = dy w.
template <class T> LMB_FN void norm_back(const NormArgs &a) {
  const int64_t row = row_of_warp(), start = row * a.columns;
  if (row >= a.rows) return;
  float mean, scale;
  moments<T>(a, row, mean, scale);
  float x[4], w[4], g[4], sum = 0, along = 0;
  const auto load = [&](int64_t column, int64_t left) {
    load_quad<T>(a.x, start + column, left, x);
    load_quad<T>(a.weight, column, left, w);
    load_quad<T>(a.other, start + column, left, g);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = (x[k] - mean) * scale, g[k] *= w[k];
  };
  // Past the row's end g is 0.
  each_quad(a.columns, [&](int64_t, int64_t column, int64_t left) {
    load(column, left);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum += g[k], along = fmaf(g[k], x[k], along);
  });
  sum = float(warp_add(double(sum)) / double(a.columns));
  along = float(warp_add(double(along)) / double(a.columns));
  each_quad(a.columns, [&](int64_t, int64_t column, int64_t left) {
    load(column, left);
#pragma unroll
    for (int k = 0; k < 4; ++k) g[k] = (g[k] - sum - x[k] * along) * scale;
    store_quad<T>(a.y, start + column, left, g);
  });
  if (thread() % kWarp == 0) a.stats[2 * row] = mean, a.stats[2 * row + 1] = scale;
}

template <class T> LMB_FN void attend(const AttendArgs &a) {
  constexpr float kLog2E = 1.44269504f;
  const int64_t row = row_of_warp(), start = row * a.columns, quads = quads_of(a.columns);
  if (row >= a.rows) return;
  const uint8_t *keep = a.keep ? a.keep + row / a.sequence_rows * a.columns : nullptr;
  float most = negative_infinity(), x[4];
  // Scaled scores; −inf where nobody looks.
  const auto load = [&](int64_t column, int64_t left) {
    load_quad<T>(a.scores, start + column, left, x);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const bool seen = k < left && (!keep || keep[column + k] != 0);
      x[k] = seen ? x[k] * a.scale : negative_infinity();
    }
  };
  each_quad(a.columns, [&](int64_t, int64_t column, int64_t left) {
    load(column, left);
#pragma unroll
    for (int k = 0; k < 4; ++k) most = fmaxf(most, x[k]);
  });
  most = warp_max(most);
  if (!(most > negative_infinity())) most = 0;
  float sum = 0;
  const auto exponentials = [&](int64_t column, int64_t left) {
    load(column, left);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] = exp2_fast((x[k] - most) * kLog2E);
  };
  each_quad(a.columns, [&](int64_t, int64_t column, int64_t left) {
    exponentials(column, left);
    sum += (x[0] + x[1]) + (x[2] + x[3]);
  });
  sum = float(warp_add(double(sum)));
  const float factor = sum == 0 ? 0.0f : 1.0f / sum;
  const uint64_t number = uint64_t(row) * uint64_t(a.row_step);
  if (!a.grad) {
    each_quad(a.columns, [&](int64_t quad, int64_t column, int64_t left) {
      exponentials(column, left);
#pragma unroll
      for (int k = 0; k < 4; ++k) x[k] *= factor;
      drop_quad(a.dropout, number, uint64_t(quads), uint64_t(quad), x);
      store_quad<T>(a.y, start + column, left, x);
    });
    return;
  }
  float g[4], along = 0;
  const auto load_grad = [&](int64_t quad, int64_t column, int64_t left) {
    exponentials(column, left);
    load_quad<T>(a.grad, start + column, left, g);
    drop_quad(a.dropout, number, uint64_t(quads), uint64_t(quad), g);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] *= factor;
  };
  each_quad(a.columns, [&](int64_t quad, int64_t column, int64_t left) {
    load_grad(quad, column, left);
#pragma unroll
    for (int k = 0; k < 4; ++k) along = fmaf(g[k], x[k], along);
  });
  along = float(warp_add(double(along)));
  each_quad(a.columns, [&](int64_t quad, int64_t column, int64_t left) {
    load_grad(quad, column, left);
#pragma unroll
    for (int k = 0; k < 4; ++k) g[k] = a.scale * x[k] * (g[k] - along);
    store_quad<T>(a.y, start + column, left, g);
  });
}

LAYER_KERNEL(norm, kLineThreads, 8, NormArgs, norm)
LAYER_KERNEL(norm_back, kLineThreads, 8, NormArgs, norm_back)
LAYER_KERNEL(attend, kLineThreads, 8, AttendArgs, attend)

}  // namespace lmb
