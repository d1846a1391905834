// The CUDA runtime and torch's side of it: device, stream, launches with errors that say what failed.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#include "../checks.h"
#include "plan.h"

namespace seqkernels::cuda {

using torch::stable::Tensor;

void check(cudaError_t status, const char* doing);

// Makes the device of a tensor the current one while it lives, and knows torch's current stream there.
class Device {
 public:
  explicit Device(const Tensor& tensor);
  explicit Device(int index);

  cudaStream_t stream() const { return stream_; }
  const DeviceLimits& limits() const;

  struct LaunchShape {
    int blocks, threads;
    int64_t shared_bytes = 0;
    int cluster = 1;           // blocks of a cluster
    bool cooperative = false;  // all blocks run at once, or the launch fails
  };
  void launch(const void* kernel, const LaunchShape& shape, void** arguments) const;
  // Sets every byte of a tensor's memory, which has no gaps.
  void fill(const Tensor& tensor, int byte) const;
  // How many clusters of this launch run at once; none, too, where the device refuses to say.
  int clusters_at_once(const void* kernel, const LaunchShape& shape) const;
  // Whether the device can run this launch at all: the blocks of a cooperative one together, a cluster's together.
  bool can_launch(const void* kernel, const LaunchShape& shape) const;

 private:
  int index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

}  // namespace seqkernels::cuda
