// Arguments of the kernels, as src/cuda/args.rs writes them. Strides in elements. All pointers are device memory.
#pragma once
#include <stdint.h>

namespace lmb {

// Element types.
constexpr int32_t kF32 = 0, kF16 = 1, kBf16 = 2, kF64 = 3, kI64 = 4, kI32 = 5, kU8 = 6;

struct Matrix {
  unsigned char *data;
  int64_t row, column;
  int32_t type, reserved;
};

// A vector, or NULL: not bound.
struct Column {
  const unsigned char *data;
  int64_t stride;
  int32_t type, reserved;
};

// A row's share of the sums; the CPU path has the same.
struct Slot {
  double value;
  uint32_t dead, infinite;
};

// Which rows count: label −100 and mask 0 do not.
struct Rows {
  int64_t count;
  Column labels, mask, weights;
};

constexpr uint32_t kAccumulate = 1, kZeroAndCount = 2, kNarrowU = 4, kVectorStore = 8;

// Rows of student against rows of teacher. `width` columns enter; the teacher is −inf from `teacher_width` on, the
// gradient 0 from `width` to `columns`. Columns with 0 in `class_mask`, or in the row of `row_classes`, are −inf. Without `grad.data` only the loss is computed.
struct RowArgs {
  Matrix student, teacher, grad;
  Column class_mask, targets;
  Rows rows;
  double grad_factor, loss_factor;
  float student_scale, teacher_scale, first, second;
  int32_t width, teacher_width, columns, slice;
  uint32_t flags;
  int32_t reserved;
  Slot *slots;
  Matrix row_classes;
};

constexpr int32_t kTail = 0, kTeacherRenorm = 1, kBothRenorm = 2;

// Rows of student against a teacher's top-k.
struct SparseArgs {
  RowArgs row;
  Matrix indices, values;
  Column tail;
  int32_t kept, mode, raw, reserved;
};

struct FinishArgs {
  const Slot *slots;
  int64_t count;
  float *value, *dead, *infinite;
  double normalizer;
};

constexpr int kTensors = 256;

struct VectorTensor {
  unsigned char *x, *y, *z;
  float *m, *v;
  int64_t length;
  int32_t x_type, y_type, z_type, first_chunk;
  float lr, decay;
};

// A list of tensors in chunks; a block takes one chunk.
struct VectorArgs {
  VectorTensor tensors[kTensors];
  double *partial;
  int32_t count, op;
  float a, b, beta1, beta2, eps, grad_scale, correction1, correction2;
};

struct TotalArgs {
  const double *partial;
  int64_t count;
  double *total;
};

constexpr int kListed = 1024;

// Rows of a chunk and their weights, carried by the launch itself: a copy from host memory could not be captured.
struct ListArgs {
  double weights[kListed];
  int32_t rows[kListed];
  double *to_weights;
  int32_t *to_rows;
  int32_t count, reserved;
};

// Rows from one matrix to another. Row k comes from `from_rows[k]` and goes to `to_rows[k]`, without a list from and
// to k; a negative source is a row of 0, a negative goal is left out.
struct CopyArgs {
  Matrix from, to;
  const int32_t *from_rows, *to_rows;
  int32_t columns;
  uint32_t flags;
};

// A matrix times a number on the device.
struct ScaleArgs {
  Matrix to;
  const float *factor;
  int32_t columns, reserved;
};

static_assert(sizeof(RowArgs) == 320 && sizeof(SparseArgs) == 424 && sizeof(FinishArgs) == 48, "args.rs");
static_assert(sizeof(VectorTensor) == 72 && sizeof(VectorArgs) == 72 * kTensors + 48, "args.rs");
static_assert(sizeof(ListArgs) == 12 * kListed + 24 && sizeof(CopyArgs) == 88, "args.rs");
static_assert(sizeof(ScaleArgs) == 48, "args.rs");

}  // namespace lmb
