// The shared memory of all blocks of a launch. Each block's ends right before a page that no access survives.
#pragma once
#include <cstddef>
#include <string>

namespace seqkernels::emulator {

class Arena {
 public:
  Arena(int blocks, size_t bytes);  // bytes of one block
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  char* at(int block) const { return memory_ + block * stride_ + (stride_ - page_ - aligned_); }
  bool contains(const void* address) const { return memory_ <= address && address < memory_ + blocks_ * stride_; }
  int block_of(const void* address) const;  // whose shared memory it is within, or -1

  void open(int block);   // filled with NaNs, accessible
  bool close(int block);  // no longer accessible; false if bytes around the block's own were written

  std::string describe(const char* address) const;

 private:
  int blocks_;
  size_t bytes_, aligned_;  // what the block asked for, and the same in multiples of 16
  size_t page_, stride_;    // stride: room in whole pages, filled from its end, and the guard page
  char* memory_;
};

}  // namespace seqkernels::emulator
