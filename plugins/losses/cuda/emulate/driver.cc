// The functions of libcuda.so.1 that src/cuda/driver.rs uses, over the emulated machine: device memory is host
// memory, streams run at once. Device 0 says it is sm_90, device 1 sm_80. Signatures are those of cuda.h.
#include <atomic>
#include <cuda.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "machine.h"

namespace {

constexpr int kDevices = 2;
int capability(CUdevice device) { return device == 0 ? 90 : 80; }

std::atomic<int64_t> launches{0}, reads{0}, read_bytes{0}, held{0};

// Bytes of device memory: 1 GiB, or what LIMBECK_EMULATED_MEMORY says.
int64_t capacity() {
  const char *given = getenv("LIMBECK_EMULATED_MEMORY");
  return given ? atoll(given) : int64_t(1) << 30;
}

// Writes what was counted where LIMBECK_EMULATED_COUNTS says, when the process ends.
struct Report {
  ~Report() {
    const char *path = getenv("LIMBECK_EMULATED_COUNTS");
    FILE *file = path ? fopen(path, "w") : nullptr;
    if (!file) return;
    fprintf(file, "{\"launches\":%lld,\"reads\":%lld,\"read_bytes\":%lld}\n", static_cast<long long>(launches),
            static_cast<long long>(reads), static_cast<long long>(read_bytes));
    fclose(file);
  }
} report;

}  // namespace

extern "C" {

// For tests.
int64_t limbeck_emulated_launches() { return launches; }
int limbeck_emulates(const char *kernel) { return lmb::emulate::find(kernel) != nullptr; }

CUresult cuInit(unsigned int) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int *version) { return *version = 13000, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int *count) { return *count = kDevices, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  if (ordinal < 0 || ordinal >= kDevices) return CUDA_ERROR_INVALID_DEVICE;
  return *device = ordinal, CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return *value = capability(device) / 10, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return *value = capability(device) % 10, CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return *value = capability(device) == 90 ? 232448 : 166912, CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
}
CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
  return snprintf(name, size_t(length), "Emulated GPU sm_%d", capability(device)), CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem(size_t *bytes, CUdevice) { return *bytes = size_t(capacity()), CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  return *context = reinterpret_cast<CUcontext>(uintptr_t(device) + 1), CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *pool, CUdevice device) {
  return *pool = reinterpret_cast<CUmemoryPool>(uintptr_t(device) + 1), CUDA_SUCCESS;
}
CUresult cuMemPoolSetAttribute(CUmemoryPool, CUmemPool_attribute attribute, void *) {
  return attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuGetErrorName(CUresult error, const char **name) {
  *name = error == CUDA_ERROR_INVALID_VALUE   ? "CUDA_ERROR_INVALID_VALUE"
          : error == CUDA_ERROR_OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
                                              : "CUDA_ERROR_OTHER";
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult, const char **text) { return *text = "emulated", CUDA_SUCCESS; }

// Real images only: ELF, or a fat binary, compressed or not.
CUresult cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *, void **, unsigned int,
                           CUlibraryOption *, void **, unsigned int) {
  uint32_t magic;
  memcpy(&magic, code, sizeof magic);
  if (magic != 0xba55ed50u) return CUDA_ERROR_INVALID_IMAGE;
  *library = reinterpret_cast<CUlibrary>(const_cast<void *>(code));
  return CUDA_SUCCESS;
}
CUresult cuLibraryGetKernel(CUkernel *kernel, CUlibrary, const char *name) {
  const lmb::emulate::Kernel *found = lmb::emulate::find(name);
  if (!found) return CUDA_ERROR_NOT_FOUND;
  *kernel = reinterpret_cast<CUkernel>(const_cast<lmb::emulate::Kernel *>(found));
  return CUDA_SUCCESS;
}
CUresult cuKernelSetAttribute(CUfunction_attribute, int, CUkernel, CUdevice) { return CUDA_SUCCESS; }
CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction, const CUlaunchConfig *) {
  return *count = 8, CUDA_SUCCESS;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **params, void **) {
  const auto &kernel = *reinterpret_cast<const lmb::emulate::Kernel *>(function);
  unsigned cluster = 1;
  for (unsigned k = 0; k < config->numAttrs; ++k) {
    if (config->attrs[k].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) cluster = config->attrs[k].value.clusterDim.x;
  }
  const bool flat = config->gridDimY == 1 && config->gridDimZ == 1 && config->blockDimY == 1 && config->blockDimZ == 1;
  const bool whole = config->gridDimX > 0 && config->blockDimX > 0 && config->blockDimX % 32 == 0 && cluster > 0 &&
                     cluster <= 16 && config->gridDimX % cluster == 0;
  if (!flat || !whole || int(config->blockDimX) > kernel.max_threads) return CUDA_ERROR_INVALID_VALUE;
  ++launches;
  lmb::emulate::launch(kernel, config->gridDimX, int(config->blockDimX), int(cluster), config->sharedMemBytes,
                       params[0]);
  return CUDA_SUCCESS;
}

CUresult cuMemAllocAsync(CUdeviceptr *memory, size_t bytes, CUstream) {
  if (held + int64_t(bytes) > capacity()) return CUDA_ERROR_OUT_OF_MEMORY;
  void *found = aligned_alloc(256, (bytes + 255) / 256 * 256);
  held += int64_t(malloc_usable_size(found));
  // NaN, so that whoever reads what nobody wrote is seen.
  if (found) memset(found, 0xff, bytes);
  *memory = reinterpret_cast<CUdeviceptr>(found);
  return CUDA_SUCCESS;
}
CUresult cuMemFreeAsync(CUdeviceptr memory, CUstream) {
  held -= int64_t(malloc_usable_size(reinterpret_cast<void *>(memory)));
  free(reinterpret_cast<void *>(memory));
  return CUDA_SUCCESS;
}
CUresult cuMemHostAlloc(void **memory, size_t bytes, unsigned int) {
  return *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096), CUDA_SUCCESS;
}
CUresult cuMemsetD8Async(CUdeviceptr memory, unsigned char value, size_t bytes, CUstream) {
  return memset(reinterpret_cast<void *>(memory), value, bytes), CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync(CUdeviceptr to, const void *from, size_t bytes, CUstream) {
  return memcpy(reinterpret_cast<void *>(to), from, bytes), CUDA_SUCCESS;
}
CUresult cuMemcpyDtoDAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream) {
  return memcpy(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes), CUDA_SUCCESS;
}
CUresult cuEventCreate(CUevent *event, unsigned int) {
  return *event = reinterpret_cast<CUevent>(uintptr_t(1)), CUDA_SUCCESS;
}
CUresult cuEventRecord(CUevent, CUstream) { return CUDA_SUCCESS; }
CUresult cuEventSynchronize(CUevent) { return CUDA_SUCCESS; }
CUresult cuMemcpyDtoHAsync(void *to, CUdeviceptr from, size_t bytes, CUstream) {
  ++reads;
  read_bytes += int64_t(bytes);
  memcpy(to, reinterpret_cast<const void *>(from), bytes);
  return CUDA_SUCCESS;
}
CUresult cuStreamSynchronize(CUstream) { return CUDA_SUCCESS; }
}
