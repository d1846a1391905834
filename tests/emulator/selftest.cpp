// The emulator's own test: kernels that must pass, and kernels with one fault each. `selftest CASE [SEED]` runs one and
// ends with status 1 and the error if there is one; tests/test_emulator.py says what each has to give.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "selftest_faults.h"

namespace seqkernels::cuda {
namespace {

void threads() {
  std::vector<int> runs(6 * 64);
  launch({.blocks = 6, .threads = 64, .cluster = 2, .seed = seed}, [&] {
    expect(block_threads() == 64 && grid_threads() == 6 * 64);
    expect(lane_index() == thread_index() % 32 && warp_index() == thread_index() / 32);
    expect(cluster_rank() == block_index() % 2);
    ++runs[block_index() * 64 + thread_index()];
  });
  for (const int count : runs) expect(count == 1);
}

void shuffles() {
  launch({.blocks = 2, .threads = 96, .seed = seed}, [] {
    for (int mask = 1; mask < 32; ++mask) {
      const int other = thread_index() ^ mask;
      expect(shuffle_xor(uint32_t(other) << 20, mask) == uint32_t(thread_index()) << 20);
      expect(shuffle_xor(float(other) + 0.25f, mask) == float(thread_index()) + 0.25f);
    }
  });
}

// The element's place among the lane's `i`-th ones, straight from the PTX ISA's tables, for 16-bit types and for TF32.
template <class Operand>
struct Layout {
  static constexpr bool k16 = !std::is_same_v<Operand, TFloat32>;
  static constexpr int kInner = k16 ? 16 : 8, kPerWord = k16 ? 2 : 1;
  static int a_row(int lane, int i) { return lane / 4 + (i / kPerWord % 2 ? 8 : 0); }
  static int a_k(int lane, int i) { return k16 ? lane % 4 * 2 + i % 2 + (i < 4 ? 0 : 8) : lane % 4 + (i < 2 ? 0 : 4); }
  static int b_k(int lane, int i) { return k16 ? lane % 4 * 2 + i % 2 + (i < 2 ? 0 : 8) : lane % 4 + (i < 1 ? 0 : 4); }
  static int b_column(int lane, int) { return lane / 4; }
  static int d_row(int lane, int i) { return lane / 4 + (i < 2 ? 0 : 8); }
  static int d_column(int lane, int i) { return lane % 4 * 2 + i % 2; }
};

// d [16, 8] += a [16, K] b [K, 8], the elements as bit patterns
template <class Operand>
void warp_product(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b, std::vector<float>& d) {
  using L = Layout<Operand>;
  launch({.blocks = 1, .threads = 32, .seed = seed}, [&] {
    uint32_t a_words[4] = {}, b_words[2] = {};
    float sums[4];
    const int lane = lane_index();
    for (int i = 0; i < 4 * L::kPerWord; ++i)
      a_words[i / L::kPerWord] |= a[L::a_row(lane, i) * L::kInner + L::a_k(lane, i)] << i % L::kPerWord * 16;
    for (int i = 0; i < 2 * L::kPerWord; ++i)
      b_words[i / L::kPerWord] |= b[L::b_k(lane, i) * 8 + L::b_column(lane, i)] << i % L::kPerWord * 16;
    for (int i = 0; i < 4; ++i) sums[i] = d[L::d_row(lane, i) * 8 + L::d_column(lane, i)];
    mma<Operand>(sums, a_words, b_words[0], b_words[1]);
    for (int i = 0; i < 4; ++i) d[L::d_row(lane, i) * 8 + L::d_column(lane, i)] = sums[i];
  });
}

uint32_t pattern(BFloat16*, float value) { return std::bit_cast<uint32_t>(value) >> 16; }
uint32_t pattern(TFloat32*, float value) { return std::bit_cast<uint32_t>(value) | 0x1fff; }  // what must be ignored
uint32_t pattern(Float16*, float value) {                                                     // of a small integer
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return value == 0 ? 0 : (bits >> 16 & 0x8000) | ((bits & 0x7fffffff) - (112u << 23)) >> 13;
}

// Integers, so that products and sums are exact; all different within an operand, so that no index can be wrong.
template <class Operand>
void products() {
  constexpr int kInner = Layout<Operand>::kInner;
  std::mt19937 random(static_cast<uint32_t>(seed));
  const auto distinct = [&](int count) {
    std::vector<float> values(count);
    for (int i = 0; i < count; ++i) values[i] = static_cast<float>(i - count / 2);
    std::shuffle(values.begin(), values.end(), random);
    return values;
  };
  const auto as_bits = [](const std::vector<float>& values) {
    std::vector<uint32_t> bits;
    for (const float value : values) bits.push_back(pattern(static_cast<Operand*>(nullptr), value));
    return bits;
  };
  for (int repeat = 0; repeat < 8; ++repeat) {
    const std::vector<float> a = distinct(16 * kInner), b = distinct(kInner * 8);
    std::vector<float> d = distinct(16 * 8), expected = d;
    for (int row = 0; row < 16; ++row)
      for (int column = 0; column < 8; ++column)
        for (int k = 0; k < kInner; ++k) expected[row * 8 + column] += a[row * kInner + k] * b[k * 8 + column];
    warp_product<Operand>(as_bits(a), as_bits(b), d);
    expect(d == expected);
  }
}

// Every finite number, times one.
void float16_numbers() {
  std::vector<uint32_t> a(16 * 16), b(16 * 8);
  for (int i = 0; i < 8; ++i) b[i * 8 + i] = 0x3c00;
  for (uint32_t first = 0; first < 0x10000; first += 128) {
    if ((first & 0x7c00) == 0x7c00) continue;
    for (uint32_t i = 0; i < 128; ++i) a[i / 8 * 16 + i % 8] = first + i;
    std::vector<float> d(16 * 8);
    warp_product<Float16>(a, b, d);
    for (uint32_t i = 0; i < 128; ++i) {
      const int exponent = (first + i) >> 10 & 31, mantissa = (first + i) & 1023;
      const float size = std::ldexp(float(exponent ? 1024 + mantissa : mantissa), std::max(exponent, 1) - 25);
      expect(d[i] == (first + i >= 0x8000 ? -size : size));
    }
  }
}

void barriers() {
  launch({.blocks = 3, .threads = 128, .shared_bytes = 128 * sizeof(int), .seed = seed}, [] {
    int* values = shared<int>();
    for (int step = 0; step < 5; ++step) {
      values[thread_index()] = thread_index() + step;
      block_barrier();
      expect(values[127 - thread_index()] == 127 - thread_index() + step);
      block_barrier();
      values[thread_index()] = -1;
      warp_barrier();
      expect(values[thread_index() ^ 7] == -1);
      warp_barrier();
    }
  });
}

void clusters() {
  launch({.blocks = 8, .threads = 32, .cluster = 4, .shared_bytes = 4 * sizeof(uint32_t), .seed = seed}, [] {
    uint32_t* own = shared<uint32_t>();
    cluster_barrier();
    if (thread_index() < 4) peer_of(own, thread_index())[cluster_rank()] = block_index() * 10 + thread_index();
    cluster_barrier();
    for (int i = 0; i < 4; ++i) expect(own[i] == uint32_t((block_index() - cluster_rank() + i) * 10 + cluster_rank()));
  });
}

// In every step each thread waits for the words of all, which carry the step, as persistent kernels do.
template <Scope kScope>
void exchange_words(int cluster) {
  constexpr int kBlocks = 4, kSteps = 6, kWords = kBlocks * 32;
  alignas(16) static uint32_t global[2][kWords];
  std::memset(global, 0, sizeof global);
  constexpr bool kIsNear = kScope == Scope::kCluster;
  launch({.blocks = kBlocks, .threads = 32, .cluster = cluster, .shared_bytes = sizeof global, .seed = seed}, [] {
    uint32_t* words = kIsNear ? shared<uint32_t>() : &global[0][0];
    if (kIsNear) {
      for (int i = thread_index(); i < 2 * kWords; i += 32) words[i] = 0;
      cluster_barrier();
    }
    for (int step = 1; step <= kSteps; ++step) {
      uint32_t* current = words + step % 2 * kWords;
      const int index = block_index() * 32 + thread_index();
      const Words<1> word{{uint32_t(step << 16 | index)}};
      const auto place = [&](uint32_t* words) { return reinterpret_cast<Words<1>*>(words + index); };
      if (kIsNear)
        for (int rank = 0; rank < kBlocks; ++rank) store_peer(place(peer_address(current, rank)), word);
      else
        store_relaxed<Scope::kDevice>(place(current), word);
      for (int i = 0; i < kWords; i += 4)
        for (bool all = false; !all; pause()) {
          const Words4 v = load_relaxed<kScope>(reinterpret_cast<const Words4*>(current + i));
          all = true;
          for (int j = 0; j < 4; ++j) {
            expect((v.word[j] >> 16) <= uint32_t(step));
            if (v.word[j] >> 16 != uint32_t(step))
              all = false;
            else
              expect((v.word[j] & 0xffff) == uint32_t(i + j));
          }
        }
      block_barrier();
    }
    if (kIsNear) cluster_barrier();
  });
}

void poison() {
  launch({.blocks = 1, .threads = 32, .shared_bytes = 64, .seed = seed}, [] {
    for (int i = 0; i < 16; ++i) expect(shared<float>()[i] != shared<float>()[i]);
    for (int i = 0; i < 8; ++i) expect(shared<double>()[i] != shared<double>()[i]);
  });
}

std::vector<int> order_of(uint64_t some_seed) {
  std::vector<int> order;
  launch({.blocks = 2, .threads = 64, .seed = some_seed}, [&] {
    for (int i = 0; i < 4; ++i) order.push_back(block_index() * 64 + thread_index()), pause();
  });
  return order;
}

void seeds() {
  expect(order_of(seed) == order_of(seed));
  expect(order_of(seed) != order_of(seed + 1));
}

// A launch that has failed leaves the next one alone.
void errors() {
  for (int i = 0; i < 3; ++i) {
    bool failed = false;
    try {
      launch({.blocks = 2, .threads = 64, .seed = seed}, [] {
        block_barrier();
        if (thread_index() == 33) throw std::out_of_range("a kernel's own");
        block_barrier();
      });
    } catch (const std::out_of_range&) {
      failed = true;
    }
    expect(failed);
    barriers();
  }
}

// How many of 200 seeds let block 1 see the flag, and not what block 0 had stored before it.
template <bool kFenced>
int late_words() {
  int late = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    alignas(16) Words4 data{}, flag{};
    launch({.blocks = 2, .threads = 32, .seed = seed * 200 + i}, [&] {
      if (thread_index() != 0) return;
      if (block_index() == 0) {
        store_relaxed<Scope::kDevice>(&data, Words4{{1}});
        if (kFenced) fence<Scope::kDevice>();
        store_relaxed<Scope::kDevice>(&flag, Words4{{1}});
      } else {
        while (load_relaxed<Scope::kDevice>(&flag).word[0] == 0) pause();
        fence<Scope::kDevice>();
        late += load_relaxed<Scope::kDevice>(&data).word[0] == 0;
      }
    });
  }
  return late;
}

void fenced() { expect(late_words<true>() == 0); }
void unfenced() { expect(late_words<false>() > 0); }

void speed() {
  constexpr int kBlocks = 16, kThreads = 256, kTurns = 20;
  const auto run = [&] {
    launch({.blocks = kBlocks, .threads = kThreads, .seed = seed}, [] {
      for (int i = 0; i < kTurns; ++i) block_barrier();
    });
  };
  run();
  const auto start = std::chrono::steady_clock::now();
  run();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  std::printf("%d fibers, %.1f million switches a second\n", kBlocks * kThreads,
              kBlocks * kThreads * kTurns / seconds.count() * 1e-6);
}

struct Case {
  const char* name;
  void (*run)();
};

#define CASE(name) {#name, name}
const Case kCases[] = {
    CASE(threads),
    CASE(shuffles),
    CASE(float16_numbers),
    CASE(barriers),
    CASE(clusters),
    CASE(poison),
    CASE(seeds),
    CASE(errors),
    CASE(fenced),
    CASE(unfenced),
    CASE(speed),
    {"products_bfloat16", products<BFloat16>},
    {"products_float16", products<Float16>},
    {"products_tfloat32", products<TFloat32>},
    {"exchange_near", [] { exchange_words<Scope::kCluster>(4); }},
    {"exchange_far", [] { exchange_words<Scope::kDevice>(1); }},
    {"endless_spin", endless_spin<true>},
    {"endless_load", endless_spin<false>},
    CASE(skipped_barrier),
    CASE(divergent_barrier),
    CASE(divergent_lanes),
    CASE(shared_read_behind),
    CASE(shared_written_behind),
    CASE(shared_written_before),
    CASE(peer_ended),
    CASE(stack_overflow),
    CASE(misaligned_words),
    CASE(race_without_barrier),
    CASE(race_with_warp_barrier),
    CASE(race_with_shuffle),
    CASE(race_with_fence),
    CASE(no_race_with_warp_barrier),
    CASE(no_race_with_block_barrier),
    CASE(race_after_barrier),
    CASE(race_after_cluster_exchange),
};

}  // namespace
}  // namespace seqkernels::cuda

int main(int count, char** arguments) {
  using namespace seqkernels::cuda;
  if (count > 2) seed = std::strtoull(arguments[2], nullptr, 10);
  for (const Case& some : kCases) {
    if (count < 2 || std::strcmp(some.name, arguments[1]) != 0) continue;
    try {
      some.run();
      return 0;
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s\n", error.what());
      return 1;
    }
  }
  std::fprintf(stderr, "usage: selftest CASE [SEED]\n");
  return 2;
}
