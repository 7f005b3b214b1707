// Hard labels and sparse teachers, a cluster of blocks a row: 4 bytes an element of a 16-bit row.
#include "on_chip.cuh"
#include "single.cuh"

namespace lmb {

template <class T> LMB_FN void cross_entropy_cluster(const RowArgs &a) {
  const int64_t n = int32_t(block()) / cluster_size();
  Control *control = reinterpret_cast<Control *>(shared());
  ClusterGroup group(&control->scratch);
  const double weight = row_weight(a.rows, n);
  if (weight == 0) {
    skip_row(a, n, group, 0);
    return;
  }
  OnChip<T, false> source(a, n, cluster_rank());
  source.load(control->arrival);
  cross_entropy_row(a, n, weight, source, group);
}

template <class T> LMB_FN void sparse_cluster(const SparseArgs &a) {
  const int64_t n = int32_t(block()) / cluster_size();
  Control *control = reinterpret_cast<Control *>(shared());
  ClusterGroup group(&control->scratch);
  const double weight = row_weight(a.row.rows, n);
  if (weight == 0) {
    skip_row(a.row, n, group, 0);
    return;
  }
  OnChip<T, false> source(a.row, n, cluster_rank());
  source.load(control->arrival);
  unsigned char *after = shared() + kSlices + a.row.slice * sizeof(typename T::Raw);
  sparse_row(a, n, weight, source, group, KeptSet(after, a.kept, source));
}

#define SINGLE(name, Args, body)                                              \
  LMB_KERNEL(name##_f32_cluster, kClusterThreads, 3, Args, (body<F32>(a)))    \
  LMB_KERNEL(name##_f16_cluster, kClusterThreads, 3, Args, (body<F16>(a)))    \
  LMB_KERNEL(name##_bf16_cluster, kClusterThreads, 3, Args, (body<Bf16>(a)))

SINGLE(ce, RowArgs, cross_entropy_cluster)
SINGLE(sparse, SparseArgs, sparse_cluster)

}  // namespace lmb
