// Rows in and out of the chunks of a fused linear loss, and kept gradients under a factor; a block a row, sm_80 and
// later.
#include "rows.cuh"

namespace lmb {

constexpr int kThreads = 256;

LMB_FN void list_rows(const ListArgs &a) {
  for (int k = thread(); k < a.count; k += threads()) {
    a.to_rows[k] = a.rows[k];
    a.to_weights[k] = a.weights[k];
  }
}

LMB_FN void copy_row(const CopyArgs &a) {
  const int64_t from = a.from_rows ? a.from_rows[block()] : block(), to = a.to_rows ? a.to_rows[block()] : block();
  if (to < 0) return;
  const bool nothing = from < 0 || !a.from.data, add = a.flags & kAccumulate;
  for (int v = thread(); v < a.columns; v += threads()) {
    const float x = nothing ? 0.0f : load_any(a.from.data, from * a.from.row + v * a.from.column, a.from.type);
    store_any(a.to, to * a.to.row + v * a.to.column, x, add);
  }
}

// A factor of 1, which most losses have, costs no access.
LMB_FN void scale_row(const ScaleArgs &a) {
  const float factor = *a.factor;
  if (factor == 1.0f) return;
  for (int v = thread(); v < a.columns; v += threads()) {
    const int64_t at = block() * a.to.row + v * a.to.column;
    store_any(a.to, at, load_any(a.to.data, at, a.to.type) * factor, false);
  }
}

LMB_KERNEL(linear_list, kThreads, 1, ListArgs, (list_rows(a)))
LMB_KERNEL(linear_copy, kThreads, 4, CopyArgs, (copy_row(a)))
LMB_KERNEL(linear_scale, kThreads, 4, ScaleArgs, (scale_row(a)))

}  // namespace lmb
