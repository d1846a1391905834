// What the fibers of one launch share: who can run, who waits where, what is held back.
#pragma once
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "arena.h"
#include "device.h"
#include "fiber.h"
#include "store_buffer.h"

namespace seqkernels::emulator {

enum class Primitive {
  kStart,
  kWarpBarrier,
  kTeamBarrier,
  kBlockBarrier,
  kClusterBarrier,
  kShuffle,
  kMma,
  kPause,
  kAccess
};
enum class Stage { kNew, kReady, kWaiting, kEnded };

// Threads that wait for one another: those of a warp, a team, a block or a cluster.
struct Meeting {
  int first, size;  // the threads, by number in the launch
  int arrived = 0;
  Primitive primitive = Primitive::kStart;  // at which the first of them arrived
  Where where = {};
  // Two, used alternately, for ThreadSanitizer: who leaves a barrier late must not acquire what others release at the next.
  char clocks[2] = {};
  int round = 0;
};

struct CudaThread : Thread {
  CudaThread(void (*entry)(), size_t number) : Thread{}, fiber(entry, number) {}

  Fiber fiber;
  Stage stage;
  Primitive primitive;  // the last one, and where
  Where where;
  bool slow;       // runs less often than others
  uint64_t epoch;  // of the last idle turn
  int idle;        // turns in that epoch

  // What the thread brings to a collective.
  uint64_t value;
  int mask;
  Operands operands;
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

class Machine {
 public:
  Machine(const Launch& launch, void (*body)(void*), void* argument);
  void run();

  static void enter();  // where fibers begin
  CudaThread& me() const { return static_cast<CudaThread&>(*current); }
  Meeting& meeting(Group group);

  // Waits until all of the meeting have come. The last one runs `complete`, if any, for all of them.
  // A vote that fails is no progress: whoever spins on words votes on them.
  void meet(Group group, Primitive primitive, Where where, void (*complete)(CudaThread* const* lanes) = nullptr,
            bool is_vote = false);
  void give_way();  // lets another thread run, if only for a while
  void interleave();
  StoreBuffer& held() { return held_[current->block]; }
  void store(StoreBuffer& held, size_t index);  // one of those held back
  bool store_all();                             // all of all blocks; false if there are none
  bool is_late() { return draw(late_) == 0; }   // the store at hand
  void progressed() { ++epoch_, idle_threads_ = 0; }

  uint32_t draw(uint32_t below);
  [[noreturn]] void fail(const std::string& what);  // ends the launch with an error
  [[noreturn]] void fault(const char* address);     // the same from a signal handler

  const Launch launch;
  Arena arena;

 private:
  void start();
  void end();
  CudaThread& pick();  // one of those that can run
  void resume_another();
  [[noreturn]] void abandon();   // leaves the fiber for good
  std::string standing() const;  // where each thread is, a line for every run of threads
  std::string describe_fault() const;

  void (*body_)(void*);
  void* argument_;
  std::vector<Meeting> warps_, teams_, blocks_, clusters_;
  std::vector<StoreBuffer> held_;             // of each block
  std::vector<CudaThread*> threads_, ready_;  // by number; those that can run, but for the one that does
  std::vector<int> unstarted_, unfinished_;   // threads of each block that have not started, have not ended
  int alive_;
  uint64_t random_;
  uint32_t rarely_;          // one in how many relaxed accesses lets others run
  uint32_t lazily_;          // one in how many turns of a block's threads does half of the stores that are held back
  uint32_t late_;            // one in how many of them is held back for much longer than others
  uint64_t epoch_ = 1;       // counts what may end somebody's waiting
  size_t idle_threads_ = 0;  // that have been idle for long, in this epoch
  size_t voting_ = 0;        // threads that wait for the others of a vote
  Fiber main_;
  char begin_ = 0, end_ = 0;  // clocks that order the launch after its caller, and the caller after the launch
  std::exception_ptr error_;
  const char* fault_ = nullptr;  // a bad address, and who used it
  const CudaThread* faulty_ = nullptr;
};

extern Machine* machine;  // of the launch that runs, or null

// Null unless traffic/ is linked in: told of every relaxed access, and the code that makes it.
[[gnu::weak]] void relaxed_access(const void* address, size_t bytes, const void* code);

// For messages.
bool same(const Where& a, const Where& b);
std::string name(const Thread& thread);
std::string place(Primitive primitive, const Where& where);

// d += a b for the 32 lanes of a warp.
void multiply(CudaThread* const* lanes);

}  // namespace seqkernels::emulator
