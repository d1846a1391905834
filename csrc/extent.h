// How far a tensor reaches in memory.
#pragma once
#include <stdint.h>

namespace seqkernels {

// Elements from a tensor's first one up to and with its last one; 0 where it has none. Strides are not negative.
template <class Sizes, class Strides>
int64_t extent(const Sizes& sizes, const Strides& strides, int64_t dim) {
  int64_t last = 0;
  for (int64_t i = 0; i < dim; ++i) {
    if (sizes[i] == 0) return 0;
    last += (sizes[i] - 1) * strides[i];
  }
  return last + 1;
}

}  // namespace seqkernels
