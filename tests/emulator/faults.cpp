#include "faults.h"

#include "machine.h"

namespace seqkernels::emulator {

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS};
constexpr size_t kStackBytes = 64 << 10;

void handle(int signal, siginfo_t* info, void*) {
  if (current) machine->fault(static_cast<const char*>(info->si_addr));
  ::signal(signal, SIG_DFL);  // not a kernel's: let it happen again
}

}  // namespace

Faults::Faults() : stack_(new char[kStackBytes]) {
  stack_t stack{};
  stack.ss_sp = stack_.get();
  stack.ss_size = kStackBytes;
  sigaltstack(&stack, &previous_stack_);
  struct sigaction action{};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler does not return: nothing may stay blocked
  for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &action, &previous_[i]);
}

Faults::~Faults() {
  for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &previous_[i], nullptr);
  sigaltstack(&previous_stack_, nullptr);
}

}  // namespace seqkernels::emulator
