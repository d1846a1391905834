// How the blocks of a group hand each other what the next step's product reads (h going forward, dgates going back),
// with one trip through memory: data that says itself whether it is there.
//
// There are kBuffers buffers, publication number i in buffer i % kBuffers. A word nobody has written yet is kAbsent, a
// pattern that no published word has, so readers spin on the data itself, and no flag, counter or barrier stands between.
// A buffer is reset to kAbsent once all have read it:
//   iteration i: read publication i - 1 | block_barrier | publish i | reset buffer (i + 2) % kBuffers | fence
// All of publication i - 1 being there means that all blocks had finished reading i - 2, whose buffer is the one reset; it
// is read again in iteration i + 3, by blocks that have then read this block's publication i + 1, which came after the fence.
//
// A buffer holds words [chunk][column][kChunkWords]: a chunk is 64 bytes of K. Scope::kCluster has every block keep a copy
// of its own in shared memory, which all members write to; Scope::kDevice has one in global memory for the group.
#pragma once
#include "device.h"
#include "problem.h"

namespace seqkernels::cuda {

constexpr int kBuffers = 4;
constexpr int kChunkWords = 16;
constexpr uint32_t kAbsent = 0xFFFFFFFF;  // as a float, or two 16-bit ones: NaNs that no conversion makes
constexpr uint32_t kNaN = 0x7FFF7FFF;     // what is published in its place, if arithmetic ever made one

SEQKERNELS_DEVICE bool is_complete(const Words4& v) {
  return v.word[0] != kAbsent && v.word[1] != kAbsent && v.word[2] != kAbsent && v.word[3] != kAbsent;
}

class Exchange {
 public:
  // `buffers`: of the group in global memory (kDevice), or of this block in shared memory (kCluster).
  SEQKERNELS_DEVICE Exchange(Scope scope, uint32_t* buffers, int chunks, int columns, int member, int members)
      : scope_(scope),
        buffers_(buffers),
        columns_(columns),
        words_(chunks * columns * kChunkWords),
        member_(member),
        members_(members) {}

  // Shared memory starts with nothing published; global memory was filled before the launch.
  SEQKERNELS_DEVICE void initialise() const {
    if (scope_ == Scope::kCluster) {
      for (int i = thread_index(); i < kBuffers * words_; i += block_threads()) buffers_[i] = kAbsent;
      cluster_barrier();
    }
  }

  // Where this lane's part of a chunk is, for the eight columns from `column` on; kWarpSize further is that of the next
  // eight, `stride` further that of the next chunk.
  SEQKERNELS_DEVICE const Words4* part(int publication, int chunk, int column) const {
    const uint32_t* const words = buffer(publication) + (chunk * columns_ + column) * kChunkWords;
    return reinterpret_cast<const Words4*>(words) + lane_index();
  }
  SEQKERNELS_DEVICE int stride() const { return columns_ * kChunkWords / 4; }

  // Perhaps not all there yet.
  SEQKERNELS_DEVICE Words4 load(const Words4* part) const { return load_relaxed(part, scope_); }

  // Spins until what `load` gave is there; whether it was not.
  SEQKERNELS_DEVICE bool wait(Words4& vector, const Words4* part) const {
    bool waited = false;
    while (!is_complete(vector)) {
      pause();
      vector = load(part);
      waited = true;
    }
    return waited;
  }

  // Where word `word` of K in `column` is published, as words from the first buffer's beginning.
  SEQKERNELS_DEVICE int place(int publication, uint32_t word, int column) const {
    return publication % kBuffers * words_ + (static_cast<int>(word / kChunkWords) * columns_ + column) * kChunkWords +
           static_cast<int>(word % kChunkWords);
  }

  // With `kUnrolled`, stores to the members of a cluster are under way sooner, and want more registers.
  template <bool kUnrolled>
  SEQKERNELS_DEVICE void publish(int place, uint32_t value) const {
    if (value == kAbsent) value = kNaN;
    uint32_t* const to = buffers_ + place;
    if (scope_ == Scope::kDevice) {
      store_relaxed(to, value, scope_);
    } else if (kUnrolled) {
      SEQKERNELS_UNROLL
      for (int member = 0; member < kMaxCluster; ++member)
        if (member < members_) store_relaxed(peer_shared(to, member), value, scope_);
    } else {
      for (int member = 0; member < members_; ++member) store_relaxed(peer_shared(to, member), value, scope_);
    }
  }

  // Makes the buffer after the next one ready; shares of one buffer in global memory, or all of the block's own.
  SEQKERNELS_DEVICE void reset(int iteration) const {
    const int share = scope_ == Scope::kCluster ? words_ : words_ / members_;
    uint32_t* const words = buffer(iteration + 2) + (scope_ == Scope::kCluster ? 0 : member_ * share);
    for (int i = thread_index(); i < share; i += block_threads()) store_relaxed(words + i, kAbsent, scope_);
    if (members_ > 1) fence(scope_);  // within a block, its barrier is enough
  }

  // CUDA wants blocks to outlive all accesses to their shared memory; here, none comes after they read all there is.
  SEQKERNELS_DEVICE void finish() const {
    if (scope_ == Scope::kCluster) cluster_barrier();
  }

 private:
  SEQKERNELS_DEVICE uint32_t* buffer(int publication) const { return buffers_ + publication % kBuffers * words_; }

  Scope scope_;
  uint32_t* buffers_;
  int columns_, words_, member_, members_;
};

}  // namespace seqkernels::cuda
