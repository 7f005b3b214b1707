// Rows on chip: each block of a cluster holds its slice in shared memory, so that global memory sees every element
// once. Rows are 16-byte aligned, of one type, without gaps; sm_90.
#pragma once
#include "sources.cuh"

namespace lmb {

constexpr int kClusterThreads = 256, kClusterWarps = kClusterThreads / kWarp;

struct Control {
  Scratch<kClusterWarps> scratch;
  Arrival arrival;
};
// Where the slices start; three blocks of 18,992 16-bit pairs fit into an SM beside it.
constexpr int kSlices = 768;
static_assert(sizeof(Control) <= kSlices && kSlices % 128 == 0, "shared memory");

// This block's slice of the student's row, and with kPair of the teacher's, in shared memory.
template <class T, bool kPair> struct OnChip {
  using Raw = typename T::Raw;
  static constexpr int kLanes = 16 / int(sizeof(Raw));
  static constexpr bool kOnChip = true, kWide = sizeof(Raw) == 4;
  const RowArgs &a;
  int64_t n;
  int begin, length;  // columns; the length is a multiple of kLanes
  Raw *student, *teacher;

  LMB_FN OnChip(const RowArgs &a, int64_t n, int rank) : a(a), n(n), begin(rank * a.slice) {
    student = reinterpret_cast<Raw *>(shared() + kSlices);
    teacher = student + a.slice;
    length = (inside(a.width) + kLanes - 1) / kLanes * kLanes;
  }
  LMB_FN int first() const { return begin; }
  LMB_FN int owned() const { return inside(a.width); }
  // Columns of this slice below `width`.
  LMB_FN int inside(int width) const {
    const int left = width - begin;
    return left < 0 ? 0 : (left > a.slice ? a.slice : left);
  }
  LMB_FN void load(Arrival &arrival) {
    const Raw *from_student = reinterpret_cast<const Raw *>(a.student.data) + n * a.student.row + begin;
    const Raw *from_teacher = reinterpret_cast<const Raw *>(a.teacher.data) + n * a.teacher.row + begin;
    const int students = inside(a.width), teachers = kPair ? inside(a.teacher_width) : 0;
    const int whole_students = students / kLanes * kLanes, whole_teachers = teachers / kLanes * kLanes;
    if (thread() == 0) {
      arrival.init();
      arrival.expect(uint32_t(whole_students + whole_teachers) * uint32_t(sizeof(Raw)));
      if (whole_students) arrival.copy(student, from_student, uint32_t(whole_students * sizeof(Raw)), false);
      if (whole_teachers) arrival.copy(teacher, from_teacher, uint32_t(whole_teachers * sizeof(Raw)), true);
    }
    for (int v = whole_students + thread(); v < length; v += threads())
      student[v] = v < students ? from_student[v] : minus_infinity();
    for (int v = whole_teachers + thread(); kPair && v < length; v += threads())
      teacher[v] = v < teachers ? from_teacher[v] : minus_infinity();
    sync_block();
    arrival.wait();
  }
  LMB_FN static Raw minus_infinity() {
    if constexpr (kWide) return negative_infinity();
    if constexpr (!kWide) return T::kType == kF16 ? uint16_t(0xfc00) : uint16_t(0xff80);
  }
  template <class As, class F> LMB_FN void visit(F f) const {
    for (int v = thread() * kLanes; v < length; v += threads() * kLanes) {
      float s[kLanes], t[kLanes];
      unpack(T{}, *reinterpret_cast<const Vector16 *>(student + v), s);
      if (kPair) unpack(As{}, *reinterpret_cast<const Vector16 *>(teacher + v), t);
      f(begin + v, s, kPair ? t : s);
    }
  }
  template <class F> LMB_FN void each(F f) const { visit<T>(f); }

  // u over the teacher's logits: as f32 over 32 bits, as f16 over 16 (only where the gradient has 16 bits too).
  template <class F> LMB_FN void each_kept(F f) const {
    if constexpr (kWide) visit<F32>(f);
    if constexpr (!kWide) visit<F16>(f);
  }
  LMB_FN void keep(int v, const float *u) const {
#pragma unroll
    for (int l = 0; l < kLanes; ++l) {
      if constexpr (kWide) teacher[v - begin + l] = u[l];
      if constexpr (!kWide) teacher[v - begin + l] = f16_bits(u[l]);
    }
  }
  LMB_FN void store(int v, const float *g) const { store_lanes<kLanes>(a, n, v, g); }
};

// The blocks of a cluster.
struct ClusterGroup {
  Scratch<kClusterWarps> *scratch;
  int phase = 0;
  LMB_FN explicit ClusterGroup(Scratch<kClusterWarps> *scratch) : scratch(scratch) {}
  LMB_FN int rank() const { return cluster_rank(); }
  LMB_FN int size() const { return cluster_size(); }
  LMB_FN void leave() { sync_cluster(); }
  template <int N> LMB_FN void add(double (&x)[N]) { total<N, false>(x); }
  template <int N> LMB_FN void most(double (&x)[N]) { total<N, true>(x); }

  // Every block reads all totals in order of rank, so all hold the same bits.
  template <int N, bool kMost> LMB_FN void total(double (&x)[N]) {
    BlockGroup<kClusterWarps>{scratch}.template total<N, kMost>(x);
    if (thread() == 0) {
#pragma unroll
      for (int k = 0; k < N; ++k) scratch->phase[phase][k] = x[k];
    }
    sync_cluster();
    if (thread() < cluster_size()) {
#pragma unroll
      for (int k = 0; k < N; ++k) scratch->peers[thread()][k] = *of_peer(&scratch->phase[phase][k], thread());
    }
    sync_block();
#pragma unroll
    for (int k = 0; k < N; ++k) {
      x[k] = scratch->peers[0][k];
      for (int r = 1; r < cluster_size(); ++r) x[k] = combine<kMost>(x[k], scratch->peers[r][k]);
    }
    ++phase;
  }
};

}  // namespace lmb
