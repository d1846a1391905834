// Kernels with one fault each, and for ThreadSanitizer, the same without it.
#pragma once
#include <cstdlib>

#include "selftest.h"

namespace seqkernels::cuda {
namespace {

const Launch kTwoBlocks = {.blocks = 2, .threads = 64, .cluster = 2, .shared_bytes = 100};

Launch two_blocks() {
  Launch launch = kTwoBlocks;
  launch.seed = seed;
  return launch;
}

void skipped_barrier() {
  launch(two_blocks(), [] {
    if (block_index() == 1 && thread_index() == 40) return;
    block_barrier();
  });
}

void divergent_barrier() {
  launch(two_blocks(), [] {
    if (thread_index() < 32)
      block_barrier();
    else
      block_barrier();
  });
}

void divergent_lanes() {
  launch(two_blocks(), [] { lane_index() == 5 ? warp_barrier() : void(shuffle_xor(1u, 1)); });
}

template <bool kPauses>
void endless_spin() {
  alignas(16) Words4 word{};
  launch(two_blocks(), [&] {
    if (block_index() == 1) return;
    if (thread_index() > 0) return block_barrier();
    while (load_relaxed<Scope::kDevice>(&word).word[0] == 0)
      if (kPauses) pause();
  });
}

void shared_read_behind() {
  launch(two_blocks(), [] {
    [[maybe_unused]] static volatile char sink;
    if (thread_index() == 3) sink = shared_memory()[112];
  });
}

void shared_written_behind() {
  launch(two_blocks(), [] {
    if (thread_index() == 3) shared_memory()[100] = 1;
  });
}

void shared_written_before() {
  launch(two_blocks(), [] {
    if (thread_index() == 3) shared_memory()[-1] = 1;
  });
}

void peer_ended() {
  launch(two_blocks(), [] {
    cluster_barrier();
    if (block_index() == 0 && thread_index() == 0) {
      for (int i = 0; i < 100; ++i) pause();
      peer_of(shared<uint32_t>(), 1)[0] = 1;
    }
  });
}

[[gnu::noinline]] int overflow(int depth) {
  volatile char frame[1024];
  frame[depth % 1024] = 1;
  return depth < 0 ? 0 : overflow(depth + 1) + frame[0];
}

void stack_overflow() {
  launch(two_blocks(), [] {
    if (thread_index() == 3) expect(overflow(0) >= 0);
  });
}

void misaligned_words() {
  alignas(16) static uint32_t words[8];
  launch(two_blocks(), [] { load_relaxed<Scope::kDevice>(reinterpret_cast<const Words4*>(words + 1)); });
}

// What a missing barrier lets race, for ThreadSanitizer. The writer may be in the reader's warp or in another one.
template <class Order>
void handed_over(int reader, Order order) {
  launch(two_blocks(), [&] {
    int* value = shared<int>();
    if (thread_index() == 0) *value = 7;
    order();
    if (thread_index() == reader && *value == 8) std::abort();
  });
}

void race_without_barrier() {
  handed_over(40, [] {});
}
void race_with_warp_barrier() {
  handed_over(40, [] { warp_barrier(); });
}
void race_with_shuffle() {
  handed_over(20, [] { shuffle_xor(1u, 1); });
}
void race_with_fence() {
  handed_over(20, [] { fence<Scope::kDevice>(); });
}
void no_race_with_warp_barrier() {
  handed_over(20, [] { warp_barrier(); });
}
void no_race_with_block_barrier() {
  handed_over(40, [] { block_barrier(); });
}

// Who is late to leave the first barrier must not be ordered after what others did before the second.
void race_after_barrier() {
  launch(two_blocks(), [] {
    block_barrier();
    if (thread_index() == 0) shared<int>()[0] = 7;
    if (thread_index() == 40 && shared<int>()[0] == 8) std::abort();
    block_barrier();
  });
}

void race_after_cluster_exchange() {
  launch(two_blocks(), [] {
    cluster_barrier();
    if (thread_index() == 0) peer_of(shared<uint32_t>(), 1 - cluster_rank())[0] = 7;
    block_barrier();
    if (thread_index() == 1 && shared<uint32_t>()[0] == 8) std::abort();
    cluster_barrier();
  });
}

}  // namespace
}  // namespace seqkernels::cuda
