// A CUDA runtime whose device is the emulator and whose memory is the host's, as far as csrc/cuda/*.cpp use it, and what
// they ask torch of CUDA. Linked into one library with them, so that it is theirs alone.
//
// Streams are of no consequence: what is launched is done at once.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>

#include "cuda/kernels.h"
#include "launch.h"

namespace seqkernels::cuda {
namespace {

using Call = void (*)(const void* kernel, void** arguments);

template <class... Arguments, size_t... kIndices>
void call(const void* kernel, void** arguments, std::index_sequence<kIndices...>) {
  reinterpret_cast<void (*)(Arguments...)>(const_cast<void*>(kernel))(*static_cast<Arguments*>(arguments[kIndices])...);
}

template <class... Arguments>
void call(const void* kernel, void** arguments) {
  call<Arguments...>(kernel, arguments, std::index_sequence_for<Arguments...>());
}

template <class Problem>
void add(std::map<const void*, Call>& calls, const PassKernels& kernels) {
  if (kernels.is_normalized()) {
    calls[kernels.stage[0].stepwise] = &call<Problem, StepBuffers, int64_t, Norms>;
    calls[kernels.norm_gradients] = &call<Shape, NormGradients>;
    return;
  }
  for (int s = 0; s < kernels.stages; ++s) {
    calls[kernels.stage[s].stepwise] = &call<Problem, StepBuffers, int64_t>;
    if (kernels.stage[s].operands)
      calls[kernels.stage[s].operands] =
          &call<Shape, const void*, const void*, const void*, const void*, const void*, void*, Transition>;
  }
  if (!kernels.persistent) return;
  for (const int tiles : {1, 2, kWarps})
    for (const int teams : {1, kMaxTeams, -1}) {
      const bool in_grid = teams > 0;
      Partition part{};
      part.teams = std::abs(teams), part.unit_groups = 1, part.columns = tiles * kTileColumns,
      part.column_tiles = tiles;
      part.ring = in_grid ? &part : nullptr;
      if (const void* const kernel = kernels.persistent(part)) calls[kernel] = &call<Problem, Partition, SharedLayout>;
    }
}

// How each kernel wants to be called.
std::map<const void*, Call> all_calls() {
  std::map<const void*, Call> calls;
  for (int cell = 0; cell < kCellKinds; ++cell)
    for (int dtype = 0; dtype < 4; ++dtype)
      for (const int choice : {0, 1, 2, 3}) {
        const CellKernels& kernels = kernels_of(CellKind(cell), DType(dtype), choice % 2 > 0, choice / 2 > 0);
        if (cell_info(CellKind(cell)).is_projected())
          add<Projected<ForwardProblem>>(calls, kernels.forward),
              add<Projected<BackwardProblem>>(calls, kernels.backward);
        else
          add<ForwardProblem>(calls, kernels.forward), add<BackwardProblem>(calls, kernels.backward);
        const RowKernels rows = row_kernels(DType(dtype));
        calls[rows.previous_states] = &call<Shape, const void*, const void*, void*, Transition>;
        calls[rows.rows_of_steps] = &call<Shape, const void*, void*, Transition>;
      }
  calls[write_offsets_kernel()] = &call<OffsetsPart, int64_t*>;
  return calls;
}

// Asked once for a device, so it takes another process to have another number.
const int kMultiprocessors = std::getenv("SEQKERNELS_EMULATED_MULTIPROCESSORS")
                                 ? std::atoi(std::getenv("SEQKERNELS_EMULATED_MULTIPROCESSORS"))
                                 : 132;
constexpr int kSharedBytes = 227 << 10, kSharedUnasked = 48 << 10;
constexpr int kFewBlocks = 4;  // of a kernel whose blocks share the work, however many there are

std::map<const void*, int> shared_limits;
int grids = 0;  // launches of them so far

struct Job {
  Call call;
  const void* kernel;
  void** arguments;
};

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, void** arguments) {
  static const std::map<const void*, Call> calls = all_calls();
  static uint64_t seed = 0;
  const auto found = calls.find(kernel);
  if (found == calls.end()) return cudaErrorInvalidDeviceFunction;
  const auto limit = shared_limits.find(kernel);
  const int shared = static_cast<int>(config.dynamicSmemBytes);
  if (shared > (limit == shared_limits.end() ? kSharedUnasked : limit->second)) return cudaErrorInvalidValue;
  int blocks = static_cast<int>(config.gridDim.x), cluster = 1;
  bool cooperative = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension)
      cluster = static_cast<int>(config.attrs[i].val.clusterDim.x);
    if (config.attrs[i].id == cudaLaunchAttributeCooperative) cooperative = config.attrs[i].val.cooperative != 0;
  }
  if (blocks == 0 || blocks % cluster != 0 || cluster > kMaxCluster) return cudaErrorInvalidConfiguration;
  if (cooperative && blocks > kMultiprocessors) return cudaErrorCooperativeLaunchTooLarge;
  grids += cooperative;
  if (shared == 0) blocks = std::min(blocks, kFewBlocks);
  Job job{found->second, kernel, arguments};
  try {
    emulator::launch_on(
        blocks, static_cast<int>(config.blockDim.x), cluster, config.dynamicSmemBytes, ++seed,
        [](void* p) {
          const Job& job = *static_cast<Job*>(p);
          job.call(job.kernel, job.arguments);
        },
        &job);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace seqkernels::cuda

using namespace seqkernels::cuda;

extern "C" {

cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorName(cudaError_t) { return "on the emulator"; }
const char* cudaGetErrorString(cudaError_t error) {
  static char text[16];
  std::snprintf(text, sizeof text, "error %d", static_cast<int>(error));
  return text;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kSharedBytes;
      return cudaSuccess;
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value > kSharedBytes) return cudaErrorInvalidValue;
  shared_limits[kernel] = value;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
  *clusters = kMultiprocessors / kMaxCluster;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel, void** arguments) {
  return launch(*config, kernel, arguments);
}

__attribute__((visibility("default"))) int emulated_grids() { return grids; }

// Of torch.
int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}
int32_t aoti_torch_delete_device_guard(void*) { return 0; }
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
}
