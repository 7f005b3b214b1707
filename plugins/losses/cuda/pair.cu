// Squared differences of logits or hidden states, and cosines of hidden states, a block a row; sm_80 and later.
#include "dense.cuh"

namespace lmb {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;

// 0 where both are −inf.
LMB_FN float difference(float s, float t) {
  return s == negative_infinity() && t == negative_infinity() ? 0.0f : s - t;
}

// Mean of (s − t)². With `kLogits` the mean is over columns that are live on some side, and rows may be dead or
// infinite; hidden states have no such columns.
template <bool kLogits> struct Squares {
  template <class Source, class Group>
  LMB_FN static void row(const RowArgs &a, int64_t n, double weight, Source &source, Group &group) {
    constexpr int kLanes = Source::kLanes;
    float squares = 0, live_s = 0, live_t = 0, none = 0;
    source.each([&](int v, const float *s, const float *t) {
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        // Beyond the width both are −inf; a hidden state of −inf is a value like any other.
        const float d = kLogits || v + l >= a.width ? difference(s[l], t[l]) : s[l] - t[l];
        squares = fmaf(d, d, squares);
        if (kLogits) {
          const bool out_s = s[l] == negative_infinity(), out_t = t[l] == negative_infinity();
          live_s += out_s ? 0.0f : 1.0f;
          live_t += out_t ? 0.0f : 1.0f;
          none += out_s && out_t && v + l < a.width ? 1.0f : 0.0f;
        }
      }
    });
    double sums[2] = {squares, none}, lives[2] = {live_s, live_t};
    group.add(sums);
    group.add(lives);
    if (kLogits && (lives[0] == 0 || lives[1] == 0)) {
      skip_row(a, n, group, 1);
      return;
    }
    const double columns = a.width - sums[1], loss = sums[0] / columns;
    const bool lost = kLogits && !finite(loss) && !(loss != loss && !(a.flags & kZeroAndCount));
    if (a.grad.data && lost) {
      zero_from(a, n, 0, group);
    } else if (a.grad.data) {
      const float scale = float(a.grad_factor * weight * 2 / columns);
      source.each([&](int v, const float *s, const float *t) {
        float g[kLanes];
#pragma unroll
        for (int l = 0; l < kLanes; ++l) g[l] = (kLogits ? difference(s[l], t[l]) : s[l] - t[l]) * scale;
        source.store(v, g);
      });
      zero_from(a, n, a.width, group);
    }
    if (leads(group)) put_slot(a, n, loss * a.loss_factor, weight);
  }
};

// 1 − cos(h, t); a row whose target is negative costs max(0, cos − margin), margin `first`. Sums in f64: the
// gradient is a difference of nearly parallel directions.
struct Cosine {
  template <class Source, class Group>
  LMB_FN static void row(const RowArgs &a, int64_t n, double weight, Source &source, Group &group) {
    constexpr int kLanes = Source::kLanes;
    constexpr double kZeroNorm = 1e-12;
    double sums[3] = {0, 0, 0};
    source.each([&](int v, const float *h, const float *t) {
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        if (v + l >= a.width) continue;
        sums[0] += double(h[l]) * h[l];
        sums[1] += double(t[l]) * t[l];
        sums[2] += double(h[l]) * t[l];
      }
    });
    group.add(sums);
    const bool opposite =
        a.targets.data && load_any(a.targets.data, n * a.targets.stride, a.targets.type) < 0.0f;
    const double norm_h = sqrt(sums[0]), norm_t = sqrt(sums[1]), margin = a.first;
    const bool none = norm_h <= kZeroNorm || norm_t <= kZeroNorm;
    const double cosine = none ? 0.0 : sums[2] / norm_h / norm_t;
    const double over = cosine - margin;
    const double loss = !opposite ? 1.0 - cosine : (over <= 0 ? 0.0 : over);
    const double slope = !opposite ? -1.0 : (over > 0 ? 1.0 : 0.0);
    if (a.grad.data && none) {
      zero_from(a, n, 0, group);
    } else if (a.grad.data) {
      const double factor = slope * a.grad_factor * weight / norm_h;
      const double of_t = factor / norm_t, of_h = factor * cosine / norm_h;
      source.each([&](int v, const float *h, const float *t) {
        float g[kLanes];
#pragma unroll
        for (int l = 0; l < kLanes; ++l) g[l] = float(of_t * t[l] - of_h * h[l]);
        source.store(v, g);
      });
    }
    if (leads(group)) put_slot(a, n, loss * a.loss_factor, weight);
  }
};

template <class Loss, class Source> LMB_FN void pair_block(const RowArgs &a) {
  const int64_t n = block();
  BlockGroup<kWarps> group{reinterpret_cast<Scratch<kWarps> *>(shared())};
  const double weight = row_weight(a.rows, n);
  if (weight == 0) {
    skip_row(a, n, group, 0);
    return;
  }
  Source source{a, n};
  Loss::row(a, n, weight, source, group);
}

#define PAIR(name, Loss)                                                                   \
  LMB_KERNEL(name##_f32, kThreads, 2, RowArgs, (pair_block<Loss, Packed<F32, true>>(a)))   \
  LMB_KERNEL(name##_f16, kThreads, 2, RowArgs, (pair_block<Loss, Packed<F16, true>>(a)))   \
  LMB_KERNEL(name##_bf16, kThreads, 2, RowArgs, (pair_block<Loss, Packed<Bf16, true>>(a))) \
  LMB_KERNEL(name##_any, kThreads, 2, RowArgs, (pair_block<Loss, Any<true>>(a)))

PAIR(logit_mse, Squares<true>)
PAIR(hidden_mse, Squares<false>)
PAIR(cosine, Cosine)

}  // namespace lmb
