// Arguments of the layers' kernels, as src/layers/gpu/arguments.rs writes them. All pointers are device memory of
// contiguous, row-major tensors; `void` ones are of the kernel's element type.
#pragma once
#include <stdint.h>

namespace lmb {

// Element c of row r takes draw c % 4 of block `number · ceil(columns / 4) + c / 4`; dropped below `threshold`.
struct Dropout {
  uint32_t key[2], high[2];
  uint32_t threshold;
  float scale;
};

constexpr int32_t kIdentity = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kTanh = 4;

// y = act(x + bias); y may be x, `bias` NULL. Backward: `bias` is dy, and y becomes dx.
struct ActivateArgs {
  const void *x, *bias;
  void *y;
  int64_t rows, columns;
  int32_t kind, reserved;
};

// y = residual + drop(x); `residual` may be NULL. Row r has number r · row_step.
struct DropArgs {
  const void *x, *residual;
  void *y;
  int64_t rows, columns, row_step;
  Dropout dropout;
};

// Forward: y = norm(x) · weight + other. Backward: `other` is dy, y becomes dx, and `stats` mean and scale of each row.
struct NormArgs {
  const void *x, *weight, *other;
  void *y;
  float *stats;
  int64_t rows, columns;
  float eps;
  int32_t reserved;
};

// weights = drop(softmax(scale · scores)); with `grad`, their gradient, y becomes that of the scores.
struct AttendArgs {
  const void *scores, *grad;
  const uint8_t *keep;  // [sequences, columns] or NULL
  void *y;
  int64_t rows, columns, sequence_rows, row_step;
  Dropout dropout;
  float scale;
  int32_t reserved;
};

// Sums over strips of rows. With `stats`, of a normalization's weight and bias from x and dy; with `ids`, of the rows
// with that value alone.
struct SumArgs {
  const void *x, *grad;
  const float *stats;
  const int64_t *ids;
  float *partial;  // [strips, columns], with `stats` [strips, 2, columns]
  int64_t rows, columns, value;
};

// y[c] = sum of the strips' c, of `columns` columns in all.
struct StripArgs {
  const float *partial;
  void *y;
  int64_t strips, columns;
};

// Forward: y[n] = x[ids[n]], x a table. Backward: row ids[n] of the table y, which begins as 0, += x[n].
struct LookupArgs {
  const void *x;
  const int64_t *ids;
  void *y;
  int64_t rows, columns, table_rows, left_out;
};

static_assert(sizeof(Dropout) == 24 && sizeof(ActivateArgs) == 48 && sizeof(DropArgs) == 72, "arguments.rs");
static_assert(sizeof(NormArgs) == 64 && sizeof(AttendArgs) == 96 && sizeof(SumArgs) == 64, "arguments.rs");
static_assert(sizeof(StripArgs) == 32 && sizeof(LookupArgs) == 56, "arguments.rs");

}  // namespace lmb
