// How the blocks of a group hand each other what the next step's product reads (h going forward, dgates going back),
// with one trip through memory: data that says itself whether it is there.
//
// There are kBuffers buffers, publication number i in buffer i % kBuffers. A word nobody has written yet is kAbsent, a
// pattern that no published word has, so readers spin on the data itself, and no flag, counter or barrier stands between.
// A buffer is reset to kAbsent once all have read it. What every thread of a block does in iteration i:
//   read publication i - 1 | fence | block_barrier | publish i | reset its share of buffer (i + 2) % kBuffers
// All of publication i - 1 being there means that all blocks had finished reading i - 2, whose buffer is the one reset. It is
// read again in iteration i + 3, by blocks that have then read this block's publication i + 1, which came after the barrier
// of iteration i + 1 and so after the fences of all of this block's threads, which order their resets before it. The fence
// stands where the stores it waits for are a product old: it costs next to nothing there.
// tests/exchange_model.py explores all interleavings of this protocol, and of wrong ones.
//
// A buffer holds words [chunk][column][kChunkWords]: a chunk is 64 bytes of K. Scope::kCluster has every block keep a copy
// of its own in shared memory, which all members write to; Scope::kDevice has one in global memory for the group.
#pragma once
#include "device.h"
#include "problem.h"

namespace seqkernels::cuda {

constexpr int kChunkWords = 16;
constexpr uint32_t kAbsent = 0xFFFFFFFF;  // as a float, or two 16-bit ones: NaNs that no conversion makes
constexpr uint32_t kNaN = 0x7FFF7FFF;     // what is published in its place, if arithmetic ever made one

// kAbsent is the largest of all words. A tree of maxima, for a chain of tests would wait for each.
SEQKERNELS_DEVICE uint32_t largest(const Words4& v) {
  return larger(larger(v.word[0], v.word[1]), larger(v.word[2], v.word[3]));
}

// `kIsSparing`: works out where the last publication is, for registers are scarce.
template <Scope kScope, bool kIsSparing>
class Exchange {
 public:
  // `buffers`: of the group in global memory (kDevice), or of this block in shared memory (kCluster).
  SEQKERNELS_DEVICE Exchange(uint32_t* buffers, const Partition& part, const SharedLayout& layout, int member)
      : buffers_(buffers), part_(part), layout_(layout), member_(member) {}

  // Shared memory starts with nothing published; global memory was filled before the launch.
  SEQKERNELS_DEVICE void initialise() const {
    if constexpr (kScope == Scope::kCluster) {
      for (int i = thread_index(); i < kBuffers * layout_.buffer; i += kThreads) buffers_[i] = kAbsent;
      cluster_barrier();
    }
  }

  // From iteration i to iteration i + 1.
  SEQKERNELS_DEVICE void advance() {
    if constexpr (!kIsSparing) read_ = written_;
    written_ += layout_.buffer;
    if (written_ == kBuffers * layout_.buffer) written_ = 0;
  }

  // Where this lane's part of a chunk of the publication before this iteration's is, for the eight columns from `column` on;
  // kWarpSize further is that of the next eight, `stride` further that of the next chunk.
  SEQKERNELS_DEVICE const Words4* part(int chunk, int column) const {
    const int read = !kIsSparing ? read_ : (written_ == 0 ? kBuffers * layout_.buffer : written_) - layout_.buffer;
    const uint32_t* const words = buffers_ + read + (chunk * part_.columns + column) * kChunkWords;
    return reinterpret_cast<const Words4*>(words) + lane_index();
  }
  SEQKERNELS_DEVICE int stride() const { return part_.columns * kChunkWords / 4; }

  // Perhaps not all there yet.
  SEQKERNELS_DEVICE Words4 load(const Words4* part) const { return load_relaxed<kScope>(part); }

  // Where word `word` of K in `column` is within a buffer.
  SEQKERNELS_DEVICE int place(int word, int column) const {
    return (word / kChunkWords * part_.columns + column) * kChunkWords + word % kChunkWords;
  }

  // To all members, at a place of this iteration's buffer.
  SEQKERNELS_DEVICE void publish(int place, uint32_t value) const {
    if (value == kAbsent) value = kNaN;
    uint32_t* const to = buffers_ + written_ + place;
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

  // Makes the buffer after the next one ready: shares of one buffer in global memory, or all of the block's own.
  SEQKERNELS_DEVICE void reset() const {
    const int after_next =
        written_ >= 2 * layout_.buffer ? written_ - 2 * layout_.buffer : written_ + 2 * layout_.buffer;
    Words4* const words =
        reinterpret_cast<Words4*>(buffers_ + after_next) + (kScope == Scope::kCluster ? 0 : member_ * layout_.reset);
    SEQKERNELS_UNROLL_BY(1)
    for (int i = thread_index(); i < layout_.reset; i += kThreads)
      store_relaxed<kScope>(words + i, Words4{{kAbsent, kAbsent, kAbsent, kAbsent}});
  }

  // Orders this thread's resets; within a block, its barrier is enough.
  SEQKERNELS_DEVICE void order_resets() const {
    if (part_.members > 1) fence<kScope>();
  }

  // In a STRICT build: by readers once all is there, by publishers before they publish what others of the block have ordered.
  SEQKERNELS_DEVICE void order_strictly() const { strict_fence<kScope>(); }

  // CUDA wants blocks to outlive all accesses to their shared memory; here, none comes after they read all there is.
  SEQKERNELS_DEVICE void finish() const {
    if constexpr (kScope == Scope::kCluster) cluster_barrier();
  }

 private:
  uint32_t* buffers_;
  const Partition& part_;
  const SharedLayout& layout_;
  int member_;
  int read_ = 0, written_ = 0;  // beginnings of the buffers of the last publication and of this iteration's
};

}  // namespace seqkernels::cuda
