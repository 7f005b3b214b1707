// A row of a dense divergence: softmax of both sides, loss and gradient, wherever the row lies.
//
// Centres before it scales: x = (s − max)·c − log2 Z. Never the one-FMA form s·c − max·c, which loses the low bits.
// A row without a live logit on a side is dead: loss and gradient 0. An infinite row keeps a finite gradient.
#pragma once
#include "divergence.h"
#include "sources.cuh"

namespace lmb {

// Writes a row's share.
LMB_FN void put_slot(const RowArgs &a, int64_t n, double loss, double weight) {
  const bool infinite = !finite(loss);
  const bool dropped = infinite && (a.flags & kZeroAndCount);
  a.slots[n] = Slot{dropped ? 0.0 : weight * loss, 0, infinite ? 1u : 0u};
}

template <class Group> LMB_FN bool leads(const Group &group) { return group.rank() == 0 && thread() == 0; }

// Zero gradient for columns [from, columns), by all threads of the group.
template <class Group> LMB_FN void zero_from(const RowArgs &a, int64_t n, int from, const Group &group) {
  zero_columns(a, n, from, a.columns, group.rank() * threads() + thread(), group.size() * threads());
}

template <class Group> LMB_FN void skip_row(const RowArgs &a, int64_t n, const Group &group, uint32_t dead) {
  zero_from(a, n, 0, group);
  if (leads(group)) a.slots[n] = Slot{0.0, dead, 0};
}

template <class D, class Source, class Group>
LMB_FN void divergence_row(const RowArgs &a, int64_t n, double weight, Source &source, Group &group) {
  constexpr int kLanes = Source::kLanes;
  const float student_scale = a.student_scale, teacher_scale = a.teacher_scale;
  const Parameters<float> at{a.first, a.second};

  Running student, teacher;
  if constexpr (Source::kOnChip) {
    source.each([&](int, const float *s, const float *t) {
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        student.most = fmaxf(student.most, s[l]);
        teacher.most = fmaxf(teacher.most, t[l]);
      }
    });
  } else {
    source.each([&](int, const float *s, const float *t) {
      student.template add<kLanes>(s, student_scale);
      teacher.template add<kLanes>(t, teacher_scale);
    });
  }
  double tops[2] = {student.most, teacher.most};
  group.most(tops);
  const float student_top = Running::centre(float(tops[0])), teacher_top = Running::centre(float(tops[1]));
  double sums[2];
  if constexpr (Source::kOnChip) {
    source.each([&](int, const float *s, const float *t) {
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        student.sum += exp2_fast((s[l] - student_top) * student_scale);
        teacher.sum += exp2_fast((t[l] - teacher_top) * teacher_scale);
      }
    });
    sums[0] = student.sum;
    sums[1] = teacher.sum;
  } else {
    sums[0] = student.around(student_top, student_scale);
    sums[1] = teacher.around(teacher_top, teacher_scale);
  }
  group.add(sums);
  if (sums[0] == 0 || sums[1] == 0) {
    skip_row(a, n, group, 1);
    group.leave();
    return;
  }
  const float student_log = log2f(float(sums[0])), teacher_log = log2f(float(sums[1]));
  // 0, or NaN for a row with NaN or +inf, which columns may lose.
  const float poison = (student_log - student_log) + (teacher_log - teacher_log);
  const auto log_q = [&](float s) { return fmaf(s - student_top, student_scale, -student_log); };
  const auto log_p = [&](float t) { return fmaf(t - teacher_top, teacher_scale, -teacher_log); };

  double loss = 0, centre = 0;
  const bool wanted = a.grad.data != nullptr;
  const bool loss_first = D::kTwoStage || !wanted || (a.flags & kZeroAndCount);
  bool keeps_u = false;
  if constexpr (Source::kOnChip && D::kKeepsU) keeps_u = wanted && (Source::kWide || (a.flags & kNarrowU));
  if (loss_first) {
    float share = 0, moment = 0, mass = 0;
    source.each([&](int v, const float *s, const float *t) {
      float kept[kLanes];
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        const Term<float> term = D::term(log_q(s[l]), log_p(t[l]), at);
        share += term.loss;
        kept[l] = term.u;
        if constexpr (D::kTwoStage) {
          moment += weighted<D>(term.q, term.u);
          mass += term.q;
        }
      }
      if constexpr (Source::kOnChip && D::kKeepsU)
        if (keeps_u) source.keep(v, kept);
    });
    double totals[3] = {share, moment, mass};
    group.add(totals);
    loss = totals[0] + poison;
    // Σ q u/Σ q: the rounding of the normaliser leaves the sum.
    if (D::kTwoStage) centre = totals[1] / totals[2];
  }
  const bool lost = loss_first && !finite(loss) &&
                    ((a.flags & kZeroAndCount) || (loss > 0 && loss == loss && !finite(centre)));
  if (wanted && lost) {
    zero_from(a, n, 0, group);
  } else if (wanted) {
    const float scale = float(a.grad_factor * weight) + poison, middle = float(centre);
    float share = 0;
    if (keeps_u) {
      if constexpr (Source::kOnChip && D::kKeepsU) {
        source.each_kept([&](int v, const float *s, const float *u) {
          float g[kLanes];
#pragma unroll
          for (int l = 0; l < kLanes; ++l) g[l] = weighted<D>(power2(log_q(s[l])), u[l] - middle) * scale;
          source.store(v, g);
        });
      }
    } else {
      source.each([&](int v, const float *s, const float *t) {
        float g[kLanes];
#pragma unroll
        for (int l = 0; l < kLanes; ++l) {
          const Term<float> term = D::term(log_q(s[l]), log_p(t[l]), at);
          share += term.loss;
          g[l] = term.base * scale;
          if constexpr (D::kTwoStage) g[l] = (term.base + weighted<D>(term.q, term.u - middle)) * scale;
        }
        source.store(v, g);
      });
    }
    if (!loss_first) {
      double totals[1] = {share};
      group.add(totals);
      loss = totals[0] + poison;
    }
    zero_from(a, n, a.width, group);
  }
  if (leads(group)) put_slot(a, n, loss * a.loss_factor, weight);
  group.leave();
}

}  // namespace lmb
