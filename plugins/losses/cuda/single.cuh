// Losses of a student's row alone against a label, or against a teacher that kept only its top-k.
//
// The kept columns are a bitmap in shared memory. A label or an index outside the row, or an index that stands
// there twice, makes the row's loss NaN and its gradient 0: hosts refuse them before, kernels never read outside.
#pragma once
#include "dense.cuh"

namespace lmb {

constexpr double kLog2E = 1.442695040888963407359924681002;

// −Σ y′ ln softmax(s), y′ = (1−ε)e_y + ε/V_live; ε is `first`.
template <class Source, class Group>
LMB_FN void cross_entropy_row(const RowArgs &a, int64_t n, double weight, Source &source, Group &group) {
  constexpr int kLanes = Source::kLanes;
  const float smoothing = a.first, scale2 = a.student_scale;
  Running running;
  source.each([&](int, const float *s, const float *) { running.template add<kLanes>(s, scale2); });
  const int64_t label = load_index(a.rows.labels.data, n * a.rows.labels.stride, a.rows.labels.type);
  const bool known = label >= 0 && label < a.width && column_kept(a, n, int(label));
  const float target =
      known ? load_any(a.student.data, n * a.student.row + label * a.student.column, a.student.type) : not_a_number();
  double tops[1] = {running.most};
  group.most(tops);
  const float top = Running::centre(float(tops[0]));
  double sums[3] = {running.around(top, scale2), 0, 0};
  if (smoothing != 0) {
    float mean = 0, live = 0;
    source.each([&](int, const float *s, const float *) {
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        const bool out = s[l] == negative_infinity();
        mean += out ? 0.0f : s[l] - top;
        live += out ? 0.0f : 1.0f;
      }
    });
    sums[1] = mean;
    sums[2] = live;
  }
  group.add(sums);
  if (sums[0] == 0) {
    skip_row(a, n, group, 1);
    group.leave();
    return;
  }
  const double log_sum = log(sums[0]);
  double loss = (1.0 - smoothing) * (log_sum - double(target - top));
  if (smoothing != 0) loss += smoothing * (log_sum - sums[1] / sums[2]);
  const bool lost = !known || (!finite(loss) && (a.flags & kZeroAndCount));
  if (a.grad.data && lost) {
    zero_from(a, n, 0, group);
  } else if (a.grad.data) {
    const float scale = float(a.grad_factor * weight), log2_sum = log2f(float(sums[0]));
    const float share = smoothing != 0 ? float(smoothing / sums[2]) : 0.0f;
    source.each([&](int v, const float *s, const float *) {
      float g[kLanes];
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        const float q = exp2_fast(fmaf(s[l] - top, scale2, -log2_sum));
        g[l] = q - (s[l] == negative_infinity() ? 0.0f : share);
        if (v + l == label) g[l] -= 1.0f - smoothing;
        g[l] *= scale;
      }
      source.store(v, g);
    });
    zero_from(a, n, a.width, group);
  }
  if (leads(group)) put_slot(a, n, loss * a.loss_factor, weight);
  group.leave();
}

// ln(exp a + exp b).
LMB_FN double log_add(double a, double b) {
  const double top = a > b ? a : b;
  if (top - top != 0) return top;
  return top + log(exp(a - top) + exp(b - top));
}

// A kept column of a row.
struct Kept {
  int column;  // −1: absent, or another block's
  float student, grad;
};

// Shared memory of a sparse row: the kept columns, then a bit for each of the `owned` columns from `first` on, which
// are those that this block sees.
struct KeptSet {
  Kept *entries;
  uint32_t *bits;
  int first, owned;
  template <class Source>
  LMB_FN KeptSet(unsigned char *memory, int kept, const Source &source)
      : entries(reinterpret_cast<Kept *>(memory)),
        bits(reinterpret_cast<uint32_t *>(entries + kept)),
        first(source.first()),
        owned(source.owned()) {}
  // Bit l: column v + l is kept. v − first is a multiple of the number of lanes.
  LMB_FN uint32_t lanes(int v) const { return bits[(v - first) >> 5] >> ((v - first) & 31); }
};

// Fills the set; false in some thread if an index is out of range or stands there twice.
LMB_FN bool collect(const SparseArgs &a, int64_t n, KeptSet set) {
  for (int word = thread(); word < (set.owned + 31) / 32; word += threads()) set.bits[word] = 0;
  sync_block();
  bool good = true;
  for (int i = thread(); i < a.kept; i += threads()) {
    const int64_t index = load_index(a.indices.data, n * a.indices.row + i * a.indices.column, a.indices.type);
    Kept entry{-1, negative_infinity(), 0.0f};
    const int64_t place = index - set.first;
    if (place >= 0 && place < set.owned) {
      good = good && !set_bit(set.bits, int(place));
      const Matrix &s = a.row.student;
      entry = {int(index), load_any(s.data, n * s.row + index * s.column, s.type), 0.0f};
    } else {
      good = good && index >= -1 && index < a.row.width;
    }
    set.entries[i] = entry;
  }
  sync_block();
  return good;
}

LMB_FN double teacher_entry(const SparseArgs &a, int64_t n, int i) {
  const double value = load_any(a.values.data, n * a.values.row + i * a.values.column, a.values.type);
  return a.raw ? value * (double(a.row.teacher_scale) / kLog2E) : value;
}

// ln p is an entry minus `shift`; `rest` is ln p of all columns that were not kept.
struct Teacher {
  double shift, rest;
  bool live;
};

LMB_FN Teacher teacher_row(const SparseArgs &a, int64_t n, double inside, double mass) {
  const double none = negative_infinity();
  if (a.mode != kTail) return {inside, none, inside != none};
  const double tail = a.tail.data ? double(load_any(a.tail.data, n * a.tail.stride, a.tail.type)) : none;
  if (a.raw) {
    const double all = log_add(inside, tail);
    return {all, tail - all, all != none};
  }
  const double rest = a.tail.data ? tail : (mass >= 1 ? none : log1p(-mass));
  return {0, rest, inside != none || rest != none};
}

template <class Source, class Group>
LMB_FN void sparse_row(const SparseArgs &a, int64_t n, double weight, Source &source, Group &group, KeptSet set) {
  constexpr int kLanes = Source::kLanes;
  const RowArgs &row = a.row;
  const double none = negative_infinity();
  double bad[1] = {collect(a, n, set) ? 0.0 : 1.0};
  Running rest;
  source.each([&](int v, const float *s, const float *) {
    const uint32_t kept = set.lanes(v);
    float z[kLanes];
#pragma unroll
    for (int l = 0; l < kLanes; ++l) z[l] = (kept >> l) & 1 ? negative_infinity() : s[l];
    rest.template add<kLanes>(z, row.student_scale);
  });
  float kept_top = negative_infinity(), teacher_top = negative_infinity();
  for (int i = thread(); i < a.kept; i += threads()) {
    if (set.entries[i].column < 0) continue;
    kept_top = fmaxf(kept_top, set.entries[i].student);
    teacher_top = fmaxf(teacher_top, float(teacher_entry(a, n, i)));
  }
  double tops[3] = {rest.most, kept_top, teacher_top};
  group.most(tops);
  const float rest_centre = Running::centre(float(tops[0])), kept_centre = Running::centre(float(tops[1]));
  const double teacher_centre = Running::centre(float(tops[2])), student_scale = row.student_scale / kLog2E;
  double sums[3] = {rest.around(rest_centre, row.student_scale), 0, 0}, masses[2] = {0, bad[0]};
  for (int i = thread(); i < a.kept; i += threads()) {
    if (set.entries[i].column < 0) continue;
    const double value = teacher_entry(a, n, i);
    sums[1] += exp((double(set.entries[i].student) - kept_centre) * student_scale);
    sums[2] += exp(value - teacher_centre);
    masses[0] += exp(value);
  }
  group.add(sums);
  group.add(masses);
  const Teacher teacher = teacher_row(a, n, sums[2] == 0 ? none : teacher_centre + log(sums[2]), masses[0]);
  if ((sums[0] == 0 && sums[1] == 0) || !teacher.live) {
    skip_row(row, n, group, 1);
    group.leave();
    return;
  }
  // Natural logarithms of the sums over the rest, over the kept columns and over all.
  const double rest_log = sums[0] == 0 ? none : rest_centre * student_scale + log(sums[0]);
  const double kept_log = sums[1] == 0 ? none : kept_centre * student_scale + log(sums[1]);
  const double all_log = log_add(rest_log, kept_log);
  const double shift = a.mode == kBothRenorm ? kept_log : all_log;
  double total[1] = {0};
  for (int i = thread(); i < a.kept; i += threads()) {
    Kept &entry = set.entries[i];
    if (entry.column < 0) continue;
    const double log_p = teacher_entry(a, n, i) - teacher.shift, p = exp(log_p);
    const double log_q = entry.student * student_scale - shift;
    total[0] += times(p, log_p - log_q);
    entry.grad = float(exp(log_q) - p);
  }
  group.add(total);
  double loss = total[0];
  if (a.mode == kTail) loss += times(exp(teacher.rest), teacher.rest - (rest_log - all_log));
  if (masses[1] != 0) loss = not_a_number();
  const bool lost = masses[1] != 0 || (!finite(loss) && (row.flags & kZeroAndCount));
  if (row.grad.data && lost) {
    zero_from(row, n, 0, group);
  } else if (row.grad.data) {
    const float scale = float(row.grad_factor * weight);
    // Around the larger of both maxima, in base 2.
    const float top = fmaxf(rest_centre, tops[1] == none ? rest_centre : kept_centre);
    const float log2_sum = float((all_log - top * student_scale) * kLog2E);
    const float to_teacher = float((teacher.rest - (rest_log - all_log)) * kLog2E);
    source.each([&](int v, const float *s, const float *) {
      const uint32_t kept = set.lanes(v);
      float g[kLanes];
#pragma unroll
      for (int l = 0; l < kLanes; ++l) {
        const float x = fmaf(s[l] - top, row.student_scale, -log2_sum);
        g[l] = a.mode == kBothRenorm || s[l] == negative_infinity() ? 0.0f : exp2_fast(x);
        if (a.mode == kTail && s[l] != negative_infinity()) g[l] -= exp2_fast(x + to_teacher);
        g[l] = (kept >> l) & 1 ? 0.0f : g[l] * scale;
      }
      source.store(v, g);
    });
    zero_from(row, n, row.width, group);
    sync_block();
    const bool add = row.flags & kAccumulate;
    for (int i = thread(); i < a.kept; i += threads()) {
      const Kept &entry = set.entries[i];
      if (entry.column < 0) continue;
      store_any(row.grad, n * row.grad.row + entry.column * row.grad.column, entry.grad * scale, add);
    }
  }
  if (leads(group)) put_slot(row, n, loss * row.loss_factor, weight);
  group.leave();
}

}  // namespace lmb
