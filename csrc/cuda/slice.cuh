// One warp's part of a weight matrix, on chip for all time steps, and its product with exchanged vectors.
//
// The part is kTiles tiles of 16 rows over `chunks` chunks of K (64 bytes of it: 32 16-bit values or 16 floats). The first
// kResident chunks stay in registers as the lanes' fragments (product.cuh), the others in shared memory.
#pragma once
#include "product.cuh"

namespace seqkernels::cuda {

template <class Operand, int kTiles, int kResidentChunks = Product<Operand, kTiles>::kResident>
class Slice {
 public:
  using Product = cuda::Product<Operand, kTiles>;
  static constexpr int kResident = kResidentChunks;
  static constexpr int kPerWord = OperandTraits<Operand>::kPerWord;
  static constexpr int kChunk = kChunkWords * kPerWord;       // values of K
  static constexpr int kValues = Product::kWords * kPerWord;  // of K, that a lane has of a chunk
  static constexpr int kQuads = Product::kFragment / 4;       // of words, of a tile's fragment

  // Words of shared memory for one warp's chunks.
  SEQKERNELS_HOST_DEVICE static int shared_words(int chunks) {
    return chunks <= kResident ? 0 : (chunks - kResident) * kQuads * kTiles * kWarpSize * 4;
  }

  // What a lane holds of a row in one chunk: its numbers from `first` on, of which there are `left`; zeros behind.
  template <class Element>
  static SEQKERNELS_DEVICE auto words_of(const Element* numbers, int64_t first, int left) {
    using Traits = OperandTraits<Operand>;
    Words<kValues / kPerWord> words{};
    if (left <= 0) return words;
    numbers += first;
    if (left >= kValues && reinterpret_cast<uintptr_t>(numbers) % sizeof(words) == 0) {
      words = *reinterpret_cast<const decltype(words)*>(numbers);
      if constexpr (kPerWord == 1)
        for (uint32_t& word : words.word) word = Traits::bits(float_of(word));
      return words;
    }
    SEQKERNELS_UNROLL
    for (int i = 0; i < kValues; ++i)
      if (i < left) words.word[i / kPerWord] |= Traits::bits(to_real(numbers[i])) << i % kPerWord * 16;
    return words;
  }

  // Words of scratch memory that `load` needs for each warp, and `multiply`.
  static constexpr int kStage = kQuads * kTiles * kWarpSize * 4, kProductStage = Product::kStage;

  // words(tile, row, k): what this lane holds of a row in one chunk, kValues of K from k on; zeros where the matrix has
  // no element. `shared`, `stage`: memory of this warp.
  template <class RowWords>
  SEQKERNELS_DEVICE void load(int first_chunk, int chunks, uint32_t* shared, uint32_t* stage, const RowWords& words) {
    first_chunk_ = first_chunk, chunks_ = chunks;
    shared_ = reinterpret_cast<Words4*>(shared);
    // By way of memory, which unlike registers a loop can index: else the code would be as long as the matrix.
    Words4* const staged = reinterpret_cast<Words4*>(stage) + lane_index();
    SEQKERNELS_UNROLL
    for (int c = 0; c < kResident; ++c)
      if (c < chunks) {
        load_chunk(staged, c, words);
        SEQKERNELS_UNROLL
        for (int quad = 0; quad < kQuads; ++quad) {
          SEQKERNELS_UNROLL
          for (int tile = 0; tile < kTiles; ++tile)
            resident_[c][quad][tile] = staged[(quad * kTiles + tile) * kWarpSize];
        }
      }
    for (int c = kResident; c < chunks; ++c) load_chunk(in_shared(c, 0, 0), c, words);
  }

  // sum[tile][column tile] = the product with kColumnTiles times eight columns of the last ring slot, from `column` on.
  //
  // Vectors come in rounds of kInFlight chunks, whose loads, kAhead of a lane, are in flight at once: one wait for all of them,
  // then all their products, then the loads of the next round. Waiting for each by itself would take as long for the first as
  // for all.
  template <int kColumnTiles, int kAhead, class Exchange>
  SEQKERNELS_DEVICE void multiply(const Exchange& exchange, int column, uint32_t* stage,
                                  float (&sum)[kTiles][kColumnTiles][Product::kResults]) const {
    typename Product::template Sums<kColumnTiles> sums(stage);
    static_assert(kAhead % kColumnTiles == 0);
    constexpr int kInFlight = kAhead / kColumnTiles;
    constexpr int kTurns = kInFlight < 2 ? 2 : kInFlight;
    static_assert(kTurns % kInFlight == 0);
    Words4 vectors[kInFlight][kColumnTiles];
    const Words4* part = exchange.part(first_chunk_, column);  // of the round's first chunk
    const int stride = exchange.stride();

    // Issues the loads of chunk number `n` of the round that begins with `chunk`, whose first one there is.
    const auto fetch = [&](int chunk, int n) {
      if (n > 0 && chunk + n >= chunks_) return;
      SEQKERNELS_UNROLL
      for (int tile = 0; tile < kColumnTiles; ++tile)
        vectors[n][tile] = exchange.load(part + n * stride + tile * kWarpSize);
    };
    const auto fetch_from = [&](int chunk, int first) {
      SEQKERNELS_UNROLL
      for (int n = first; n < kInFlight; ++n) fetch(chunk, n);
    };
    const auto are_ready = [&](int chunk, int begin, int end) {
      uint32_t most = 0;
      SEQKERNELS_UNROLL
      for (int n = begin; n < end; ++n)
        if (n == 0 || chunk + n < chunks_) {
          SEQKERNELS_UNROLL
          for (int tile = 0; tile < kColumnTiles; ++tile) most = larger(most, largest(vectors[n][tile]));
        }
      return warp_all(most != kNotReady);
    };
    // Waits until a round is ready. Spins on its first chunk alone: on all, it would be more than L2 can bring. Who had to
    // wait for that asked too early for the others, too.
    const auto await = [&](int chunk) {
      while (!are_ready(chunk, 0, kInFlight)) {
        while (!are_ready(chunk, 0, 1)) {
          pause();
          fetch(chunk, 0);
        }
        pause();
        fetch_from(chunk, 1);
      }
    };
    // Adds the products of a round's chunks. `turn` is chunk % kTurns, spelled out: registers need an index that the
    // compiler knows. fragment(n, quad, tile): this lane's words of the weights for chunk n of the round. Those in shared memory
    // are copied, in one load of 16 bytes: four of single words, 16 bytes apart from lane to lane, meet in banks, four at a time.
    // Returns whether there is another round, whose loads are then on their way.
    const auto add = [&](int turn, int chunk, const auto& fragment) {
      await(chunk);
      exchange.order_strictly();
      part += kInFlight * stride;
      const bool has_next = chunk + kInFlight < chunks_;
      SEQKERNELS_UNROLL
      for (int n = 0; n < kInFlight; ++n)
        if (n == 0 || chunk + n < chunks_) {
          sums.take(turn + n, vectors[n]);
          if (Product::kCopies && has_next) fetch(chunk + kInFlight, n);
          sums.add(turn + n, vectors[n], [&](int quad, int tile) -> decltype(auto) { return fragment(n, quad, tile); });
        }
      if (!Product::kCopies && has_next) fetch_from(chunk + kInFlight, 0);
      return has_next;
    };

    // Loads are issued only where somebody is certain to wait for them. Else the compiler would wait itself, for these and for
    // all that share their scoreboard, before it issues the first ones of the next step.
    if (chunks_ > 0) {
      fetch_from(0, 0);
      if (add_resident<0, kInFlight, kTurns>(add)) {
        constexpr int kBegun = (kResident + kInFlight - 1) / kInFlight * kInFlight;
        for (int first = kBegun, has_next = true; has_next; first += kTurns) {
          SEQKERNELS_UNROLL
          for (int turn = 0; turn < kTurns && has_next; turn += kInFlight)
            has_next = add((kBegun + turn) % kTurns, first + turn, [&](int n, int quad, int tile) -> Words4 {
              return *in_shared(first + turn + n, quad, tile);
            });
        }
      }
    }
    sums.finish(sum);
  }

 private:
  // The rounds from chunk c on whose weights are in registers. Whether there are others, which begin in shared memory.
  template <int c, int kInFlight, int kTurns, class Add>
  SEQKERNELS_DEVICE bool add_resident(const Add& add) const {
    if constexpr (c >= kResident) {
      return true;
    } else {
      const auto fragment = [&](int n, int quad, int tile) -> Words4 {
        return kResident % kInFlight == 0 || c + n < kResident ? resident_[c + n][quad][tile]
                                                               : *in_shared(c + n, quad, tile);
      };
      return add(c % kTurns, c, fragment) && add_resident<c + kInFlight, kInFlight, kTurns>(add);
    }
  }

  // This lane's fragments of a chunk, [quad][tile], kWarpSize apart.
  template <class RowWords>
  SEQKERNELS_DEVICE void load_chunk(Words4* to, int c, const RowWords& words) {
    const int k = (first_chunk_ + c) * kChunk + Product::member() * kValues;
    SEQKERNELS_UNROLL_BY(2)
    for (int tile = 0; tile < kTiles; ++tile) {
      Words4 fragment[kQuads];
      SEQKERNELS_UNROLL
      for (int row = 0; row < Product::kRows; ++row) {
        const auto of_row = words(tile, Product::group() + row * Product::kGroups, k);
        SEQKERNELS_UNROLL
        for (int word = 0; word < Product::kWords; ++word)
          fragment[Product::fragment_word(row, word) / 4].word[Product::fragment_word(row, word) % 4] =
              of_row.word[word];
      }
      SEQKERNELS_UNROLL
      for (int quad = 0; quad < kQuads; ++quad) to[(quad * kTiles + tile) * kWarpSize] = fragment[quad];
    }
  }

  SEQKERNELS_DEVICE Words4* in_shared(int c, int quad, int tile) const {
    return shared_ + (((c - kResident) * kQuads + quad) * kTiles + tile) * kWarpSize + lane_index();
  }

  Words4 resident_[kResident > 0 ? kResident : 1][kQuads][kTiles];
  Words4* shared_;
  int first_chunk_, chunks_;
};

}  // namespace seqkernels::cuda
