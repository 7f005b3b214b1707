// The arithmetic of every dense divergence, one column at a time; the counterpart of src/cpu/divergence.rs.
//
// A column gives its share of the loss, `base` and `u`; the gradient with respect to s/T is base + q·(u − Σ q u).
// A constant in u changes nothing, so u is 0 where p = q: few bits then say much.
// x and y are base-2 log-probabilities of student and teacher. Probabilities may underflow, their logarithms do
// not. Where u can be infinite (kBounded unset), what is multiplied by a probability of 0 is selected away. A row with
// NaN has no finite normaliser: its caller makes the results NaN, columns need not.
// A is float in kernels; float and double on a CPU, where tests take differences of it.
#pragma once
#include "platform.cuh"

namespace lmb {

LMB_FN float power2(float x) { return exp2_fast(x); }
LMB_FN float logarithm2(float x) { return log2_fast(x); }
LMB_FN float inverse(float x) { return reciprocal_fast(x); }
LMB_FN float magnitude(float x) { return fabsf(x); }
LMB_FN float larger_of(float x, float y) { return fmaxf(x, y); }
LMB_FN float smaller_of(float x, float y) { return fminf(x, y); }
#if !defined(__CUDACC__)
LMB_FN double power2(double x) { return exp2(x); }
LMB_FN double logarithm2(double x) { return log2(x); }
LMB_FN double inverse(double x) { return 1.0 / x; }
LMB_FN double magnitude(double x) { return fabs(x); }
LMB_FN double larger_of(double x, double y) { return fmax(x, y); }
LMB_FN double smaller_of(double x, double y) { return fmin(x, y); }
#endif

template <class A> struct Term {
  A q, loss, base, u;
};

// β of gjsd, α of skl, share of srkl's teacher, λ of sym_kl; the second is α of srkl unless detached.
template <class A> struct Parameters {
  A first, second;
};

template <class A> LMB_FN A times(A p, A r) { return p == A(0) ? A(0) : p * r; }
// q·r for an r that is as finite as D's u.
template <class D, class A> LMB_FN A weighted(A q, A r) { return D::kBounded ? q * r : times(q, r); }
constexpr double kLn2 = 0.693147180559945309417232121458;

// KL(p‖q).
struct ForwardKl {
  static constexpr bool kTwoStage = false, kKeepsU = false, kBounded = true;
  template <class A> LMB_FN static Term<A> term(A x, A y, Parameters<A>) {
    const A q = power2(x), p = power2(y);
    // −p + q sums to 0, but takes the rounding of both normalisers out of the sum.
    return {q, times(p, (y - x) * A(kLn2)) + (q - p), q - p, A(0)};
  }
};

// −Σ p ln q.
struct SoftCe {
  static constexpr bool kTwoStage = false, kKeepsU = false, kBounded = true;
  template <class A> LMB_FN static Term<A> term(A x, A y, Parameters<A>) {
    const A q = power2(x), p = power2(y);
    return {q, times(p, -x * A(kLn2)), q - p, A(0)};
  }
};

// KL(q‖p).
struct ReverseKl {
  static constexpr bool kTwoStage = true, kKeepsU = false, kBounded = false;
  template <class A> LMB_FN static Term<A> term(A x, A y, Parameters<A>) {
    const A q = power2(x), p = power2(y), u = (x - y) * A(kLn2);
    return {q, times(q, u) + (p - q), A(0), u};
  }
};

// λ KL(p‖q) + (1−λ) KL(q‖p).
struct SymKl {
  static constexpr bool kTwoStage = true, kKeepsU = false, kBounded = false;
  template <class A> LMB_FN static Term<A> term(A x, A y, Parameters<A> at) {
    const A q = power2(x), p = power2(y), ratio = (x - y) * A(kLn2);
    const A lambda = at.first, rest = A(1) - at.first;
    const A forward = times(p, -ratio) + (q - p), reverse = times(q, ratio) + (p - q);
    return {q, lambda * forward + rest * reverse, lambda * (q - p), rest * ratio};
  }
};

// ½ Σ|p − q|; ties have no slope.
struct Tvd {
  static constexpr bool kTwoStage = true, kKeepsU = false, kBounded = true;
  template <class A> LMB_FN static Term<A> term(A x, A y, Parameters<A>) {
    const A q = power2(x), p = power2(y);
    const A sign = x > y ? A(0.5) : (x < y ? A(-0.5) : A(0));
    return {q, A(0.5) * magnitude(p - q), A(0), sign};
  }
};

// p and q, and both against m = share·p + (1−share)·q, all from the larger of the two: nothing overflows,
// nothing cancels where they are close, and two powers do instead of three. Beyond 2^±kFar the smaller is nothing
// beside the larger, and its logarithm stays finite.
template <class A> struct Mixture {
  static constexpr double kFar = 250;
  A p, q, log2_p, log2_q;  // logarithms of p/m and q/m
  A p_over_m, q_over_m;
  LMB_FN Mixture(A share, A x, A y) {
    const A rest = A(1) - share;
    // NaN where both are −inf: any number will do, both powers are 0.
    const A gap = smaller_of(larger_of(y - x, A(-kFar)), A(kFar));
    const bool teacher = gap >= A(0);
    const A larger = power2(larger_of(x, y)), a = power2(-magnitude(gap)), smaller = larger * a;
    p = teacher ? larger : smaller;
    q = teacher ? smaller : larger;
    const A m = (teacher ? share : rest) + (teacher ? rest : share) * a;
    const A log2_m = logarithm2(m), over = inverse(m);
    log2_p = smaller_of(gap, A(0)) - log2_m;
    log2_q = smaller_of(-gap, A(0)) - log2_m;
    p_over_m = teacher ? over : a * over;
    q_over_m = teacher ? a * over : over;
  }
};

// β KL(p‖m) + (1−β) KL(q‖m), m = βp + (1−β)q.
struct Gjsd {
  static constexpr bool kTwoStage = true, kKeepsU = true, kBounded = true;
  template <class A> LMB_FN static Term<A> term(A x, A y, Parameters<A> at) {
    const A of_p = at.first * A(kLn2), of_q = (A(1) - at.first) * A(kLn2);
    const Mixture<A> m(at.first, x, y);
    const A u = of_q * m.log2_q;
    return {m.q, of_p * m.log2_p * m.p + u * m.q, A(0), u};
  }
};

// KL(p‖m), m = αp + (1−α)q.
struct Skl {
  static constexpr bool kTwoStage = true, kKeepsU = true, kBounded = true;
  template <class A> LMB_FN static Term<A> term(A x, A y, Parameters<A> at) {
    const A rest = A(1) - at.first;
    const Mixture<A> m(at.first, x, y);
    return {m.q, A(kLn2) * m.log2_p * m.p + rest * (m.q - m.p), A(0), rest - rest * m.p_over_m};
  }
};

// KL(q‖m), m = share·p + (1−share)·q; `second` is 1−share, or 0 with the mixture detached.
struct Srkl {
  static constexpr bool kTwoStage = true, kKeepsU = true, kBounded = true;
  template <class A> LMB_FN static Term<A> term(A x, A y, Parameters<A> at) {
    const Mixture<A> m(at.first, x, y);
    const A log_q = A(kLn2) * m.log2_q;
    return {m.q, log_q * m.q + at.first * (m.p - m.q), A(0), log_q + (at.second - at.second * m.q_over_m)};
  }
};

}  // namespace lmb
