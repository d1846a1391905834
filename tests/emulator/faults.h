// While it lives, a bad address ends the launch with an error instead of ending the process.
#pragma once
#include <signal.h>

#include <memory>

namespace seqkernels::emulator {

class Faults {
 public:
  Faults();
  ~Faults();
  Faults(const Faults&) = delete;
  Faults& operator=(const Faults&) = delete;

 private:
  std::unique_ptr<char[]> stack_;  // for the handler: a fiber's own may be what has overflowed
  stack_t previous_stack_;
  struct sigaction previous_[2];
};

}  // namespace seqkernels::emulator
