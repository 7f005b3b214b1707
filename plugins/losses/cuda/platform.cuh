// What the kernels need from the machine: numbers, threads, barriers, shared memory.
//
// nvcc maps each to an instruction. Any other C++17 compiler maps them to emulate/machine.h, where threads are
// fibers: the same kernel sources then run on a CPU, barriers and clusters included. Kernels use nothing else.
#pragma once
#include <stddef.h>
#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define LMB_FN __device__ __forceinline__
// A kernel with one argument struct, under its own name.
#define LMB_KERNEL(name, threads, blocks, Args, ...)                                                                \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args a) { __VA_ARGS__; }
#else
#include <math.h>
#include <string.h>
#include "emulate/machine.h"
#define LMB_FN inline
#define LMB_KERNEL(name, threads, blocks, Args, ...)                                                                \
  static void name##_body(const void *raw) {                                                                        \
    const Args &a = *static_cast<const Args *>(raw);                                                                \
    __VA_ARGS__;                                                                                                    \
  }                                                                                                                 \
  static const lmb::emulate::Kernel name##_entry(#name, name##_body, threads);
#endif

#if !defined(__CUDACC__)
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
#endif

namespace lmb {

constexpr int kWarp = 32;

// ---------------------------------------------------------------- numbers
#if defined(__CUDACC__)
LMB_FN float negative_infinity() { return __int_as_float(0xff800000); }
LMB_FN float not_a_number() { return __int_as_float(0x7fffffff); }
// 2 ulp; results below 2^-126 become 0.
LMB_FN float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Absolute error 2^-22; used for arguments between 2^-24 and 1.
LMB_FN float log2_fast(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// 1 ulp.
LMB_FN float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
LMB_FN uint16_t bf16_bits(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
LMB_FN uint16_t f16_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }
LMB_FN float from_f16_bits(uint16_t x) { return __half2float(__ushort_as_half(x)); }
LMB_FN float from_bf16_bits(uint16_t x) { return __uint_as_float(uint32_t(x) << 16); }
#else
LMB_FN float negative_infinity() { return -INFINITY; }
LMB_FN float not_a_number() { return NAN; }
LMB_FN float exp2_fast(float x) {
  const float y = exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}
LMB_FN float log2_fast(float x) { return log2f(x); }
LMB_FN float reciprocal_fast(float x) { return 1.0f / x; }
LMB_FN float from_bf16_bits(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
LMB_FN uint16_t bf16_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if (x != x) return 0x7fff;
  return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
LMB_FN float from_f16_bits(uint16_t x) {
  const float magnitude = (x & 0x7c00) == 0x7c00 ? ((x & 0x3ff) ? NAN : INFINITY)
                          : (x & 0x7c00) ? ldexpf(float(0x400 | (x & 0x3ff)), int((x >> 10) & 31) - 25)
                                         : ldexpf(float(x & 0x3ff), -24);
  return (x & 0x8000) ? -magnitude : magnitude;
}
LMB_FN uint16_t f16_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t(bits >> 16) & 0x8000;
  if (x != x) return 0x7fff;
  const float magnitude = fabsf(x);
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  if (magnitude < 6.103515625e-5f) return sign | uint16_t(nearbyintf(ldexpf(magnitude, 24)));
  int exponent;
  const float mantissa = frexpf(magnitude, &exponent);
  // Carries into the exponent by itself.
  return sign | uint16_t(uint32_t(exponent + 13) * 1024 + uint32_t(nearbyintf(ldexpf(mantissa, 11))));
}
#endif

LMB_FN bool finite(double x) { return x - x == 0; }

// ---------------------------------------------------------------- threads
#if defined(__CUDACC__)
LMB_FN int thread() { return int(threadIdx.x); }
LMB_FN int threads() { return int(blockDim.x); }
LMB_FN int64_t block() { return blockIdx.x; }
LMB_FN int64_t blocks() { return gridDim.x; }
LMB_FN void sync_block() { __syncthreads(); }
// The dynamic shared memory, 128-byte aligned.
LMB_FN unsigned char *shared() {
  extern __shared__ __align__(128) unsigned char lmb_shared[];
  return lmb_shared;
}
LMB_FN double warp_add(double x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(0xffffffffu, x, mask);
  return x;
}
LMB_FN float warp_max(float x) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, mask));
  return x;
}
// Sets a bit of shared memory; true if it was set before.
LMB_FN bool set_bit(uint32_t *words, int bit) {
  const uint32_t mask = 1u << (bit & 31);
  return (atomicOr(&words[bit >> 5], mask) & mask) != 0;
}
#else
LMB_FN int thread() { return emulate::thread(); }
LMB_FN int threads() { return emulate::threads(); }
LMB_FN int64_t block() { return emulate::block(); }
LMB_FN int64_t blocks() { return emulate::blocks(); }
LMB_FN void sync_block() { emulate::sync_block(); }
LMB_FN unsigned char *shared() { return emulate::shared(); }
LMB_FN double warp_add(double x) {
  double lanes[kWarp];
  emulate::exchange(x, lanes);
  for (int mask = kWarp / 2; mask > 0; mask /= 2)
    for (int lane = 0; lane < mask; ++lane) lanes[lane] = lanes[lane] + lanes[lane + mask];
  return lanes[0];
}
LMB_FN float warp_max(float x) {
  double lanes[kWarp];
  emulate::exchange(x, lanes);
  float most = float(lanes[0]);
  for (int lane = 1; lane < kWarp; ++lane) most = fmaxf(most, float(lanes[lane]));
  return most;
}
LMB_FN bool set_bit(uint32_t *words, int bit) {
  const uint32_t mask = 1u << (bit & 31), old = words[bit >> 5];
  words[bit >> 5] = old | mask;
  return (old & mask) != 0;
}
#endif

// ---------------------------------------------------------------- clusters and bulk copies (sm_90)
#if !defined(__CUDACC__)
LMB_FN int cluster_rank() { return emulate::cluster_rank(); }
LMB_FN int cluster_size() { return emulate::cluster_size(); }
LMB_FN void sync_cluster() { emulate::sync_cluster(); }
template <class T> LMB_FN const T *of_peer(const T *mine, int rank) {
  return reinterpret_cast<const T *>(emulate::of_peer(mine, rank));
}
// An arrival of bytes that all threads of the block can wait for, once.
struct Arrival {
  LMB_FN void init() {}
  LMB_FN void expect(uint32_t) {}
  LMB_FN void copy(void *to, const void *from, uint32_t bytes, bool) { memcpy(to, from, bytes); }
  LMB_FN void wait() {}
  uint64_t state;
};
#elif !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
LMB_FN int cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
}
LMB_FN int cluster_size() {
  uint32_t size;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return int(size);
}
LMB_FN void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}
template <class T> LMB_FN const T *of_peer(const T *mine, int rank) {
  uint64_t theirs;
  asm("mapa.u64 %0, %1, %2;" : "=l"(theirs) : "l"(mine), "r"(rank));
  return reinterpret_cast<const T *>(theirs);
}
LMB_FN uint32_t shared_address(const void *p) { return uint32_t(__cvta_generic_to_shared(p)); }
struct Arrival {
  LMB_FN void init() {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&state)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
  }
  LMB_FN void expect(uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state)), "r"(bytes)
                 : "memory");
  }
  // 16-byte aligned addresses and size. What is read once is the first to leave the L2 cache.
  LMB_FN void copy(void *to, const void *from, uint32_t bytes, bool once) {
    uint64_t policy;
    if (once) {
      asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    } else {
      asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    }
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
            shared_address(to)),
        "l"(from), "r"(bytes), "r"(shared_address(&state)), "l"(policy)
        : "memory");
  }
  LMB_FN void wait() {
    uint32_t done = 0;
    while (!done) {
      asm volatile(
          "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\nselp.u32 %0, 1, 0, p;\n}"
          : "=r"(done)
          : "r"(shared_address(&state))
          : "memory");
    }
  }
  uint64_t state;
};
#endif

}  // namespace lmb
