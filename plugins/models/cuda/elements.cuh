// Element by element: bias with activation, dropout with residual, rows of a table. A thread a quad.
#include "quads.cuh"

namespace lmb {

constexpr int kElementThreads = 256;

// Φ(x).
LMB_FN float normal_cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }

// ½ (1 + tanh z) at z = √(2/π) (x + 0.044715 x³), and its derivative by x.
LMB_FN float logistic(float x, float &slope) {
  constexpr float kFactor = 0.79788456f;
  const float z = kFactor * (x + 0.044715f * x * x * x), share = 1.0f / (1.0f + expf(-2.0f * z));
  slope = 2.0f * share * (1.0f - share) * (kFactor * (1.0f + 3.0f * 0.044715f * x * x));
  return share;
}

// NaN stays NaN.
LMB_FN float activated(int32_t kind, float x) {
  float slope;
  switch (kind) {
    case kRelu: return x < 0.0f ? 0.0f : x;
    case kGelu: return x * normal_cdf(x);
    case kGeluTanh: return x * logistic(x, slope);
    case kTanh: return tanhf(x);
    default: return x;
  }
}

// dx from dy, and from the result of ReLU and tanh, the input of the others.
LMB_FN float activated_back(int32_t kind, float from, float grad) {
  float slope = 0;
  switch (kind) {
    case kRelu: return from <= 0.0f ? 0.0f : grad;
    case kGelu: return grad * (normal_cdf(from) + from * (expf(-0.5f * from * from) * 0.39894228f));
    case kGeluTanh: {
      const float share = logistic(from, slope);
      return grad * (share + from * slope);
    }
    case kTanh: return grad * (1.0f - from * from);
    default: return grad;
  }
}

template <class T> LMB_FN void activate(const ActivateArgs &a) {
  const Quad q = this_quad(a.rows, a.columns);
  if (!q.is_there) return;
  float x[4], bias[4] = {0, 0, 0, 0};
  load_quad<T>(a.x, q.at, q.left, x);
  if (a.bias) load_quad<T>(a.bias, q.column, q.left, bias);
#pragma unroll
  for (int k = 0; k < 4; ++k) x[k] = activated(a.kind, x[k] + bias[k]);
  store_quad<T>(a.y, q.at, q.left, x);
}

template <class T> LMB_FN void activate_back(const ActivateArgs &a) {
  const Quad q = this_quad(a.rows, a.columns);
  if (!q.is_there) return;
  float from[4], grad[4];
  load_quad<T>(a.x, q.at, q.left, from);
  load_quad<T>(a.bias, q.at, q.left, grad);
#pragma unroll
  for (int k = 0; k < 4; ++k) grad[k] = activated_back(a.kind, from[k], grad[k]);
  store_quad<T>(a.y, q.at, q.left, grad);
}

template <class T> LMB_FN void drop(const DropArgs &a) {
  const Quad q = this_quad(a.rows, a.columns);
  if (!q.is_there) return;
  float x[4];
  load_quad<T>(a.x, q.at, q.left, x);
  drop_quad(a.dropout, uint64_t(q.row) * uint64_t(a.row_step), uint64_t(quads_of(a.columns)), q.quad, x);
  if (a.residual) {
    float residual[4];
    load_quad<T>(a.residual, q.at, q.left, residual);
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] += residual[k];
  }
  store_quad<T>(a.y, q.at, q.left, x);
}

// A number outside of the table gives NaN.
template <class T> LMB_FN void look_up(const LookupArgs &a) {
  const Quad q = this_quad(a.rows, a.columns);
  if (!q.is_there) return;
  const int64_t id = a.ids[q.row];
  const float nan = not_a_number();
  float x[4] = {nan, nan, nan, nan};
  if (id >= 0 && id < a.table_rows) load_quad<T>(a.x, id * a.columns + q.column, q.left, x);
  store_quad<T>(a.y, q.at, q.left, x);
}

LAYER_KERNEL(activate, kElementThreads, 4, ActivateArgs, activate)
LAYER_KERNEL(activate_back, kElementThreads, 4, ActivateArgs, activate_back)
LAYER_KERNEL(drop, kElementThreads, 4, DropArgs, drop)
LAYER_KERNEL(look_up, kElementThreads, 4, LookupArgs, look_up)

}  // namespace lmb
