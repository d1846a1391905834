// One warp's part of a weight matrix, on chip for all time steps, and its product with exchanged vectors.
//
// The part is kTiles tiles of 16 rows over `chunks` chunks of K (64 bytes of it: 32 16-bit values or 16 floats). The first
// kResident chunks stay in registers as fragments of the MMA's A operand, the others in shared memory.
// K may be taken in any order as long as both operands agree. Member q = lane % 4 of a row (or column) takes the 16 bytes
// of a chunk that lie q-th in memory, so that one 16-byte load gives a lane its words of both MMAs of the chunk.
#pragma once
#include "exchange.cuh"
#include "mma.cuh"

namespace seqkernels::cuda {

template <class Operand>
struct OperandTraits {
  static constexpr int kPerWord = 2;
  using Element = Operand;
  static SEQKERNELS_DEVICE uint32_t bits(float x) { return from_real<Operand>(x).bits; }
};
template <>
struct OperandTraits<TFloat32> {
  static constexpr int kPerWord = 1;
  using Element = float;
  static SEQKERNELS_DEVICE uint32_t bits(float x) { return tf32_bits(x); }
};

template <class Operand, int kTileCount, int kResidentChunks>
class Slice {
 public:
  static constexpr int kTiles = kTileCount, kResident = kResidentChunks;
  static constexpr int kPerWord = OperandTraits<Operand>::kPerWord;
  static constexpr int kChunk = kChunkWords * kPerWord;  // values of K
  static constexpr int kValues = 4 * kPerWord;           // of K, that a lane has of a chunk
  static constexpr int kMmas = 2;                        // of a chunk
  static constexpr int kFragment = 4;                    // words a lane
  // Sums per tile of the result that do not wait for one another: with two warps to a scheduler, four MMAs are under way.
  static constexpr int kChains = kTiles == 1 ? 2 : 1;
  static constexpr int kAhead = 4;  // 16-byte loads of exchanged vectors that a lane has under way
  static_assert(kResident % kAhead == 0);

  // Words of shared memory for one warp's chunks.
  SEQKERNELS_HOST_DEVICE static int shared_words(int chunks) {
    return chunks <= kResident ? 0 : (chunks - kResident) * kMmas * kTiles * kWarpSize * kFragment;
  }

  // Words of scratch memory that `load` needs for each warp.
  static constexpr int kStage = kMmas * kTiles * kWarpSize * kFragment;

  // words(tile, row, k): what this lane holds of a row in one chunk, kValues of K from k on; zeros where the matrix has
  // no element. `shared`, `stage`: memory of this warp.
  template <class Words>
  SEQKERNELS_DEVICE void load(int first_chunk, int chunks, uint32_t* shared, uint32_t* stage, const Words& words) {
    first_chunk_ = first_chunk, chunks_ = chunks;
    shared_ = reinterpret_cast<Words4*>(shared);
    // By way of memory, which unlike registers a loop can index: else the code would be as long as the matrix.
    Words4* const staged = reinterpret_cast<Words4*>(stage) + lane_index();
    SEQKERNELS_UNROLL
    for (int c = 0; c < kResident; ++c)
      if (c < chunks) {
        load_chunk(staged, c, words);
        SEQKERNELS_UNROLL
        for (int m = 0; m < kMmas; ++m) {
          SEQKERNELS_UNROLL
          for (int tile = 0; tile < kTiles; ++tile) resident_[c][m][tile] = staged[(m * kTiles + tile) * kWarpSize];
        }
      }
    for (int c = kResident; c < chunks; ++c) load_chunk(in_shared(c, 0, 0), c, words);
  }

  // sum[tile][column tile] = the product with kColumnTiles times eight columns of a publication, from `column` on.
  template <int kColumnTiles>
  SEQKERNELS_DEVICE void multiply(const Exchange& exchange, int publication, int column,
                                  float (&sum)[kTiles][kColumnTiles][4]) const {
    float sums[kChains][kTiles][kColumnTiles][4] = {};
    constexpr int kSlots = kAhead / kColumnTiles;
    Words4 vectors[kSlots][kColumnTiles];
    // `slot` is chunk % kSlots; spelled out, since registers need an index that the compiler knows.
    const auto fetch = [&](int slot, int chunk) {
      if (chunk >= chunks_) return;
      SEQKERNELS_UNROLL
      for (int n = 0; n < kColumnTiles; ++n)
        vectors[slot][n] = exchange.load(publication, first_chunk_ + chunk, column + kTileColumns * n);
    };
    // fragment(m, tile): the A operand.
    const auto add = [&](int slot, int chunk, const auto& fragment) {
      if (chunk >= chunks_) return;
      exchange.wait(vectors[slot], publication, first_chunk_ + chunk, column);
      SEQKERNELS_UNROLL
      for (int m = 0; m < kMmas; ++m) {
        SEQKERNELS_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          const auto& a = fragment(m, tile);
          SEQKERNELS_UNROLL
          for (int n = 0; n < kColumnTiles; ++n)
            mma<Operand>(sums[(slot * kMmas + m) % kChains][tile][n], a, vectors[slot][n].word[2 * m],
                         vectors[slot][n].word[2 * m + 1]);
        }
      }
      fetch(slot, chunk + kSlots);
    };

    SEQKERNELS_UNROLL
    for (int c = 0; c < kSlots; ++c) fetch(c, c);
    SEQKERNELS_UNROLL
    for (int c = 0; c < kResident; ++c)
      add(c % kSlots, c, [&](int m, int tile) -> const auto& { return resident_[c][m][tile].word; });
    for (int first = kResident; first < chunks_; first += kSlots) {
      SEQKERNELS_UNROLL
      for (int slot = 0; slot < kSlots; ++slot)
        add(slot, first + slot, [&](int m, int tile) -> const auto& { return in_shared(first + slot, m, tile)->word; });
    }

    SEQKERNELS_UNROLL
    for (int i = 0; i < kTiles * kColumnTiles * 4; ++i) {
      const int tile = i / (kColumnTiles * 4), n = i / 4 % kColumnTiles;
      sum[tile][n][i % 4] = sums[0][tile][n][i % 4];
      SEQKERNELS_UNROLL
      for (int chain = 1; chain < kChains; ++chain) sum[tile][n][i % 4] += sums[chain][tile][n][i % 4];
    }
  }

 private:
  // This lane's fragments of a chunk, [MMA][tile], kWarpSize apart.
  template <class Words>
  SEQKERNELS_DEVICE void load_chunk(Words4* to, int c, const Words& words) {
    const int group = lane_index() / 4, member = lane_index() % 4;
    const int k = (first_chunk_ + c) * kChunk + member * kValues;
    SEQKERNELS_UNROLL_BY(2)
    for (int tile = 0; tile < kTiles; ++tile) {
      const Words4 low = words(tile, group, k), high = words(tile, group + 8, k);
      for (int m = 0; m < kMmas; ++m)
        to[(m * kTiles + tile) * kWarpSize] = {low.word[2 * m], high.word[2 * m], low.word[2 * m + 1],
                                               high.word[2 * m + 1]};
    }
  }

  SEQKERNELS_DEVICE Words4* in_shared(int c, int m, int tile) const {
    return shared_ + (((c - kResident) * kMmas + m) * kTiles + tile) * kWarpSize + lane_index();
  }

  Words4 resident_[kResident][kMmas][kTiles];
  Words4* shared_;
  int first_chunk_, chunks_;
};

}  // namespace seqkernels::cuda
