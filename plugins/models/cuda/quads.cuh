// What the layers' kernels share: four neighbours of a row at a time, and the draws of dropout.
#pragma once
#include "../../losses/cuda/rows.cuh"
#include "arguments.h"

namespace lmb {

LMB_FN float rounded(F32, float x) { return x; }
LMB_FN uint16_t rounded(Bf16, float x) { return bf16_bits(x); }

template <class T> LMB_FN bool is_whole(const typename T::Raw *at, int64_t left) {
  return left >= 4 && reinterpret_cast<uintptr_t>(at) % (4 * sizeof(typename T::Raw)) == 0;
}

// Elements `at` to `at` + 3 of `data`; those from `left` on read as 0.
template <class T> LMB_FN void load_quad(const void *data, int64_t at, int64_t left, float (&x)[4]) {
  using Raw = typename T::Raw;
  const Raw *from = static_cast<const Raw *>(data) + at;
  if (is_whole<T>(from, left)) {
    if constexpr (sizeof(Raw) == 4) {
      const float4 v = *reinterpret_cast<const float4 *>(from);
      x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else {
      const uint2 v = *reinterpret_cast<const uint2 *>(from);
      x[0] = T::get(uint16_t(v.x)), x[1] = T::get(uint16_t(v.x >> 16));
      x[2] = T::get(uint16_t(v.y)), x[3] = T::get(uint16_t(v.y >> 16));
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) x[k] = k < left ? T::get(from[k]) : 0.0f;
}

// As load_quad; those from `left` on are not written.
template <class T> LMB_FN void store_quad(void *data, int64_t at, int64_t left, const float (&x)[4]) {
  using Raw = typename T::Raw;
  Raw *to = static_cast<Raw *>(data) + at;
  if (is_whole<T>(to, left)) {
    if constexpr (sizeof(Raw) == 4) {
      *reinterpret_cast<float4 *>(to) = make_float4(x[0], x[1], x[2], x[3]);
    } else {
      *reinterpret_cast<uint2 *>(to) = make_uint2(rounded(T(), x[0]) | uint32_t(rounded(T(), x[1])) << 16,
                                                  rounded(T(), x[2]) | uint32_t(rounded(T(), x[3])) << 16);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k)
    if (k < left) to[k] = rounded(T(), x[k]);
}

// Philox 4x32-10 (Salmon et al. 2011), as src/random.rs draws.
LMB_FN void philox(uint64_t index, const Dropout &d, uint32_t (&c)[4]) {
  c[0] = uint32_t(index), c[1] = uint32_t(index >> 32), c[2] = d.high[0], c[3] = d.high[1];
  uint32_t k0 = d.key[0], k1 = d.key[1];
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(c[0]) * 0xD2511F53u, p1 = uint64_t(c[2]) * 0xCD9E8D57u;
    c[0] = uint32_t(p1 >> 32) ^ c[1] ^ k0;
    c[1] = uint32_t(p1);
    c[2] = uint32_t(p0 >> 32) ^ c[3] ^ k1;
    c[3] = uint32_t(p0);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
}

// Drops of the quad `quad` of a row of `quads`. A threshold of 0 draws nothing.
LMB_FN void drop_quad(const Dropout &d, uint64_t number, uint64_t quads, uint64_t quad, float (&x)[4]) {
  if (d.threshold == 0) {
#pragma unroll
    for (int k = 0; k < 4; ++k) x[k] *= d.scale;
    return;
  }
  uint32_t draws[4];
  philox(number * quads + quad, d, draws);
#pragma unroll
  for (int k = 0; k < 4; ++k) x[k] = draws[k] < d.threshold ? 0.0f : x[k] * d.scale;
}

LMB_FN int64_t quads_of(int64_t columns) { return (columns + 3) / 4; }

// The quad of this thread in a launch of a thread a quad; fewer than 2^32 of them.
struct Quad {
  uint32_t row, quad;
  int64_t at, column, left;
  bool is_there;
};

LMB_FN Quad this_quad(int64_t rows, int64_t columns) {
  const int64_t number = block() * threads() + thread();
  const uint32_t quads = uint32_t(quads_of(columns));
  const uint32_t row = uint32_t(number) / quads, quad = uint32_t(number) % quads;
  const int64_t column = int64_t(quad) * 4;
  return {row, quad, row * columns + column, column, columns - column, number < rows * int64_t(quads)};
}

// The row of this warp in a launch of a warp a row.
LMB_FN int64_t row_of_warp() { return block() * (threads() / kWarp) + thread() / kWarp; }

// Calls f(quad, column, left) for the quads of this lane.
template <class F> LMB_FN void each_quad(int64_t columns, F f) {
  for (int64_t quad = thread() % kWarp; 4 * quad < columns; quad += kWarp) f(quad, 4 * quad, columns - 4 * quad);
}

// A kernel of both element types under its name and _f32 or _bf16.
#define LAYER_KERNEL(name, threads, blocks, Args, function)               \
  LMB_KERNEL(name##_f32, threads, blocks, Args, (function<F32>(a)))       \
  LMB_KERNEL(name##_bf16, threads, blocks, Args, (function<Bf16>(a)))

}  // namespace lmb
