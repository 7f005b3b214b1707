// What all row kernels share: elements of any type, which rows count, sums over a block or a cluster.
//
// Every sum is a fixed tree over threads, warps and ranks; no atomics. Rows that do not count are never read.
#pragma once
#include "args.h"
#include "platform.cuh"

namespace lmb {

struct F32 {
  using Raw = float;
  static constexpr int32_t kType = kF32;
  LMB_FN static float get(Raw x) { return x; }
};
struct F16 {
  using Raw = uint16_t;
  static constexpr int32_t kType = kF16;
  LMB_FN static float get(Raw x) { return from_f16_bits(x); }
};
struct Bf16 {
  using Raw = uint16_t;
  static constexpr int32_t kType = kBf16;
  LMB_FN static float get(Raw x) { return from_bf16_bits(x); }
};

struct alignas(16) Vector16 {
  uint32_t word[4];
};

// Unpacks 16 bytes.
LMB_FN void unpack(F32, const Vector16 &from, float *to) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
#if defined(__CUDACC__)
    to[k] = __uint_as_float(from.word[k]);
#else
    memcpy(&to[k], &from.word[k], 4);
#endif
  }
}
template <class T> LMB_FN void unpack(T, const Vector16 &from, float *to) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    to[2 * k] = T::get(uint16_t(from.word[k]));
    to[2 * k + 1] = T::get(uint16_t(from.word[k] >> 16));
  }
}

LMB_FN float load_any(const unsigned char *data, int64_t at, int32_t type) {
  switch (type) {
    case kF32: return reinterpret_cast<const float *>(data)[at];
    case kF16: return from_f16_bits(reinterpret_cast<const uint16_t *>(data)[at]);
    case kBf16: return from_bf16_bits(reinterpret_cast<const uint16_t *>(data)[at]);
    case kF64: return float(reinterpret_cast<const double *>(data)[at]);
    case kI64: return float(reinterpret_cast<const int64_t *>(data)[at]);
    case kI32: return float(reinterpret_cast<const int32_t *>(data)[at]);
    default: return float(data[at]);
  }
}

LMB_FN int64_t load_index(const unsigned char *data, int64_t at, int32_t type) {
  return type == kI64 ? reinterpret_cast<const int64_t *>(data)[at] : reinterpret_cast<const int32_t *>(data)[at];
}

// Rounds once, also when it adds.
LMB_FN void store_any(const Matrix &to, int64_t at, float x, bool add) {
  if (to.type == kF32) {
    float *place = reinterpret_cast<float *>(to.data) + at;
    *place = add ? *place + x : x;
  } else {
    uint16_t *place = reinterpret_cast<uint16_t *>(to.data) + at;
    const bool half = to.type == kF16;
    if (add) x += half ? from_f16_bits(*place) : from_bf16_bits(*place);
    *place = half ? f16_bits(x) : bf16_bits(x);
  }
}

// Stores `count` (4 or 8) neighbours that start at a 16-byte address.
template <int count> LMB_FN void store_vector(const Matrix &to, int64_t at, const float *x, bool add) {
  if (to.type == kF32) {
    float4 *place = reinterpret_cast<float4 *>(reinterpret_cast<float *>(to.data) + at);
#pragma unroll
    for (int k = 0; k < count / 4; ++k) {
      float4 g = make_float4(x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]);
      if (add) {
        const float4 old = place[k];
        g = make_float4(old.x + g.x, old.y + g.y, old.z + g.z, old.w + g.w);
      }
      place[k] = g;
    }
    return;
  }
  const bool half = to.type == kF16;
  uint32_t *place = reinterpret_cast<uint32_t *>(reinterpret_cast<uint16_t *>(to.data) + at);
  static_assert(count == 4 || count == 8, "vector");
  uint32_t words[count / 2];
#pragma unroll
  for (int k = 0; k < count / 2; ++k) {
    float low = x[2 * k], high = x[2 * k + 1];
    if (add) {
      const uint32_t old = place[k];
      low += half ? from_f16_bits(uint16_t(old)) : from_bf16_bits(uint16_t(old));
      high += half ? from_f16_bits(uint16_t(old >> 16)) : from_bf16_bits(uint16_t(old >> 16));
    }
    words[k] = half ? f16_bits(low) | uint32_t(f16_bits(high)) << 16
                    : bf16_bits(low) | uint32_t(bf16_bits(high)) << 16;
  }
  if constexpr (count == 8) {
    *reinterpret_cast<uint4 *>(place) = make_uint4(words[0], words[1], words[2], words[3]);
  } else {
    *reinterpret_cast<uint2 *>(place) = make_uint2(words[0], words[1]);
  }
}

// w of row n; 0 if it does not count.
LMB_FN double row_weight(const Rows &rows, int64_t n) {
  constexpr int64_t kIgnored = -100;
  if (rows.labels.data && load_index(rows.labels.data, n * rows.labels.stride, rows.labels.type) == kIgnored) return 0;
  if (rows.mask.data && load_any(rows.mask.data, n * rows.mask.stride, rows.mask.type) == 0.0f) return 0;
  if (!rows.weights.data) return 1;
  const int64_t at = n * rows.weights.stride;
  if (rows.weights.type == kF64) return reinterpret_cast<const double *>(rows.weights.data)[at];
  return load_any(rows.weights.data, at, rows.weights.type);
}

LMB_FN bool column_kept(const RowArgs &a, int64_t n, int v) {
  const Matrix &own = a.row_classes;
  if (own.data && load_any(own.data, n * own.row + v * own.column, own.type) == 0.0f) return false;
  return !a.class_mask.data || load_any(a.class_mask.data, v * a.class_mask.stride, a.class_mask.type) != 0.0f;
}

constexpr int kMaxCluster = 16, kMaxSums = 3, kMaxPhases = 4;

// Shared memory of the sums of a block of at most `kWarps` warps.
template <int kWarps> struct Scratch {
  double warp[kWarps][kMaxSums];
  double phase[kMaxPhases][kMaxSums];  // this block's totals, one set a reduction: peers read them
  double peers[kMaxCluster][kMaxSums];
};

template <bool kMost> LMB_FN double combine(double sum, double next) {
  return kMost ? (next > sum ? next : sum) : sum + next;
}

// The threads of one block.
template <int kWarps> struct BlockGroup {
  Scratch<kWarps> *scratch;
  LMB_FN int rank() const { return 0; }
  LMB_FN int size() const { return 1; }
  // After the last sum: nobody reads this block's memory any more.
  LMB_FN void leave() {}
  template <int N> LMB_FN void add(double (&x)[N]) { total<N, false>(x); }
  template <int N> LMB_FN void most(double (&x)[N]) { total<N, true>(x); }

  template <int N, bool kMost> LMB_FN void total(double (&x)[N]) {
    static_assert(N <= kMaxSums, "scratch");
    sync_block();  // the scratch may still be read
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const double sum = kMost ? double(warp_max(float(x[k]))) : warp_add(x[k]);
      if (thread() % kWarp == 0) scratch->warp[thread() / kWarp][k] = sum;
    }
    sync_block();
#pragma unroll
    for (int k = 0; k < N; ++k) {
      double sum = scratch->warp[0][k];
      for (int w = 1; w < threads() / kWarp; ++w) sum = combine<kMost>(sum, scratch->warp[w][k]);
      x[k] = sum;
    }
  }
};

// Writes the gradient of columns [from, to) of row n as 0; nothing when it accumulates.
LMB_FN void zero_columns(const RowArgs &a, int64_t n, int from, int to, int first, int step) {
  if (!a.grad.data || (a.flags & kAccumulate)) return;
  const int64_t start = n * a.grad.row;
  for (int v = from + first; v < to; v += step) store_any(a.grad, start + v * a.grad.column, 0.0f, false);
}

}  // namespace lmb
