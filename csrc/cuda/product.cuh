// How a warp multiplies a tile of 16 rows (the weights') with 8 columns (the exchanged vectors') over a chunk of K, 64
// bytes: on tensor cores, or, for float32 in IEEE arithmetic, by FFMA.
//
// K may be taken in any order as long as both operands agree. So lanes divide a chunk as it lies in memory: a lane is one of
// kMembers members, which have kWords words of K each, in one of kGroups groups, which have kRows rows each. In the end a
// lane has kResults sums of the tile, either way: those of its rows and of the kColumns columns that are its member's.
#pragma once
#include "exchange.cuh"
#include "mma.cuh"

namespace seqkernels::cuda {

constexpr int kTileRows = 16;

// An operand is an element as it is multiplied: BFloat16, Float16, TFloat32, and float, which no tensor core takes.
template <class Operand>
struct OperandTraits {
  static constexpr int kPerWord = 2;
  static SEQKERNELS_DEVICE uint32_t bits(float x) { return from_real<Operand>(x).bits; }
  static SEQKERNELS_DEVICE Words<1> pair(float low, float high) { return {{word_of<Operand>(low, high)}}; }
};
template <>
struct OperandTraits<TFloat32> {
  static constexpr int kPerWord = 1;
  static SEQKERNELS_DEVICE uint32_t bits(float x) { return tf32_bits(x); }
  static SEQKERNELS_DEVICE Words<2> pair(float low, float high) { return {{bits(low), bits(high)}}; }
};
template <>
struct OperandTraits<float> {
  static constexpr int kPerWord = 1;
  static SEQKERNELS_DEVICE uint32_t bits(float x) { return bits_of(x); }
  static SEQKERNELS_DEVICE Words<2> pair(float low, float high) { return {{bits(low), bits(high)}}; }
};

template <int kMemberCount>
struct LaneShare {
  static constexpr int kMembers = kMemberCount, kGroups = kWarpSize / kMembers;
  static constexpr int kRows = kTileRows / kGroups, kColumns = kTileColumns / kMembers, kResults = kRows * kColumns;
  static constexpr int kWords = kChunkWords / kMembers;
  static constexpr int kFragment = kRows * kWords;  // words of weights that a lane has of a tile and a chunk
};

// The product by MMAs, two a chunk: a lane's first two words of K are those that it gives to the first.
template <class Operand, int kTiles>
class TensorProduct : public LaneShare<4> {
 public:
  static constexpr bool kOnTensorCores = true;
  static constexpr int kMaxTiles = 8;  // unit groups times column tiles of a block in one pass over K
  // Of columns, of a warp; with 4, it has several quarters.
  static constexpr int kMaxColumnTiles = kTiles == 1 ? 4 : 2;
  // Chunks whose weights stay in registers: up to 128 of a thread's 255; passes with one tile read more inputs of a step. Fewer
  // where a warp has several quarters, whose loads and sums want registers, or where a thread of two teams has 128 in all.
  static constexpr int kResident = kTiles == 1 ? 12 : 4, kResidentOfSeveral = kTiles == 1 ? 8 : 4;
  static constexpr int kResidentOfTeams = kTiles == 1 ? 2 : 0;
  // Tiles of chunks, of 8 registers each, that the stages of a step keep so together where there are several.
  static constexpr int kSharedTiles = 12;
  // 16-byte loads of exchanged vectors that a lane has in flight.
  static constexpr int kAhead = 4, kAheadOfSeveral = kTiles == 1 ? 8 : 4;
  static constexpr int kStage = 0;        // words of scratch memory that a warp needs
  static constexpr bool kCopies = false;  // whether `take` has no more use for the vectors' registers

  static SEQKERNELS_DEVICE int group() { return lane_index() / kMembers; }
  static SEQKERNELS_DEVICE int member() { return lane_index() % kMembers; }
  // Which word of the fragment has word `word` of a lane's row number `row`.
  static SEQKERNELS_DEVICE constexpr int fragment_word(int row, int word) { return word * kRows + row; }

  template <int kColumnTiles>
  class Sums {
   public:
    SEQKERNELS_DEVICE explicit Sums(uint32_t*) {}

    // `turn` counts the chunks, whose vectors are there.
    SEQKERNELS_DEVICE void take(int, const Words4 (&)[kColumnTiles]) const {}

    // fragment(quad, tile): four words of this lane's weights.
    template <class Fragment>
    SEQKERNELS_DEVICE void add(int turn, const Words4 (&vectors)[kColumnTiles], const Fragment& fragment) {
      SEQKERNELS_UNROLL
      for (int m = 0; m < kMmas; ++m) {
        SEQKERNELS_UNROLL
        for (int tile = 0; tile < kTiles; ++tile) {
          const auto& a = fragment(m, tile).word;
          SEQKERNELS_UNROLL
          for (int n = 0; n < kColumnTiles; ++n)
            mma<Operand>(sums_[(turn * kMmas + m) % kChains][tile][n], a, vectors[n].word[2 * m],
                         vectors[n].word[2 * m + 1]);
        }
      }
    }

    SEQKERNELS_DEVICE void finish(float (&sum)[kTiles][kColumnTiles][kResults]) const {
      SEQKERNELS_UNROLL
      for (int i = 0; i < kTiles * kColumnTiles * kResults; ++i) {
        const int tile = i / (kColumnTiles * kResults), n = i / kResults % kColumnTiles;
        sum[tile][n][i % kResults] = sums_[0][tile][n][i % kResults];
        SEQKERNELS_UNROLL
        for (int chain = 1; chain < kChains; ++chain) sum[tile][n][i % kResults] += sums_[chain][tile][n][i % kResults];
      }
    }

   private:
    static constexpr int kMmas = 2;
    // Sums that do not wait for one another: an MMA takes about as long as five that follow upon each other.
    static constexpr int kChains = kTiles == 1 ? 4 / kColumnTiles : 1;
    float sums_[kChains][kTiles][kColumnTiles][kResults] = {};
  };
};

// The product by FFMA: a lane multiplies its words of K of all its rows with those of all eight columns, and the sums of a
// group's members are added up in the end. Vectors come as they do for MMAs, each word to one lane, and from there to all that
// multiply with it by way of shared memory, which is read once for all tiles. Where there is one tile alone, lanes have
// more rows and less of K, and so read less.
template <int kTiles>
class FfmaProduct : public LaneShare<kTiles == 1 ? 8 : 4> {
  using Share = LaneShare<kTiles == 1 ? 8 : 4>;
  using Part = Words<Share::kWords>;                                  // what a member has of a column
  static constexpr int kParts = 4 / Share::kWords;                    // of a lane's vectors
  static constexpr int kStagedChunks = 2;                             // while one is read, the next is written
  static constexpr int kChunkParts = kTileColumns * Share::kMembers;  // of a chunk

 public:
  static constexpr bool kOnTensorCores = false;
  // Fewer than above, for lanes have at least four times as many sums.
  static constexpr int kMaxTiles = kTiles == 4 ? 2 : 4, kMaxColumnTiles = 1;
  static constexpr int kResident = 12 / kTiles, kResidentOfSeveral = kResident;  // in 96 registers
  static constexpr int kResidentOfTeams = kResident;                             // there are none
  static constexpr int kSharedTiles = kTiles == 4 ? 5 : 12;
  // With more tiles, a chunk's FFMAs take longer than its load.
  static constexpr int kAhead = kTiles == 1 ? 2 : 1, kAheadOfSeveral = kAhead;
  static constexpr int kStage = kStagedChunks * kTileColumns * kChunkWords;
  static constexpr bool kCopies = true;

  // Neighbours read the same words.
  static SEQKERNELS_DEVICE int group() { return lane_index() % Share::kGroups; }
  static SEQKERNELS_DEVICE int member() { return lane_index() / Share::kGroups; }
  // As TensorProduct's, but by pairs of words, so that few weights at a time need registers.
  static SEQKERNELS_DEVICE constexpr int fragment_word(int row, int word) {
    return (word / 2 * Share::kRows + row) * 2 + word % 2;
  }

  // A member's parts of a chunk are staged in the order of column ^ its own first column, and its sums have this order, too:
  // so the sums that it keeps come first, whichever member it is.
  template <int kColumnTiles>
  class Sums {
    static_assert(kColumnTiles == kMaxColumnTiles);

   public:
    SEQKERNELS_DEVICE explicit Sums(uint32_t* stage)
        : from_(reinterpret_cast<const Words<2>*>(stage) + member() * Share::kWords / 2) {
      const int column = lane_index() / 4, first = lane_index() % 4 * kParts;  // as Exchange::part has it
      SEQKERNELS_UNROLL
      for (int i = 0; i < kParts; ++i)
        to_[i] =
            reinterpret_cast<Part*>(stage) + (column ^ (first + i) * Share::kColumns) * Share::kMembers + first + i;
    }

    SEQKERNELS_DEVICE void take(int turn, const Words4 (&vectors)[1]) const {
      SEQKERNELS_UNROLL
      for (int i = 0; i < kParts; ++i) {
        Part part;
        SEQKERNELS_UNROLL
        for (int word = 0; word < Share::kWords; ++word) part.word[word] = vectors[0].word[i * Share::kWords + word];
        to_[i][turn % kStagedChunks * kChunkParts] = part;
      }
      warp_barrier();
    }

    template <class Fragment>
    SEQKERNELS_DEVICE void add(int turn, const Words4 (&)[1], const Fragment& fragment) {
      SEQKERNELS_UNROLL
      for (int pair = 0; pair < Share::kWords / 2; ++pair) {
        Words4 weights[kTiles][Share::kRows / 2];  // of two rows each
        SEQKERNELS_UNROLL
        for (int i = 0; i < kTiles * Share::kRows / 2; ++i)
          weights[i % kTiles][i / kTiles] = fragment(pair * Share::kRows / 2 + i / kTiles, i % kTiles);
        SEQKERNELS_UNROLL
        for (int n = 0; n < kTileColumns; ++n) {
          const int part = turn % kStagedChunks * kChunkParts + n * Share::kMembers;
          const Words<2> vector = from_[part * Share::kWords / 2 + pair];
          SEQKERNELS_UNROLL
          for (int i = 0; i < 2 * kTiles * Share::kRows; ++i) {
            const int word = i / (kTiles * Share::kRows), tile = i / Share::kRows % kTiles, row = i % Share::kRows;
            sums_[tile][row][n] +=
                float_of(weights[tile][row / 2].word[row % 2 * 2 + word]) * float_of(vector.word[word]);
          }
        }
      }
    }

    SEQKERNELS_DEVICE void finish(float (&sum)[kTiles][1][Share::kResults]) {
      reduce<kTileColumns / 2>();
      SEQKERNELS_UNROLL
      for (int i = 0; i < kTiles * Share::kResults; ++i)
        sum[i / Share::kResults][0][i % Share::kResults] =
            sums_[i / Share::kResults][i % Share::kResults / Share::kColumns][i % Share::kColumns];
      warp_barrier();  // all have read what was staged
    }

   private:
    // Adds to the first kHalf sums of a row what the members that keep the other half of the columns have of these.
    template <int kHalf>
    SEQKERNELS_DEVICE void reduce() {
      SEQKERNELS_UNROLL
      for (int i = 0; i < kTiles * Share::kRows * kHalf; ++i) {
        float (&sums)[kTileColumns] = sums_[i / kHalf / Share::kRows][i / kHalf % Share::kRows];
        sums[i % kHalf] += shuffle_xor(sums[kHalf + i % kHalf], kHalf / Share::kColumns * Share::kGroups);
      }
      if constexpr (kHalf > Share::kColumns) reduce<kHalf / 2>();
    }

    const Words<2>* const from_;
    Part* to_[kParts];
    float sums_[kTiles][Share::kRows][kTileColumns] = {};
  };
};

template <class Operand, int kTiles>
struct ProductOf {
  using type = TensorProduct<Operand, kTiles>;
};
template <int kTiles>
struct ProductOf<float, kTiles> {
  using type = FfmaProduct<kTiles>;
};
template <class Operand, int kTiles>
using Product = typename ProductOf<Operand, kTiles>::type;

}  // namespace seqkernels::cuda
