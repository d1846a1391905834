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

// `kColumns`: those of a group, or 0 where only the launch knows them. `kIsSparing`: registers are scarce, and what can be worked
// out in each step is not kept.
template <Scope kScope, int kColumns, bool kIsSparing>
class Exchange {
  static constexpr int kShare = kMaxCluster / 2;  // blocks of a full cluster that one lane of a pair stores to

 public:
  // `ring`: of the group in global memory (kDevice), or of this block in shared memory (kCluster).
  // `thread`: of the kThreads that belong to the group. The last ones reset first: if not all have a unit of a step, the first
  // do.
  SEQKERNELS_DEVICE Exchange(uint32_t* ring, const Partition& part, const SharedLayout& layout, int member, int thread)
      : ring_(kScope == Scope::kDevice ? kept(ring) : ring),
        part_(part),
        layout_(layout),
        thread_(thread),
        first_reset_(kept(4 * ((kScope == Scope::kCluster ? 0 : member * layout.reset) + kThreads - 1 - thread))),
        resets_(kept((layout.reset + thread) / kThreads)),
        has_peers_(kIsSparing ? 0 : launder(part.members == kMaxCluster)) {}

  // Shared memory starts with nothing published; global memory was filled before the launch.
  SEQKERNELS_DEVICE void initialise() {
    if constexpr (kScope == Scope::kCluster) {
      for (int i = thread_; i < kRingSlots * layout_.slot; i += kThreads) ring_[i] = kNotReady;
      cluster_barrier();
      if (!has_peers_) return;
      SEQKERNELS_UNROLL
      for (int n = 0; n < kShare; ++n) peers_[n] = peer_address(ring_, (thread_ & 1) * kShare + n);
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
    return reinterpret_cast<const Words4*>(ring_ +
                                           (read + (chunk * columns() + column) * kChunkWords + 4 * lane_index()));
  }
  SEQKERNELS_DEVICE int stride() const { return columns() * kChunkWords / 4; }

  // Words of a lane's part, some of which may not be ready yet.
  SEQKERNELS_DEVICE Words4 load(const Words4* part) const { return load_relaxed<kScope>(part); }

  // Where word `word` of K in `column` is within a slot.
  SEQKERNELS_DEVICE int offset(int word, int column) const {
    return (word / kChunkWords * columns() + column) * kChunkWords + word % kChunkWords;
  }

  // Stores words for all members in this iteration's slot, the first at this offset and each next one `stride` behind the one
  // before. Of kCluster, two lanes that follow one another have the same words and offset, and share the members.
  template <int kCount, int kWords>
  SEQKERNELS_DEVICE void publish(int offset, int stride, Words<kWords> (&words)[kCount]) const {
    SEQKERNELS_UNROLL
    for (int i = 0; i < kCount * kWords; ++i)
      if (uint32_t& word = words[i / kWords].word[i % kWords]; word == kNotReady) word = kNaN;
    const auto place = [&](uint32_t* ring, int n) {
      return reinterpret_cast<Words<kWords>*>(ring + (offset + n * stride + written_));
    };
    if constexpr (kScope == Scope::kDevice) {
      SEQKERNELS_UNROLL
      for (int n = 0; n < kCount; ++n) store_relaxed<kScope>(place(ring_, n), words[n]);
    } else if (has_peers_) {
      SEQKERNELS_UNROLL
      for (int n = 0; n < kCount; ++n) {
        SEQKERNELS_UNROLL
        for (uint32_t* const peer : peers_) store_peer(place(peer, n), words[n]);
      }
    } else {
      SEQKERNELS_UNROLL_BY(1)
      for (int member = thread_ & 1; member < part_.members; member += 2) {
        uint32_t* const peer = peer_address(ring_, member);
        SEQKERNELS_UNROLL
        for (int n = 0; n < kCount; ++n) store_peer(place(peer, n), words[n]);
      }
    }
  }

  // Resets the slot after the next one: shares of one slot in global memory, or all of the block's own.
  SEQKERNELS_DEVICE void reset() const {
    const int after_next = written_ >= 2 * layout_.slot ? written_ - 2 * layout_.slot : written_ + 2 * layout_.slot;
    Words4* words = reinterpret_cast<Words4*>(ring_ + (first_reset_ + after_next));
    SEQKERNELS_UNROLL_BY(1)
    for (int n = resets_; n > 0; --n, words += kThreads)
      store_relaxed<kScope>(words, Words4{{kNotReady, kNotReady, kNotReady, kNotReady}});
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
  template <class T>
  static SEQKERNELS_DEVICE T kept(T value) {
    return kIsSparing ? value : launder(value);
  }
  SEQKERNELS_DEVICE int columns() const { return kColumns > 0 ? kColumns : part_.columns; }

  uint32_t* ring_;
  const Partition& part_;
  const SharedLayout& layout_;
  int thread_;
  int first_reset_, resets_;    // where this thread's first four words of a slot are that it resets, and how many such
  int has_peers_;               // of a cluster of as many blocks as one may have, which most are:
  uint32_t* peers_[kShare];     // the rings that this lane stores to
  int read_ = 0, written_ = 0;  // beginnings of the slots of the last iteration and of this one
};

}  // namespace seqkernels::cuda
