// A stack of its own to run on. Under ThreadSanitizer a fiber is a thread, which switches do not order.
#pragma once
#include <cstddef>

#if !defined(__x86_64__)
#define SEQKERNELS_UCONTEXT  // portable, with a system call in every switch
#endif
#if defined(SEQKERNELS_UCONTEXT)
#include <ucontext.h>
#endif

namespace seqkernels::emulator {

class Fiber {
 public:
  Fiber();  // what runs now
  // Runs `entry`, which must not return, from the first switch on. `number` spreads the tops of stacks over cache sets.
  Fiber(void (*entry)(), size_t number);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  static void switch_over(Fiber& from, Fiber& to);

  void set_name(const char* name);  // in ThreadSanitizer's reports
  bool guards(const char* address) const { return stack_ <= address && address < body_; }  // the stack has overflowed

 private:
  static constexpr size_t kStackBytes = 128 << 10;  // touched pages alone cost memory
  char* stack_ = nullptr;                           // the guard pages, and from body_ on the stack
  char* body_ = nullptr;
  void* sanitizer_ = nullptr;
#if defined(SEQKERNELS_UCONTEXT)
  ucontext_t context_;
#else
  void* top_ = nullptr;
#endif
};

// What happened before `release` in any thread happens before what follows `acquire` of the same address.
// They do nothing where there is no ThreadSanitizer.
bool is_sanitized();
void acquire(void* address);
void release(void* address);

}  // namespace seqkernels::emulator
