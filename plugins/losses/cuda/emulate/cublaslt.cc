// The functions of libcublasLt.so.13 that src/cuda/lt.rs uses, on host memory. Numbers of enumerators are those of
// cublasLt.h. Refuses what the library would: layouts that do not fit, pointers less aligned than was said, an
// algorithm of another product. Overwrites the workspace, which is the library's to use.
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <vector>

namespace {

constexpr int kSuccess = 0, kInvalidValue = 7, kNotSupported = 15;
constexpr int kComputeF32 = 68, kF32 = 0, kF16 = 2, kBf16 = 14;
constexpr int kTransA = 3, kTransB = 4, kWorkspace = 1, kAlignA = 5, kAlignD = 8;
constexpr uint64_t kMagic = 0x6c74;
constexpr size_t kUsed = 1 << 20;

struct Desc {
  int32_t transposed[2];
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t stride;
};
struct Preference {
  uint64_t workspace;
  uint32_t align[4];
};
struct Algorithm {
  uint64_t data[8];
};
struct Proposal {
  Algorithm algorithm;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

// m, n, k, or no product.
bool sizes(const Desc &desc, const Layout &a, const Layout &b, const Layout &d, uint64_t (&size)[3]) {
  const auto across = [](const Layout &x, int turned) { return turned ? x.columns : x.rows; };
  const auto along = [](const Layout &x, int turned) { return turned ? x.rows : x.columns; };
  size[0] = d.rows, size[1] = d.columns, size[2] = along(a, desc.transposed[0]);
  return across(a, desc.transposed[0]) == size[0] && along(b, desc.transposed[1]) == size[1] &&
         across(b, desc.transposed[1]) == size[2] && d.type == kF32 && a.type == b.type;
}

float get(const void *data, int type, uint64_t at) {
  if (type == kF32) return static_cast<const float *>(data)[at];
  const uint16_t bits = static_cast<const uint16_t *>(data)[at];
  if (type == kF16) {
    const int exponent = (bits >> 10) & 31, mantissa = bits & 0x3ff;
    const float magnitude = exponent == 31 ? (mantissa ? NAN : INFINITY)
                            : exponent     ? ldexpf(float(0x400 | mantissa), exponent - 25)
                                           : ldexpf(float(mantissa), -24);
    return bits & 0x8000 ? -magnitude : magnitude;
  }
  const uint32_t wide = uint32_t(bits) << 16;
  float x;
  memcpy(&x, &wide, sizeof x);
  return x;
}

// op(x) [rows, columns], row-major.
std::vector<float> turned(const void *data, const Layout &x, bool transposed) {
  const uint64_t rows = transposed ? x.columns : x.rows, columns = transposed ? x.rows : x.columns;
  std::vector<float> out(rows * columns);
  for (uint64_t i = 0; i < rows; ++i)
    for (uint64_t j = 0; j < columns; ++j)
      out[i * columns + j] = get(data, x.type, transposed ? i * uint64_t(x.stride) + j : j * uint64_t(x.stride) + i);
  return out;
}

}  // namespace

extern "C" {

int cublasLtCreate(void **handle) { return *handle = new int, kSuccess; }
const char *cublasLtGetStatusString(int) { return "emulated"; }

int cublasLtMatmulDescCreate(Desc **desc, int compute, int scale) {
  if (compute != kComputeF32 || scale != kF32) return kInvalidValue;
  return *desc = new Desc{}, kSuccess;
}
int cublasLtMatmulDescSetAttribute(Desc *desc, int name, const void *value, size_t bytes) {
  if ((name != kTransA && name != kTransB) || bytes != sizeof(int32_t)) return kInvalidValue;
  return memcpy(&desc->transposed[name - kTransA], value, bytes), kSuccess;
}
int cublasLtMatmulDescDestroy(Desc *desc) { return delete desc, kSuccess; }

int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  const bool known = type == kF32 || type == kF16 || type == kBf16;
  if (!known || rows == 0 || columns == 0 || stride < int64_t(rows)) return kInvalidValue;
  return *layout = new Layout{type, rows, columns, stride}, kSuccess;
}
int cublasLtMatrixLayoutDestroy(Layout *layout) { return delete layout, kSuccess; }

int cublasLtMatmulPreferenceCreate(Preference **preference) {
  return *preference = new Preference{0, {256, 256, 256, 256}}, kSuccess;
}
int cublasLtMatmulPreferenceSetAttribute(Preference *preference, int name, const void *value, size_t bytes) {
  if (name == kWorkspace && bytes == sizeof(uint64_t)) return memcpy(&preference->workspace, value, bytes), kSuccess;
  if (name < kAlignA || name > kAlignD || bytes != sizeof(uint32_t)) return kInvalidValue;
  return memcpy(&preference->align[name - kAlignA], value, bytes), kSuccess;
}
int cublasLtMatmulPreferenceDestroy(Preference *preference) { return delete preference, kSuccess; }

int cublasLtMatmulAlgoGetHeuristic(void *, const Desc *desc, const Layout *a, const Layout *b, const Layout *c,
                                   const Layout *d, const Preference *preference, int wanted, Proposal *found,
                                   int *count) {
  uint64_t size[3];
  if (wanted != 1 || c != d || !sizes(*desc, *a, *b, *d, size)) return kInvalidValue;
  if (preference->workspace < kUsed) return kNotSupported;
  *found = Proposal{};
  uint64_t *data = found->algorithm.data;
  data[0] = kMagic;
  memcpy(data + 1, size, sizeof size);
  for (int k = 0; k < 3; ++k) data[4 + k] = preference->align[k == 2 ? 3 : k];
  found->workspace = kUsed;
  return *count = 1, kSuccess;
}

int cublasLtMatmul(void *, const Desc *desc, const float *alpha, const void *a, const Layout *a_layout, const void *b,
                   const Layout *b_layout, const float *beta, const float *c, const Layout *c_layout, float *d,
                   const Layout *d_layout, const Algorithm *algorithm, void *workspace, size_t bytes, void *) {
  uint64_t size[3];
  if (c != d || c_layout != d_layout || !sizes(*desc, *a_layout, *b_layout, *d_layout, size)) return kInvalidValue;
  const uint64_t *data = algorithm->data;
  if (data[0] != kMagic || memcmp(data + 1, size, sizeof size) || bytes < kUsed) return kInvalidValue;
  const void *pointers[] = {a, b, d};
  for (int k = 0; k < 3; ++k)
    if (reinterpret_cast<uintptr_t>(pointers[k]) % data[4 + k]) return kInvalidValue;
  memset(workspace, 0xff, kUsed);
  const auto [m, n, k] = size;
  const std::vector<float> left = turned(a, *a_layout, desc->transposed[0]);
  // Columns of op(B) side by side.
  const std::vector<float> right = turned(b, *b_layout, !desc->transposed[1]);
  for (uint64_t j = 0; j < n; ++j) {
    for (uint64_t i = 0; i < m; ++i) {
      double sum = 0;
      for (uint64_t l = 0; l < k; ++l) sum += double(left[i * k + l]) * right[j * k + l];
      float &to = d[j * uint64_t(d_layout->stride) + i];
      // β = 0 does not read.
      to = float(*alpha * sum + (*beta == 0 ? 0.0 : double(*beta) * to));
    }
  }
  return kSuccess;
}
}
