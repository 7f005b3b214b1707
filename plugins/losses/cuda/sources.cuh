// Where a row's elements come from and its gradient goes: global memory, packed or of any layout.
//
// A source hands out columns in groups of kLanes neighbours; columns that do not enter are −inf on both sides, so
// that they add nothing to any sum. With kPair unset there is no teacher and `t` is `s`.
#pragma once
#include "rows.cuh"

namespace lmb {

// Stores a group of kLanes columns from v on.
template <int kLanes> LMB_FN void store_lanes(const RowArgs &a, int64_t n, int v, const float *g) {
  const int64_t start = n * a.grad.row;
  const bool add = a.flags & kAccumulate;
  if constexpr (kLanes > 1) {
    if ((a.flags & kVectorStore) && v + kLanes <= a.width) {
      store_vector<kLanes>(a.grad, start + v, g, add);
      return;
    }
  }
#pragma unroll
  for (int l = 0; l < kLanes; ++l)
    if (v + l < a.width) store_any(a.grad, start + (v + l) * a.grad.column, g[l], add);
}

// Rows of one type, 16-byte aligned, without gaps between columns.
template <class T, bool kPair> struct Packed {
  using Raw = typename T::Raw;
  static constexpr int kLanes = 16 / int(sizeof(Raw));
  static constexpr bool kOnChip = false;
  const RowArgs &a;
  int64_t n;

  // Columns of the row that this block sees.
  LMB_FN int first() const { return 0; }
  LMB_FN int owned() const { return a.width; }
  LMB_FN static void load(const Raw *row, int v, int width, float *to) {
    if (v + kLanes <= width) {
      unpack(T{}, *reinterpret_cast<const Vector16 *>(row + v), to);
      return;
    }
#pragma unroll
    for (int l = 0; l < kLanes; ++l) to[l] = v + l < width ? T::get(row[v + l]) : negative_infinity();
  }
  template <class F> LMB_FN void each(F f) const {
    const Raw *student = reinterpret_cast<const Raw *>(a.student.data) + n * a.student.row;
    const Raw *teacher = reinterpret_cast<const Raw *>(a.teacher.data) + n * a.teacher.row;
    for (int v = thread() * kLanes; v < a.width; v += threads() * kLanes) {
      float s[kLanes], t[kLanes];
      load(student, v, a.width, s);
      if (kPair) load(teacher, v, a.teacher_width, t);
      f(v, s, kPair ? t : s);
    }
  }
  LMB_FN void store(int v, const float *g) const { store_lanes<kLanes>(a, n, v, g); }
};

// Everything else: any types, strides, alignment and class mask.
template <bool kPair> struct Any {
  static constexpr int kLanes = 1;
  static constexpr bool kOnChip = false;
  const RowArgs &a;
  int64_t n;

  LMB_FN int first() const { return 0; }
  LMB_FN int owned() const { return a.width; }
  template <class F> LMB_FN void each(F f) const {
    for (int v = thread(); v < a.width; v += threads()) {
      float s[1] = {negative_infinity()}, t[1] = {negative_infinity()};
      if (column_kept(a, n, v)) {
        s[0] = load_any(a.student.data, n * a.student.row + v * a.student.column, a.student.type);
        if (kPair && v < a.teacher_width)
          t[0] = load_any(a.teacher.data, n * a.teacher.row + v * a.teacher.column, a.teacher.type);
      }
      f(v, s, kPair ? t : s);
    }
  }
  LMB_FN void store(int v, const float *g) const { store_lanes<1>(a, n, v, g); }
};

// Largest value so far and Σ 2^((z − largest)·scale).
struct Running {
  float most = negative_infinity(), sum = 0.0f;

  template <int kLanes> LMB_FN void add(const float *z, float scale) {
    float top = most;
#pragma unroll
    for (int l = 0; l < kLanes; ++l) top = fmaxf(top, z[l]);
    if (top > most) {
      sum *= exp2_fast((most - top) * scale);
      most = top;
    }
    const float base = centre(most);
#pragma unroll
    for (int l = 0; l < kLanes; ++l) sum += exp2_fast((z[l] - base) * scale);
  }
  // The sum around a common maximum.
  LMB_FN double around(float top, float scale) const {
    return most == negative_infinity() ? sum : sum * exp2_fast((most - top) * scale);
  }
  // What to subtract: a row of −inf stays one, a NaN in it stays visible.
  LMB_FN static float centre(float top) { return top == negative_infinity() ? 0.0f : top; }
};

}  // namespace lmb
