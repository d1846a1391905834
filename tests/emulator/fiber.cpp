#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

// Null unless ThreadSanitizer is linked in, so that one object file serves both builds.
extern "C" {
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_set_fiber_name(void* fiber, const char* name);
[[gnu::weak]] void __tsan_acquire(void* address);
[[gnu::weak]] void __tsan_release(void* address);
}

#if !defined(SEQKERNELS_UCONTEXT)
// Calls as any function would be called, so only what callees must preserve is kept; the rest the compiler keeps.
extern "C" void seqkernels_switch_stack(void** from, void* to);
asm(R"(
  .text
  .p2align 4
  .globl seqkernels_switch_stack
  .hidden seqkernels_switch_stack
  .type seqkernels_switch_stack, @function
seqkernels_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size seqkernels_switch_stack, . - seqkernels_switch_stack
)");
#endif

namespace seqkernels::emulator {

namespace {

constexpr unsigned kNoSync = 1;           // __tsan_switch_to_fiber_no_sync
constexpr size_t kGuardBytes = 64 << 10;  // a multiple of any page

}  // namespace

bool is_sanitized() { return __tsan_create_fiber != nullptr; }

void acquire(void* address) {
  if (is_sanitized()) __tsan_acquire(address);
}

void release(void* address) {
  if (is_sanitized()) __tsan_release(address);
}

Fiber::Fiber() {
  if (is_sanitized()) sanitizer_ = __tsan_get_current_fiber();
}

Fiber::Fiber(void (*entry)(), size_t number) {
  void* mapped =
      mmap(nullptr, kGuardBytes + kStackBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  stack_ = static_cast<char*>(mapped);
  body_ = stack_ + kGuardBytes;
  if (mprotect(body_, kStackBytes, PROT_READ | PROT_WRITE) != 0) {
    munmap(stack_, kGuardBytes + kStackBytes);
    throw std::bad_alloc();
  }
  if (is_sanitized()) sanitizer_ = __tsan_create_fiber(0);

  const size_t used = kStackBytes - number % 61 * 192;
#if defined(SEQKERNELS_UCONTEXT)
  getcontext(&context_);
  context_.uc_stack.ss_sp = body_;
  context_.uc_stack.ss_size = used;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#else
  auto* top = reinterpret_cast<uintptr_t*>(body_ + used);
  *--top = 0;  // where entry would return to; on its first instruction the stack is 8 off a multiple of 16
  *--top = reinterpret_cast<uintptr_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  top_ = top;
#endif
}

Fiber::~Fiber() {
  if (!stack_) return;
  if (is_sanitized()) {
    // Whatever it has done happens before what follows: said in its name, since it will not run again.
    void* const self = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(sanitizer_, kNoSync);
    release(this);
    __tsan_switch_to_fiber(self, kNoSync);
    acquire(this);
    __tsan_destroy_fiber(sanitizer_);
  }
  munmap(stack_, kGuardBytes + kStackBytes);
}

void Fiber::switch_over(Fiber& from, Fiber& to) {
  if (is_sanitized()) __tsan_switch_to_fiber(to.sanitizer_, kNoSync);
#if defined(SEQKERNELS_UCONTEXT)
  swapcontext(&from.context_, &to.context_);
#else
  seqkernels_switch_stack(&from.top_, to.top_);
#endif
}

void Fiber::set_name(const char* name) {
  if (is_sanitized()) __tsan_set_fiber_name(sanitizer_, name);
}

}  // namespace seqkernels::emulator
