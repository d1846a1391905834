#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace seqkernels {
namespace {

// Below this many multiply-adds a second thread costs more than it brings.
constexpr double kWorkPerThread = 1 << 17;

constexpr int kSpins = 256, kYields = 64;

constexpr std::chrono::milliseconds kPatience{200};  // of a leader with threads that may never come

std::atomic<bool> forked{false};

inline void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One round of waiting: spins first, then offers the core to others. False once it is time to sleep.
class Backoff {
 public:
  bool wait() {
    if (rounds_ < kSpins) {
      pause_core();
    } else if (rounds_ < kSpins + kYields) {
      sched_yield();
    } else {
      return false;
    }
    ++rounds_;
    return true;
  }

 private:
  int rounds_ = 0;
};

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
  sched_yield();
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#endif
}

struct Barrier {
  alignas(64) std::atomic<uint32_t> epoch{0};
  std::atomic<uint32_t> sleepers{0};
  alignas(64) std::atomic<uint32_t> arrived{0};

  void wait(uint32_t size) {
    const uint32_t now = epoch.load(std::memory_order_acquire);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived.store(0, std::memory_order_relaxed);
      epoch.store(now + 1);
      if (sleepers.load() != 0) wake_all(epoch);
      return;
    }
    Backoff backoff;
    while (epoch.load(std::memory_order_acquire) == now) {
      if (backoff.wait()) continue;
      sleepers.fetch_add(1);
      sleep_while(epoch, now);
      sleepers.fetch_sub(1);
    }
  }
};

// Who takes part. The word holds the parts covered so far, the members so far, and whether the list is closed.
class Enrolment {
 public:
  explicit Enrolment(int parts) : parts_(static_cast<uint32_t>(parts)) {}

  // Called with the range of parts [begin, end) that this thread was given; size 0: came too late.
  Member enrol(int64_t begin, int64_t end) {
    const uint32_t covered = static_cast<uint32_t>(end - begin);
    return begin == 0 ? lead(covered) : follow(covered);
  }

 private:
  static constexpr uint32_t kClosed = 1u << 31, kOneMember = 1u << 16, kParts = kOneMember - 1;
  static int members(uint32_t word) { return static_cast<int>((word & ~kClosed) / kOneMember); }

  Member lead(uint32_t covered) {
    uint32_t word = word_.fetch_add(kOneMember + covered, std::memory_order_acq_rel) + kOneMember + covered;
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    for (int round = 0; (word & kParts) < parts_; ++round) {
      round < kSpins ? pause_core() : static_cast<void>(sched_yield());
      word = word_.load(std::memory_order_acquire);
      if (round % 16 == 15 && std::chrono::steady_clock::now() > deadline) break;
    }
    return {0, members(word_.fetch_or(kClosed, std::memory_order_acq_rel))};
  }

  Member follow(uint32_t covered) {
    uint32_t word = word_.load(std::memory_order_acquire);
    do {
      if (word & kClosed) return {0, 0};
    } while (!word_.compare_exchange_weak(word, word + kOneMember + covered, std::memory_order_acq_rel));
    // The leader keeps rank 0 even where a follower was faster.
    const int rank = followers_.fetch_add(1, std::memory_order_relaxed) + 1;
    Backoff backoff;
    while (!((word = word_.load(std::memory_order_acquire)) & kClosed)) {
      if (!backoff.wait()) sched_yield();
    }
    return {rank, members(word)};
  }

  const uint32_t parts_;
  std::atomic<uint32_t> word_{0};
  std::atomic<int> followers_{0};
};

[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

struct Team {
  std::unique_ptr<Barrier[]> barriers;
};

void meet(Team* team, int barrier, int size) {
  if (size > 1) team->barriers[barrier].wait(static_cast<uint32_t>(size));
}

int team_threads(double work) {
  if (forked) return 1;
  const double threads = torch::stable::get_num_threads();
  return static_cast<int>(std::max(1., std::min(threads, work / kWorkPerThread)));
}

void run_team(int threads, int barriers, void (*body)(void*, Team*, Member), void* context) {
  Team team;
  if (threads <= 1) return body(context, &team, {0, 1});
  team.barriers = std::make_unique<Barrier[]>(static_cast<size_t>(barriers));
  Enrolment enrolment(threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    const Member member = enrolment.enrol(begin, end);
    if (member.size > 0) body(context, &team, member);
  });
}

}  // namespace seqkernels
