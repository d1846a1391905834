// Tile registers (AMX): products of bfloat16 pairs, 16 x 16 numbers of C by 16 packs of K in one instruction.
// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once
#include "formats-inl.h"

#if defined(__AMX_BF16__) || defined(__AMXBF16__)  // what GCC and what Clang calls it
#define SEQKERNELS_TILE_INSTRUCTIONS
#endif

namespace seqkernels::SEQKERNELS_ISA {

// The tile registers of a thread, which are in use while this lives. Each has up to 16 rows of 16
// columns: numbers of C, or packs of A and B. Without the instructions, memory takes their place.
class TileRegisters {
 public:
  static constexpr int kRows = 16, kColumns = 16;
  // The register of each operand: C has two by two or one by four, the operands A and B two each.
  static constexpr int c(int high, int wide) { return 2 * high + wide; }
  static constexpr int a(int high) { return 4 + high; }
  static constexpr int b(int wide) { return 6 + wide % 2; }

  TileRegisters() { heights() = {}; }
  ~TileRegisters();
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

  // Sets how many rows of C and A the upper registers and the lower ones have. What the registers hold is lost where
  // this is a change.
  static void set_heights(int upper, int lower) {
    if (heights().upper == upper && heights().lower == lower) return;
    heights() = {upper, lower};
    configure();
  }

  // Moves a tile; strides are in bytes, and with stride 0 all rows are the same.
  template <int kRegister>
  static void load(const void* from, int64_t stride);
  template <int kRegister>
  static void store(void* to, int64_t stride);
  // Adds A B to C.
  template <int kC, int kA, int kB>
  static void multiply_add();

 private:
  struct Heights {
    int upper, lower;
  };
  static Heights& heights() {
    static thread_local Heights in_use{};
    return in_use;
  }
  static constexpr bool is_lower(int r) { return r == c(1, 0) || r == c(1, 1) || r == a(1); }
  static int height(int r) { return r == b(0) || r == b(1) ? kRows : is_lower(r) ? heights().lower : heights().upper; }
  static void configure();
#if !defined(SEQKERNELS_TILE_INSTRUCTIONS)
  using Row = VecF::Raw;  // where vectors have kColumns lanes
  static Row (&rows(int r)) [kRows] {
    static thread_local Row registers[8][kRows];
    return registers[r];
  }
#endif
};

#if defined(SEQKERNELS_TILE_INSTRUCTIONS)

inline TileRegisters::~TileRegisters() { asm volatile("tilerelease"); }

inline void TileRegisters::configure() {
  struct alignas(64) {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];  // of a row
    uint8_t rows[16];
  } config{1, 0, {}, {}, {}};
  for (int r = 0; r < 8; ++r) config.bytes[r] = kColumns * 4, config.rows[r] = uint8_t(height(r));
  asm volatile("ldtilecfg %0" ::"m"(config));
}

template <int kRegister>
SEQKERNELS_INLINE void TileRegisters::load(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kRegister) : "memory");
}
template <int kRegister>
SEQKERNELS_INLINE void TileRegisters::store(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1)" ::"r"(to), "r"(stride), "i"(kRegister) : "memory");
}
template <int kC, int kA, int kB>
SEQKERNELS_INLINE void TileRegisters::multiply_add() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}

#else

inline TileRegisters::~TileRegisters() {}
inline void TileRegisters::configure() {}

template <int kRegister>
void TileRegisters::load(const void* from, int64_t stride) {
  for (int r = 0; r < height(kRegister); ++r)
    __builtin_memcpy(&rows(kRegister)[r], static_cast<const char*>(from) + r * stride, sizeof(Row));
}
template <int kRegister>
void TileRegisters::store(void* to, int64_t stride) {
  for (int r = 0; r < height(kRegister); ++r)
    __builtin_memcpy(static_cast<char*>(to) + r * stride, &rows(kRegister)[r], sizeof(Row));
}
template <int kC, int kA, int kB>
void TileRegisters::multiply_add() {
  for (int r = 0; r < height(kC); ++r)
    for (int k = 0; k < kColumns; ++k)
      Bf16VnniFormat::multiply_add(rows(kC)[r], Bf16VnniFormat::spread(&rows(kA)[r], k), rows(kB)[k]);
}

#endif

// Pairs of bfloat16 numbers that are multiplied in tile registers, where there are rows enough: the layout is
// Bf16VnniFormat's.
struct Bf16AmxFormat : Bf16VnniFormat {
  static constexpr int kKStep = TileRegisters::kColumns;
  static constexpr int kMultiplyAdds = 16;
  static constexpr int kRowsLost = 8;  // a low tile waits for B, of which two rows are read in a cycle
  static constexpr bool kInTiles = true;
  using Setup = TileRegisters;
};

}  // namespace seqkernels::SEQKERNELS_ISA
