#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#endif

namespace seqkernels {
namespace {

// Below this many multiply-adds a second thread costs more than it brings.
constexpr double kWorkPerThread = 1 << 17;

// Some 50 us. Then the waiting thread sleeps: yielding instead would give its share of the core away for a whole time slice,
// and in every step, where other processes want the core.
constexpr int kSpins = 1000;

constexpr std::chrono::nanoseconds kForever = std::chrono::hours(1);
constexpr std::chrono::milliseconds kJoinTimeout{200};  // of a leader who waits for threads that may never come

inline void pause_core() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns when woken, when `word` is not `value`, when the time is over, or for no reason.
void sleep_while(std::atomic<uint32_t>& word, uint32_t value, std::chrono::nanoseconds time) {
#if defined(__linux__)
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(time);
  const timespec timeout{static_cast<time_t>(seconds.count()), static_cast<long>((time - seconds).count())};
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, &timeout, nullptr, 0);
#else
  static_cast<void>(word), static_cast<void>(value), static_cast<void>(time);
  sched_yield();
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#if defined(__linux__)
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT32_MAX, nullptr, nullptr, 0);
#else
  static_cast<void>(word);
#endif
}

// A number that threads wait for, a little while spinning and then asleep.
class FutexWord {
 public:
  std::atomic<uint32_t> value{0};

  // To be called after a change of the value.
  void wake() {
    std::atomic_thread_fence(std::memory_order_seq_cst);  // either this sees the sleeper, or that one the change
    if (sleepers_.load(std::memory_order_relaxed) != 0) wake_all(value);
  }

  // The value once it is no longer `now`; or `now`, once the time is over.
  uint32_t wait_while(uint32_t now, std::chrono::nanoseconds timeout) {
    for (int spins = 0; spins < kSpins; ++spins) {
      const uint32_t found = value.load(std::memory_order_acquire);
      if (found != now) return found;
      pause_core();
    }
    const auto deadline = std::chrono::steady_clock::now() + timeout;
    sleepers_.fetch_add(1);
    uint32_t found;
    while ((found = value.load(std::memory_order_acquire)) == now) {
      const auto left = deadline - std::chrono::steady_clock::now();
      if (left.count() <= 0) break;
      sleep_while(value, now, left);
    }
    sleepers_.fetch_sub(1);
    return found;
  }

 private:
  std::atomic<uint32_t> sleepers_{0};
};

struct Barrier {
  alignas(64) FutexWord epoch;
  alignas(64) std::atomic<uint32_t> arrived{0};

  void wait(uint32_t size) {
    const uint32_t now = epoch.value.load(std::memory_order_acquire);
    if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      arrived.store(0, std::memory_order_relaxed);
      epoch.value.store(now + 1, std::memory_order_release);
      epoch.wake();
      return;
    }
    while (epoch.wait_while(now, kForever) == now) {
    }
  }
};

// Who takes part. The word holds the parts covered so far, the members so far, and whether the list is closed.
class TeamJoin {
 public:
  explicit TeamJoin(int parts) : parts_(static_cast<uint32_t>(parts)) {}

  // Called with the range of parts [begin, end) that this thread was given; size 0: came too late.
  Member join(int64_t begin, int64_t end) {
    const uint32_t covered = static_cast<uint32_t>(end - begin);
    return begin == 0 ? lead(covered) : follow(covered);
  }

 private:
  static constexpr uint32_t kClosed = 1u << 31, kOneMember = 1u << 16, kParts = kOneMember - 1;
  static int members(uint32_t word) { return static_cast<int>((word & ~kClosed) / kOneMember); }

  Member lead(uint32_t covered) {
    uint32_t word = word_.value.fetch_add(kOneMember + covered, std::memory_order_acq_rel) + kOneMember + covered;
    const auto deadline = std::chrono::steady_clock::now() + kJoinTimeout;
    while ((word & kParts) < parts_) {
      const auto left = deadline - std::chrono::steady_clock::now();
      if (left.count() <= 0) break;
      word = word_.wait_while(word, left);
    }
    word = word_.value.fetch_or(kClosed, std::memory_order_acq_rel);
    word_.wake();
    return {0, members(word)};
  }

  Member follow(uint32_t covered) {
    uint32_t word = word_.value.load(std::memory_order_acquire);
    do {
      if (word & kClosed) return {0, 0};
    } while (!word_.value.compare_exchange_weak(word, word + kOneMember + covered, std::memory_order_acq_rel));
    word_.wake();
    // The leader keeps rank 0 even where a follower was faster.
    const int rank = followers_.fetch_add(1, std::memory_order_relaxed) + 1;
    for (word += kOneMember + covered; !(word & kClosed);) word = word_.wait_while(word, kForever);
    return {rank, members(word)};
  }

  const uint32_t parts_;
  FutexWord word_;
  std::atomic<int> followers_{0};
};

std::atomic<bool> forked{false};
[[maybe_unused]] const int at_fork = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// A process that was forked cannot use the threads of torch's pool, which its parent keeps: to wait for them would take for
// ever. So it starts threads of its own, for calls that are long enough to pay for that.
constexpr double kWorkPerStartedThread = 1 << 22;

template <class Work>
void on_started_threads(int threads, const Work& work) {
  std::vector<std::thread> others;
  try {
    for (int n = 1; n < threads; ++n) others.emplace_back([&work, n] { work(n, n + 1); });
  } catch (const std::system_error&) {  // the system gives no more of them: a team is who comes
  }
  work(0, 1);
  for (std::thread& other : others) other.join();
}

}  // namespace

bool process_was_forked() { return forked; }

struct Team {
  std::unique_ptr<Barrier[]> barriers;
};

void barrier_wait(Team* team, int barrier, int size) {
  if (size > 1) team->barriers[barrier].wait(static_cast<uint32_t>(size));
}

int team_threads(double work) {
  const double threads = torch::stable::get_num_threads();
  return static_cast<int>(std::max(1., std::min(threads, work / (forked ? kWorkPerStartedThread : kWorkPerThread))));
}

void run_team(int threads, int barriers, void (*body)(void*, Team*, Member), void* context) {
  Team team;
  if (threads <= 1) return body(context, &team, {0, 1});
  team.barriers = std::make_unique<Barrier[]>(static_cast<size_t>(barriers));
  TeamJoin joining(threads);
  const auto work = [&](int64_t begin, int64_t end) {
    const Member member = joining.join(begin, end);
    if (member.size > 0) body(context, &team, member);
  };
  if (forked)
    on_started_threads(threads, work);
  else
    torch::stable::parallel_for(0, threads, 1, work);
}

}  // namespace seqkernels
