// lmb.vector/1 on a GPU, and the sum over the rows of a loss. Lists of tensors in one launch; sm_80 and later.
//
// A block takes a chunk of 64 Ki elements of one tensor, in order. Arithmetic in f32, sums in f64 in a fixed
// tree, so results repeat bit for bit. A coefficient of 0 does not read its operand.
#include "rows.cuh"

namespace lmb {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int64_t kChunk = 64 * 1024;
constexpr int kAxpby = 0;  // else z = a x y + b z

// The tensor of this block and its part of it.
struct Chunk {
  const VectorTensor &tensor;
  int64_t begin, end;
};

LMB_FN Chunk this_chunk(const VectorArgs &a) {
  int low = 0, high = a.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (a.tensors[middle].first_chunk <= block()) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const VectorTensor &tensor = a.tensors[low];
  const int64_t begin = (block() - tensor.first_chunk) * kChunk, end = begin + kChunk;
  return {tensor, begin, end < tensor.length ? end : tensor.length};
}

template <class F> LMB_FN void each_of(const Chunk &chunk, F f) {
  for (int64_t i = chunk.begin + thread(); i < chunk.end; i += threads()) f(i);
}

LMB_FN void put(unsigned char *data, int32_t type, int64_t i, float x) { store_any({data, 0, 0, type, 0}, i, x, false); }

// y = a x + b y, or z = a x y + b z.
LMB_FN void combine_chunk(const VectorArgs &a) {
  const Chunk chunk = this_chunk(a);
  const VectorTensor &t = chunk.tensor;
  each_of(chunk, [&](int64_t i) {
    const float x = a.a == 0 ? 0.0f : load_any(t.x, i, t.x_type);
    if (a.op == kAxpby) {
      put(t.y, t.y_type, i, a.b == 0 ? a.a * x : fmaf(a.a, x, a.b * load_any(t.y, i, t.y_type)));
    } else {
      const float product = a.a == 0 ? 0.0f : a.a * x * load_any(t.y, i, t.y_type);
      put(t.z, t.z_type, i, a.b == 0 ? product : fmaf(a.b, load_any(t.z, i, t.z_type), product));
    }
  });
}

// Σ x·y of a chunk.
LMB_FN void dot_chunk(const VectorArgs &a) {
  const Chunk chunk = this_chunk(a);
  const VectorTensor &t = chunk.tensor;
  double sums[1] = {0};
  float part = 0;
  int pending = 0;
  each_of(chunk, [&](int64_t i) {
    part = fmaf(load_any(t.x, i, t.x_type), load_any(t.y, i, t.y_type), part);
    if (++pending == 16) {
      sums[0] += part;
      part = 0;
      pending = 0;
    }
  });
  sums[0] += part;
  BlockGroup<kWarps> group{reinterpret_cast<Scratch<kWarps> *>(shared())};
  group.add(sums);
  if (thread() == 0) a.partial[block()] = sums[0];
}

// AdamW with decoupled decay: x parameter, y gradient, z master or NULL.
LMB_FN void adamw_chunk(const VectorArgs &a) {
  const Chunk chunk = this_chunk(a);
  const VectorTensor &t = chunk.tensor;
  each_of(chunk, [&](int64_t i) {
    const float g = load_any(t.y, i, t.y_type) * a.grad_scale;
    const float old = t.z ? reinterpret_cast<const float *>(t.z)[i] : load_any(t.x, i, t.x_type);
    const float m = fmaf(a.beta1, t.m[i], (1.0f - a.beta1) * g);
    const float v = fmaf(a.beta2, t.v[i], (1.0f - a.beta2) * g * g);
    const float step = t.lr * (m / a.correction1) / (sqrtf(v / a.correction2) + a.eps);
    const float next = old - t.lr * t.decay * old - step;
    t.m[i] = m;
    t.v[i] = v;
    if (t.z) reinterpret_cast<float *>(t.z)[i] = next;
    put(t.x, t.x_type, i, next);
  });
}

// Adds partial sums up, one block.
LMB_FN void add_up(const TotalArgs &a) {
  double sums[1] = {0};
  for (int64_t i = thread(); i < a.count; i += threads()) sums[0] += a.partial[i];
  BlockGroup<kWarps> group{reinterpret_cast<Scratch<kWarps> *>(shared())};
  group.add(sums);
  if (thread() == 0) *a.total = sums[0];
}

// Value and metrics of a loss from the shares of its rows, one block.
LMB_FN void finish_rows(const FinishArgs &a) {
  double sums[3] = {0, 0, 0};
  for (int64_t n = thread(); n < a.count; n += threads()) {
    const Slot slot = a.slots[n];
    sums[0] += slot.value;
    sums[1] += slot.dead;
    sums[2] += slot.infinite;
  }
  BlockGroup<kWarps> group{reinterpret_cast<Scratch<kWarps> *>(shared())};
  group.add(sums);
  if (thread() != 0) return;
  if (a.value) *a.value = float(sums[0] / a.normalizer);
  if (a.dead) *a.dead = float(sums[1] / a.normalizer);
  if (a.infinite) *a.infinite = float(sums[2] / a.normalizer);
}

LMB_KERNEL(vector_combine, kThreads, 4, VectorArgs, (combine_chunk(a)))
LMB_KERNEL(vector_dot, kThreads, 4, VectorArgs, (dot_chunk(a)))
LMB_KERNEL(vector_adamw, kThreads, 4, VectorArgs, (adamw_chunk(a)))
LMB_KERNEL(vector_total, kThreads, 1, TotalArgs, (add_up(a)))
LMB_KERNEL(finish, kThreads, 1, FinishArgs, (finish_rows(a)))

}  // namespace lmb
