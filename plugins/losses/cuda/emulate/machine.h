// A machine on which kernels run without a GPU: threads are fibers, a cluster of blocks runs at a time.
//
// Right where a GPU is right: barriers wait for all threads, shared memory starts as garbage, peers' shared memory
// is reachable inside a cluster only. Not a model of speed, of memory ordering or of rounding in ex2.approx.
// A thread that waits for a barrier which nobody else can reach ends the process with a message.
#pragma once
#include <atomic>
#include <stddef.h>
#include <stdint.h>

namespace lmb::emulate {

int thread();
int threads();
int64_t block();
int64_t blocks();
int cluster_rank();
int cluster_size();
void sync_block();
void sync_cluster();
unsigned char *shared();
const void *of_peer(const void *mine, int rank);
// Gives the values of all 32 lanes of the calling thread's warp.
void exchange(double value, double *lanes);

struct Kernel {
  Kernel(const char *name, void (*body)(const void *), int max_threads);
  const char *name;
  void (*body)(const void *args);
  int max_threads;
  const Kernel *next;
};
const Kernel *find(const char *name);
// Threads take turns at random instead of in order: a missing barrier shows.
extern std::atomic<bool> shuffled;
// Runs all blocks. Ends the process if a block writes past its shared memory.
void launch(const Kernel &kernel, int64_t blocks, int threads, int cluster, size_t shared_bytes, const void *args);

}  // namespace lmb::emulate
