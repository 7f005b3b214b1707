// Gradients that are sums over rows: of biases, of a normalization's weight and bias, of a table. No atomics: every sum
// has one order.
#include "quads.cuh"

namespace lmb {

constexpr int kSumThreads = 256, kSumLanes = kSumThreads / kWarp;
// Rows of a strip; a block sums a strip of 32 columns.
constexpr int64_t kStrip = 256;

// The sums that the lanes of a column hold, in their order; in lane 0.
LMB_FN float add_lanes(float sum, float *scratch) {
  scratch[thread()] = sum;
  sync_block();
  float total = 0;
  if (thread() < kWarp)
    for (int lane = 0; lane < kSumLanes; ++lane) total += scratch[lane * kWarp + thread()];
  sync_block();
  return total;
}

template <class T> LMB_FN void sum_strip(const SumArgs &a) {
  const int64_t tiles = (a.columns + kWarp - 1) / kWarp;
  const int64_t strip = block() / tiles, column = block() % tiles * kWarp + thread() % kWarp;
  const int64_t begin = strip * kStrip, end = begin + kStrip < a.rows ? begin + kStrip : a.rows;
  const typename T::Raw *x = static_cast<const typename T::Raw *>(a.x);
  const typename T::Raw *grad = static_cast<const typename T::Raw *>(a.grad);
  float first = 0, second = 0;
  if (column < a.columns) {
    for (int64_t row = begin + thread() / kWarp; row < end; row += kSumLanes) {
      const int64_t at = row * a.columns + column;
      if (a.stats) {
        const float g = T::get(grad[at]);
        first = fmaf(g, (T::get(x[at]) - a.stats[2 * row]) * a.stats[2 * row + 1], first);
        second += g;
      } else if (!a.ids || a.ids[row] == a.value) {
        first += T::get(x[at]);
      }
    }
  }
  float *scratch = reinterpret_cast<float *>(shared());
  first = add_lanes(first, scratch);
  if (a.stats) second = add_lanes(second, scratch);
  if (thread() >= kWarp || column >= a.columns) return;
  if (a.stats) {
    a.partial[2 * strip * a.columns + column] = first;
    a.partial[(2 * strip + 1) * a.columns + column] = second;
  } else {
    a.partial[strip * a.columns + column] = first;
  }
}

template <class T> LMB_FN void add_strips(const StripArgs &a) {
  const int64_t column = block() * threads() + thread();
  if (column >= a.columns) return;
  float sum = 0;
  for (int64_t strip = 0; strip < a.strips; ++strip) sum += a.partial[strip * a.columns + column];
  static_cast<typename T::Raw *>(a.y)[column] = rounded(T(), sum);
}

// Columns of a block of look_up_back: a quad a thread.
constexpr int64_t kTableColumns = 4 * kSumThreads;
constexpr int kWords = kSumThreads / 32;

struct Uses {
  uint32_t earlier, words[kWords];
};

// A block for each use n of a row of the table: the first one adds all of them up, the others end at once.
template <class T> LMB_FN void look_up_back(const LookupArgs &a) {
  constexpr int64_t kSpan = 16 * kSumThreads;
  const int64_t tiles = (a.columns + kTableColumns - 1) / kTableColumns;
  const int64_t n = block() / tiles, column = block() % tiles * kTableColumns + 4 * thread();
  const int64_t id = a.ids[n];
  if (id == a.left_out || id < 0 || id >= a.table_rows) return;
  Uses *uses = reinterpret_cast<Uses *>(shared());
  if (thread() == 0) uses->earlier = 0;
  sync_block();
  for (int64_t base = 0; base < n; base += kSpan) {
    const int64_t end = base + kSpan < n ? base + kSpan : n;
    for (int64_t m = base + thread(); m < end; m += threads())
      if (a.ids[m] == id) uses->earlier = 1;
    sync_block();
    const bool is_used = uses->earlier != 0;
    sync_block();
    if (is_used) return;
  }
  float sum[4] = {0, 0, 0, 0};
  for (int64_t base = n; base < a.rows; base += threads()) {
    if (thread() < kWords) uses->words[thread()] = 0;
    sync_block();
    if (base + thread() < a.rows && a.ids[base + thread()] == id) set_bit(uses->words, thread());
    sync_block();
    for (int word = 0; word < kWords && column < a.columns; ++word) {
      const uint32_t bits = uses->words[word];
      for (int bit = 0; bit < 32 && bits >> bit; ++bit) {
        if (!(bits >> bit & 1)) continue;
        float x[4];
        load_quad<T>(a.x, (base + 32 * word + bit) * a.columns + column, a.columns - column, x);
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[k] += x[k];
      }
    }
    sync_block();
  }
  if (column < a.columns) store_quad<T>(a.y, id * a.columns + column, a.columns - column, sum);
}

LAYER_KERNEL(sum_strip, kSumThreads, 4, SumArgs, sum_strip)
LAYER_KERNEL(add_strips, kSumThreads, 4, StripArgs, add_strips)
LAYER_KERNEL(look_up_back, kSumThreads, 4, LookupArgs, look_up_back)

}  // namespace lmb
