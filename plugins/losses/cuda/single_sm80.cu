// Hard labels and sparse teachers, a block a row; sm_80 and later.
#include "single.cuh"

namespace lmb {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
constexpr int kAfterScratch = 1024;
static_assert(sizeof(Scratch<kWarps>) <= kAfterScratch, "shared memory");

template <class Source> LMB_FN void cross_entropy_block(const RowArgs &a) {
  const int64_t n = block();
  BlockGroup<kWarps> group{reinterpret_cast<Scratch<kWarps> *>(shared())};
  const double weight = row_weight(a.rows, n);
  if (weight == 0) {
    skip_row(a, n, group, 0);
    return;
  }
  Source source{a, n};
  cross_entropy_row(a, n, weight, source, group);
}

template <class Source> LMB_FN void sparse_block(const SparseArgs &a) {
  const int64_t n = block();
  BlockGroup<kWarps> group{reinterpret_cast<Scratch<kWarps> *>(shared())};
  const double weight = row_weight(a.row.rows, n);
  if (weight == 0) {
    skip_row(a.row, n, group, 0);
    return;
  }
  Source source{a.row, n};
  sparse_row(a, n, weight, source, group, KeptSet(shared() + kAfterScratch, a.kept, source));
}

#define SINGLE(name, Args, body)                                               \
  LMB_KERNEL(name##_f32, kThreads, 2, Args, (body<Packed<F32, false>>(a)))     \
  LMB_KERNEL(name##_f16, kThreads, 2, Args, (body<Packed<F16, false>>(a)))     \
  LMB_KERNEL(name##_bf16, kThreads, 2, Args, (body<Packed<Bf16, false>>(a)))   \
  LMB_KERNEL(name##_any, kThreads, 2, Args, (body<Any<false>>(a)))

SINGLE(ce, RowArgs, cross_entropy_block)
SINGLE(sparse, SparseArgs, sparse_block)

}  // namespace lmb
