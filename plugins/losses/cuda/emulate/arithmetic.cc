// The divergences of divergence.h in f64, a row at a time, for tests.
#include "../divergence.h"
#include <string.h>

namespace lmb {
namespace {

// Loss of a row and its gradient with respect to s/T from base-2 log-probabilities.
template <class D> double row(const double *x, const double *y, int width, Parameters<double> at, double *grad) {
  double loss = 0, centre = 0, mass = 0;
  for (int v = 0; v < width; ++v) {
    const Term<double> term = D::term(x[v], y[v], at);
    loss += term.loss;
    centre += times(term.q, term.u);
    mass += term.q;
  }
  centre = D::kTwoStage ? centre / mass : 0;
  for (int v = 0; v < width; ++v) {
    const Term<double> term = D::term(x[v], y[v], at);
    grad[v] = term.base + (D::kTwoStage ? times(term.q, term.u - centre) : 0);
  }
  return loss;
}

}  // namespace
}  // namespace lmb

extern "C" int limbeck_divergence(const char *name, const double *x, const double *y, int width, double first,
                                  double second, double *loss, double *grad) {
  using namespace lmb;
  const Parameters<double> at{first, second};
#define DIVERGENCE(id, D) \
  if (!strcmp(name, id)) return *loss = row<D>(x, y, width, at, grad), 1;
  DIVERGENCE("fkl", ForwardKl)
  DIVERGENCE("soft_ce", SoftCe)
  DIVERGENCE("rkl", ReverseKl)
  DIVERGENCE("sym_kl", SymKl)
  DIVERGENCE("tvd", Tvd)
  DIVERGENCE("gjsd", Gjsd)
  DIVERGENCE("skl", Skl)
  DIVERGENCE("srkl", Srkl)
  return 0;
}
