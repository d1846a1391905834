// How the blocks of a group hand each other what the next step's product reads (h going forward, dgates going back),
// with one trip through memory: data is its own flag. NCCL's LL protocol sends a flag along with every word of data, in
// one store; here the flag takes no room at all, for it is a pattern of bits that data never has.
//
// The exchange is a ring of kRingSlots slots. What blocks publish in iteration i goes to slot i % kRingSlots, slot i for
// short. A word that nobody has written yet is kNotReady, a pattern that no published word has, so readers spin on the data
// itself, and no other flag, counter or barrier stands between. A slot is reset to kNotReady once all have read it. What
// every thread of a block does in iteration i (where two groups share a block, every thread of one's team, at its barrier):
//   read slot i - 1 | fence | block_barrier | publish to slot i | reset its share of slot i + 2
// All of slot i - 1 being ready means that all blocks had finished reading slot i - 2, which is the one reset: every block
// publishes a part of every slot. It is read again in iteration i + 3, by blocks that have then read what this block published
// in iteration i + 1, which came after the barrier of iteration i + 1 and so after the fences of all of this block's threads,
// which order their resets before it. The fence stands where the stores it waits for are a product old: it costs next to
// nothing there.
// tests/exchange_model.py explores all interleavings of this protocol, and of wrong ones.
//
// A slot holds words [chunk][column][kChunkWords]: a chunk is 64 bytes of K. Scope::kCluster has every block keep a ring of
// its own in shared memory, which all members write to; Scope::kDevice has one in global memory for the group.
#pragma once
#include "device.h"
#include "problem.h"

namespace seqkernels::cuda {

constexpr int kChunkWords = 16;
constexpr uint32_t kNotReady = 0xFFFFFFFF;  // as a float, or two 16-bit ones: NaNs that no conversion makes
constexpr uint32_t kNaN = 0x7FFF7FFF;       // what is published in its place, if arithmetic ever made one

// All words are ready if the largest is not kNotReady, for none is larger than that. A tree of maxima: a chain of tests would
// wait for each.
SEQKERNELS_DEVICE uint32_t largest(const Words4& v) {
  return larger(larger(v.word[0], v.word[1]), larger(v.word[2], v.word[3]));
}

// `kIsSparing`: works out where the slot to read is instead of keeping it, for registers are scarce.
template <Scope kScope, bool kIsSparing>
class Exchange {
 public:
  // `ring`: of the group in global memory (kDevice), or of this block in shared memory (kCluster).
  // `thread`: of the kThreads that belong to the group.
  SEQKERNELS_DEVICE Exchange(uint32_t* ring, const Partition& part, const SharedLayout& layout, int member, int thread)
      : ring_(ring), part_(part), layout_(layout), member_(member), thread_(thread) {}

  // Shared memory starts with nothing published; global memory was filled before the launch.
  SEQKERNELS_DEVICE void initialise() const {
    if constexpr (kScope == Scope::kCluster) {
      for (int i = thread_; i < kRingSlots * layout_.slot; i += kThreads) ring_[i] = kNotReady;
      cluster_barrier();
    }
  }

  // Goes from iteration i to iteration i + 1.
  SEQKERNELS_DEVICE void advance() {
    if constexpr (!kIsSparing) read_ = written_;
    written_ += layout_.slot;
    if (written_ == kRingSlots * layout_.slot) written_ = 0;
  }

  // Where this lane's part of a chunk is in the slot of the iteration before this one, for the eight columns from `column`
  // on; kWarpSize further is that of the next eight, `stride` further that of the next chunk.
  SEQKERNELS_DEVICE const Words4* part(int chunk, int column) const {
    const int read = !kIsSparing ? read_ : (written_ == 0 ? kRingSlots * layout_.slot : written_) - layout_.slot;
    const uint32_t* const words = ring_ + read + (chunk * part_.columns + column) * kChunkWords;
    return reinterpret_cast<const Words4*>(words) + lane_index();
  }
  SEQKERNELS_DEVICE int stride() const { return part_.columns * kChunkWords / 4; }

  // Words of a lane's part, some of which may not be ready yet.
  SEQKERNELS_DEVICE Words4 load(const Words4* part) const { return load_relaxed<kScope>(part); }

  // Where word `word` of K in `column` is within a slot.
  SEQKERNELS_DEVICE int offset(int word, int column) const {
    return (word / kChunkWords * part_.columns + column) * kChunkWords + word % kChunkWords;
  }

  // Stores a word for all members at this offset in this iteration's slot.
  SEQKERNELS_DEVICE void publish(int offset, uint32_t value) const {
    if (value == kNotReady) value = kNaN;
    uint32_t* const to = ring_ + written_ + offset;
    if constexpr (kScope == Scope::kDevice) {
      store_relaxed<kScope>(to, value);
    } else {
      if (part_.members == kMaxCluster) {  // most have as many
        SEQKERNELS_UNROLL
        for (int member = 0; member < kMaxCluster; ++member) store_peer(to, member, value);
      } else {
        SEQKERNELS_UNROLL_BY(1)
        for (int member = 0; member < part_.members; ++member) store_peer(to, member, value);
      }
    }
  }

  // Resets the slot after the next one: shares of one slot in global memory, or all of the block's own.
  SEQKERNELS_DEVICE void reset() const {
    const int after_next = written_ >= 2 * layout_.slot ? written_ - 2 * layout_.slot : written_ + 2 * layout_.slot;
    Words4* const words =
        reinterpret_cast<Words4*>(ring_ + after_next) + (kScope == Scope::kCluster ? 0 : member_ * layout_.reset);
    SEQKERNELS_UNROLL_BY(1)
    for (int i = thread_; i < layout_.reset; i += kThreads)
      store_relaxed<kScope>(words + i, Words4{{kNotReady, kNotReady, kNotReady, kNotReady}});
  }

  // Orders this thread's resets; within a block, its barrier is enough.
  SEQKERNELS_DEVICE void order_resets() const {
    if (part_.members > 1) fence<kScope>();
  }

  // A fence in a STRICT build alone: readers have it once all is ready, publishers before they publish what others of the
  // block have ordered.
  SEQKERNELS_DEVICE void order_strictly() const { strict_fence<kScope>(); }

  // CUDA wants blocks to outlive all accesses to their shared memory; here, none comes after they read all there is.
  SEQKERNELS_DEVICE void finish() const {
    if constexpr (kScope == Scope::kCluster) cluster_barrier();
  }

 private:
  uint32_t* ring_;
  const Partition& part_;
  const SharedLayout& layout_;
  int member_, thread_;
  int read_ = 0, written_ = 0;  // beginnings of the slots of the last iteration and of this one
};

}  // namespace seqkernels::cuda
