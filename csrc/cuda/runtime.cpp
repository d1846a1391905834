#include "runtime.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <map>
#include <mutex>

// Only a torch with CUDA has it; without, the library must load all the same.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace seqkernels::cuda {
namespace {

cudaLaunchConfig_t config_of(const Device::LaunchShape& shape, cudaStream_t stream,
                             cudaLaunchAttribute (&attributes)[2]) {
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(shape.blocks);
  config.blockDim = static_cast<unsigned>(shape.threads);
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = stream;
  config.attrs = attributes;
  if (shape.cooperative) {
    attributes[config.numAttrs].id = cudaLaunchAttributeCooperative;
    attributes[config.numAttrs++].val.cooperative = 1;
  }
  if (shape.cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs++].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  }
  return config;
}

// Allows a kernel all shared memory that there is: other threads may be about to launch the same kernel with more of it.
void allow_shared(const void* kernel, int64_t bytes, const DeviceLimits& limits) {
  if (bytes > 48 * 1024)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(limits.shared_bytes)),
          "asking for shared memory");
}

// PTX of an older kind of GPU runs on newer ones, but what it was compiled from was told that there are none.
bool has_clusters(const void* kernel) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, kernel), "asking what a kernel was compiled for");
  return attributes.ptxVersion >= 90;
}

}  // namespace

void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // so that nobody else finds it
  fail("seqkernels on CUDA: ", doing, " failed: ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
}

Device::Device(const Tensor& tensor) : Device(tensor.get_device_index()) {}

Device::Device(int index) : index_(index), guard_(static_cast<torch::stable::accelerator::DeviceIndex>(index_)) {
  // torch brings a CUDA runtime of its own, with its own idea of the current device.
  check(cudaSetDevice(index_), "choosing the device");
  if (!aoti_torch_get_current_cuda_stream) fail("this torch has no CUDA, but a tensor on a CUDA device came");
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(index_, &stream) != 0) fail("torch did not say its current CUDA stream");
  stream_ = static_cast<cudaStream_t>(stream);
}

const DeviceLimits& Device::limits() const {
  static std::mutex mutex;
  static std::map<int, DeviceLimits> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(index_);
  if (found != known.end()) return found->second;
  const auto get = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, index_), "asking for the device's limits");
    return value;
  };
  const DeviceLimits limits{10 * get(cudaDevAttrComputeCapabilityMajor) + get(cudaDevAttrComputeCapabilityMinor),
                            get(cudaDevAttrMultiProcessorCount), get(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
  return known.emplace(index_, limits).first->second;
}

void Device::fill(const Tensor& tensor, int byte) const {
  const auto bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
  check(cudaMemsetAsync(tensor.data_ptr(), byte, bytes, stream_), "filling memory");
}

void Device::launch(const void* kernel, const LaunchShape& shape, void** arguments) const {
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = config_of(shape, stream_, attributes);
  allow_shared(kernel, shape.shared_bytes, limits());
  check(cudaLaunchKernelExC(&config, kernel, arguments), "launching a kernel");
}

int Device::clusters_at_once(const void* kernel, const LaunchShape& shape) const {
  if (!has_clusters(kernel)) return 0;
  cudaLaunchAttribute attributes[2];
  const cudaLaunchConfig_t config = config_of(shape, stream_, attributes);
  allow_shared(kernel, shape.shared_bytes, limits());
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) == cudaSuccess) return clusters;
  cudaGetLastError();  // so that nobody else finds it
  return 0;
}

bool Device::can_launch(const void* kernel, const LaunchShape& shape) const {
  if (shape.cluster > 1) return clusters_at_once(kernel, shape) > 0;
  allow_shared(kernel, shape.shared_bytes, limits());
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, shape.threads,
                                                      static_cast<size_t>(shape.shared_bytes)),
        "asking how many blocks fit");
  return blocks > 0 && (!shape.cooperative || int64_t{blocks} * limits().multiprocessors >= shape.blocks);
}

}  // namespace seqkernels::cuda
