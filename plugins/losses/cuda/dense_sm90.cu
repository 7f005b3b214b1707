// Dense divergences, a cluster of blocks a row: 6 bytes an element of a 16-bit row.
#include "dense.cuh"
#include "on_chip.cuh"

namespace lmb {

template <class D, class T> LMB_FN void cluster_row(const RowArgs &a) {
  const int64_t n = int32_t(block()) / cluster_size();
  Control *control = reinterpret_cast<Control *>(shared());
  ClusterGroup group(&control->scratch);
  const double weight = row_weight(a.rows, n);
  if (weight == 0) {
    skip_row(a, n, group, 0);
    return;
  }
  OnChip<T, true> source(a, n, cluster_rank());
  source.load(control->arrival);
  divergence_row<D>(a, n, weight, source, group);
}

#define CLUSTER(name, D)                                                                    \
  LMB_KERNEL(name##_f32_cluster, kClusterThreads, 3, RowArgs, (cluster_row<D, F32>(a)))            \
  LMB_KERNEL(name##_f16_cluster, kClusterThreads, 3, RowArgs, (cluster_row<D, F16>(a)))            \
  LMB_KERNEL(name##_bf16_cluster, kClusterThreads, 3, RowArgs, (cluster_row<D, Bf16>(a)))

CLUSTER(fkl, ForwardKl)
CLUSTER(soft_ce, SoftCe)
CLUSTER(rkl, ReverseKl)
CLUSTER(sym_kl, SymKl)
CLUSTER(tvd, Tvd)
CLUSTER(gjsd, Gjsd)
CLUSTER(skl, Skl)
CLUSTER(srkl, Srkl)

}  // namespace lmb
