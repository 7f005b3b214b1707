#include "machine.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <ucontext.h>
#include <vector>

namespace lmb::emulate {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr int kLanes = 32;
// Rounds without a barrier passed after which none will be.
constexpr int kPatience = 1000;

struct Barrier {
  int size = 0, arrived = 0;
  uint64_t generation = 0;
};

struct Warp {
  Barrier barrier;
  double lanes[kLanes];
};

struct Block {
  int64_t index;
  int rank;
  Barrier barrier;
  std::vector<Warp> warps;
  std::vector<unsigned char> memory;
  unsigned char *shared;
};

struct Fiber {
  ucontext_t context;
  Block *block;
  int thread;
  bool done;
};

struct Run {
  const Kernel *kernel;
  const void *args;
  int64_t num_blocks;
  int num_threads, cluster;
  Barrier barrier;
  std::vector<Block> blocks;
  std::vector<Fiber> fibers;
  std::vector<unsigned char> stacks;
  ucontext_t home;
  size_t current = 0;
  uint64_t moves = 0;  // barriers passed and threads ended: proof that something goes on
};

thread_local Run *run = nullptr;
Fiber &self() { return run->fibers[run->current]; }

void yield() {
  Fiber &me = self();
  swapcontext(&me.context, &run->home);
}

void wait(Barrier &barrier) {
  const uint64_t generation = barrier.generation;
  if (++barrier.arrived == barrier.size) {
    barrier.arrived = 0;
    ++barrier.generation;
    ++run->moves;
    return;
  }
  while (barrier.generation == generation) yield();
}

void start() {
  run->kernel->body(run->args);
  self().done = true;
  ++run->moves;
}

void run_cluster(int64_t first) {
  const size_t total = size_t(run->cluster) * size_t(run->num_threads);
  run->barrier = Barrier{int(total)};
  for (int rank = 0; rank < run->cluster; ++rank) {
    Block &block = run->blocks[size_t(rank)];
    block.index = first + rank;
    block.rank = rank;
    block.barrier = Barrier{run->num_threads};
    block.warps.assign(size_t(run->num_threads / kLanes), Warp{Barrier{kLanes}, {}});
    memset(block.memory.data(), 0xff, block.memory.size());
    for (int thread = 0; thread < run->num_threads; ++thread) {
      const size_t at = size_t(rank) * size_t(run->num_threads) + size_t(thread);
      Fiber &fiber = run->fibers[at];
      fiber.block = &block;
      fiber.thread = thread;
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = run->stacks.data() + at * kStack;
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = &run->home;
      makecontext(&fiber.context, start, 0);
    }
  }
  // Shuffled, a thread sits out every other turn at random, so that some run far ahead of others.
  uint64_t state = 0x9e3779b97f4a7c15u + uint64_t(first);
  const auto sits_out = [&] {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return shuffled && (state & 1);
  };
  int idle = 0;
  for (size_t live = total; live > 0;) {
    const uint64_t moves = run->moves;
    live = 0;
    for (size_t k = 0; k < total; ++k) {
      run->current = k;
      if (!self().done && !sits_out()) swapcontext(&run->home, &self().context);
      live += !self().done;
    }
    idle = moves == run->moves ? idle + 1 : 0;
    if (live > 0 && idle > kPatience) {
      fprintf(stderr, "%s: %zu threads wait for a barrier that nobody reaches\n", run->kernel->name, live);
      abort();
    }
  }
}

const Kernel *&registry() {
  static const Kernel *first = nullptr;
  return first;
}

// Bytes after the shared memory of a block, which nobody may write.
constexpr size_t kGuard = 256;

void check_guard(const Block &block, size_t shared_bytes, const char *kernel) {
  const unsigned char *guard = block.shared + shared_bytes;
  for (size_t k = 0; k < kGuard; ++k) {
    if (guard[k] == 0xff) continue;
    fprintf(stderr, "%s: wrote %zu bytes past its shared memory\n", kernel, k);
    abort();
  }
}

}  // namespace

std::atomic<bool> shuffled{false};

int thread() { return self().thread; }
int threads() { return run->num_threads; }
int64_t block() { return self().block->index; }
int64_t blocks() { return run->num_blocks; }
int cluster_rank() { return self().block->rank; }
int cluster_size() { return run->cluster; }
void sync_block() { wait(self().block->barrier); }
void sync_cluster() { wait(run->barrier); }
unsigned char *shared() { return self().block->shared; }

const void *of_peer(const void *mine, int rank) {
  const ptrdiff_t offset = static_cast<const unsigned char *>(mine) - self().block->shared;
  return run->blocks[size_t(rank)].shared + offset;
}

void exchange(double value, double *lanes) {
  Warp &warp = self().block->warps[size_t(thread() / kLanes)];
  warp.lanes[thread() % kLanes] = value;
  wait(warp.barrier);
  memcpy(lanes, warp.lanes, sizeof warp.lanes);
  wait(warp.barrier);
}

Kernel::Kernel(const char *name, void (*body)(const void *), int max_threads)
    : name(name), body(body), max_threads(max_threads), next(registry()) {
  registry() = this;
}

const Kernel *find(const char *name) {
  for (const Kernel *kernel = registry(); kernel; kernel = kernel->next)
    if (std::string(kernel->name) == name) return kernel;
  return nullptr;
}

void launch(const Kernel &kernel, int64_t blocks, int threads, int cluster, size_t shared_bytes, const void *args) {
  Run mine;
  run = &mine;
  mine.kernel = &kernel;
  mine.args = args;
  mine.num_blocks = blocks;
  mine.num_threads = threads;
  mine.cluster = cluster;
  mine.blocks.resize(size_t(cluster));
  for (Block &block : mine.blocks) {
    block.memory.resize(shared_bytes + 128 + kGuard);
    const uintptr_t start = reinterpret_cast<uintptr_t>(block.memory.data());
    block.shared = block.memory.data() + (128 - start % 128) % 128;
  }
  mine.fibers.resize(size_t(cluster) * size_t(threads));
  mine.stacks.resize(mine.fibers.size() * kStack);
  for (int64_t first = 0; first < blocks; first += cluster) {
    run_cluster(first);
    for (const Block &block : mine.blocks) check_guard(block, shared_bytes, kernel.name);
  }
  run = nullptr;
}

}  // namespace lmb::emulate

extern "C" {

// For tests.
void limbeck_emulate_shuffled(int shuffled) { lmb::emulate::shuffled = shuffled != 0; }

// Runs a kernel by name, for tests of kernels that are launched by something else than the driver's table. 0: there is no
// such kernel, or it takes fewer threads.
int limbeck_emulate_launch(const char *name, int64_t blocks, int threads, size_t shared_bytes, const void *args) {
  const lmb::emulate::Kernel *kernel = lmb::emulate::find(name);
  if (!kernel || threads > kernel->max_threads || threads % 32) return 0;
  lmb::emulate::launch(*kernel, blocks, threads, 1, shared_bytes, args);
  return 1;
}
}
