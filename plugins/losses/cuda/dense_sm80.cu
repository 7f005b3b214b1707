// Dense divergences, a block a row, rows read from global memory once a pass: 10 bytes an element of a 16-bit row
// for one-stage divergences, 14 for two-stage ones. Takes every layout and every width; sm_80 and later.
#include "dense.cuh"

namespace lmb {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;

template <class D, class Source> LMB_FN void block_row(const RowArgs &a) {
  const int64_t n = block();
  BlockGroup<kWarps> group{reinterpret_cast<Scratch<kWarps> *>(shared())};
  const double weight = row_weight(a.rows, n);
  if (weight == 0) {
    skip_row(a, n, group, 0);
    return;
  }
  Source source{a, n};
  divergence_row<D>(a, n, weight, source, group);
}

#define DENSE(name, D)                                                                              \
  LMB_KERNEL(name##_f32, kThreads, 2, RowArgs, (block_row<D, Packed<F32, true>>(a)))                \
  LMB_KERNEL(name##_f16, kThreads, 2, RowArgs, (block_row<D, Packed<F16, true>>(a)))                \
  LMB_KERNEL(name##_bf16, kThreads, 2, RowArgs, (block_row<D, Packed<Bf16, true>>(a)))              \
  LMB_KERNEL(name##_any, kThreads, 2, RowArgs, (block_row<D, Any<true>>(a)))

DENSE(fkl, ForwardKl)
DENSE(soft_ce, SoftCe)
DENSE(rkl, ReverseKl)
DENSE(sym_kl, SymKl)
DENSE(tvd, Tvd)
DENSE(gjsd, Gjsd)
DENSE(skl, Skl)
DENSE(srkl, Srkl)

}  // namespace lmb
