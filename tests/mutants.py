"""Mistakes that the CPU kernels might have: `make mutants` says which tests find each of them.

A mutant replaces one expression of the source, the one between « and », by another; what stands around it
says where. None writes where the right kernels would not, so that the tests go on and all that find it can be
counted.
"""

from __future__ import annotations

from dataclasses import dataclass

OPS = ("tests/test_ops.py", "-k", "test_results or handed_on")
THREADS = ("tests/test_threads.py", "-k", "test_number_of_threads")
FASTPATH = ("tests/test_fastpath.py", "-k", "test_layers or test_cells")
FROZEN = ("tests/test_frozen.py", "-k", "test_sizes")

VEC, CELLS = "cpu/vec-inl.h", "cells/"
FORWARD, BACKWARD, PRODUCTS = "cpu/forward-inl.h", "cpu/backward-inl.h", "cpu/backward_products-inl.h"
SEQUENCE, FROZEN_LOOP = "cpu/sequence-inl.h", "cpu/frozen-inl.h"
GEMM, REGISTERS, TILES = "cpu/gemm/gemm-inl.h", "cpu/gemm/register_kernel-inl.h", "cpu/gemm/amx_driver-inl.h"
GEMV, FORMATS = "cpu/gemm/gemv-inl.h", "cpu/gemm/formats-inl.h"


# Where tests look for a mutant: dtypes by the instruction sets of the build.
EVERYWHERE = {
    "baseline": ("float32", "float64", "float16", "bfloat16"),
    "avx512": ("float32", "float64", "float16", "bfloat16"),
    "emulated_avx512bf16": ("bfloat16",),
    "emulated_amx": ("bfloat16",),
}


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str  # in csrc
    text: str  # stands there once, apart from the marks
    instead: str  # of what is between the marks
    breaks: str
    only: str = ""  # the dtypes and instruction sets that it concerns, where that is not all of them
    tests: tuple[str, ...] = OPS

    @property
    def where(self) -> set[tuple[str, str]]:
        """The dtypes and instruction sets with which it is to be found."""
        words = set(self.only.split())
        dtypes = {dtype for of_isa in EVERYWHERE.values() for dtype in of_isa}
        return {
            (dtype, isa)
            for isa, of_isa in EVERYWHERE.items()
            for dtype in of_isa
            if dtype in (words & dtypes or dtypes) and isa in (words - dtypes or EVERYWHERE)
        }


MUTANTS = [
    # ---- tails of vectors
    Mutant(
        "load_tail_float",
        VEC,
        "_mm512_maskz_loadu_ps(__mmask16(«mask»), p)",
        "mask & 0x3fffu",
        "Of 15 float32 numbers at the end of a row, AVX-512 reads 14.",
        only="float32 float16 bfloat16 avx512",
    ),
    Mutant(
        "load_tail_double",
        VEC,
        "_mm512_maskz_loadu_pd(__mmask8(«mask»), p)",
        "mask >> 1",
        "AVX-512 does not read the last float64 number of a row that ends within a vector.",
        only="float64 avx512",
    ),
    Mutant(
        "store_tail_double",
        VEC,
        "_mm512_mask_storeu_pd(p, __mmask8(«mask»)",
        "mask & 0x3fu",
        "Of 7 float64 numbers at the end of a row, AVX-512 writes 6.",
        only="float64 avx512",
    ),
    Mutant(
        "load_tail_16_bits",
        VEC,
        "_mm256_maskz_loadu_epi16(__mmask16(«mask»), p)",
        "mask & 0x3fffu",
        "Of 15 numbers of 16 bits at the end of a row, AVX-512 reads 14.",
        only="float16 bfloat16 avx512",
    ),
    Mutant(
        "store_tail_16_bits",
        VEC,
        "_mm256_mask_storeu_epi16(p, __mmask16(«mask»)",
        "mask & 0xffu",
        "Of more than 8 numbers of 16 bits at the end of a row, AVX-512 writes the first 8.",
        only="float16 bfloat16 avx512",
    ),
    Mutant(
        "load_tail_without_masks",
        VEC,
        "for (int64_t i = 0; i < «n»; ++i) lanes[i] = p[i];",
        "n - (n == Vec<Compute<S>>::kLanes - 1)",
        "Where one number is missing for a whole vector, the last one that is there is not read either.",
        only="baseline emulated_avx512bf16 emulated_amx",
    ),
    # ---- numbers of 16 bits
    Mutant(
        "bfloat16_cut",
        VEC,
        "const U32 rounded = (u + «0x7fffu» + ((u >> 16) & 1u)) >> 16;",
        "0u",
        "bfloat16 numbers are cut off instead of rounded.",
        only="bfloat16",
    ),
    Mutant(
        "float16_cut",
        VEC,
        "const U32 rounded = (a - ((127u - 15u) << 23) + «0xfffu»",
        "0u",
        "Without instructions for them, float16 numbers are cut off instead of rounded.",
        only="float16 baseline",
    ),
    Mutant(
        "float16_denormals",
        VEC,
        "- VecF(«0x1p-14f»)",
        "0x1p-15f",
        "Without instructions for them, zero and the smallest float16 numbers are read too large.",
        only="float16 baseline",
    ),
    Mutant(
        "rounded_differently_when_saved",
        FORWARD,
        "const V h = «round_to<S>(state.h.part[i])»;",
        "state.h.part[i]",
        "The next step reads h as it was before it was rounded to the storage type.",
        only="float16 bfloat16 baseline avx512",
    ),
    # ---- products
    Mutant(
        "product_remainder",
        REGISTERS,
        "for (; «k < k_packs»; ++k, b += stride) multiply_add",
        "k + 1 < k_packs",
        "A product with sums in several sets leaves out its last column, if the sets do not end with it.",
        only="baseline avx512 emulated_avx512bf16",
    ),
    Mutant(
        "product_fourth_set",
        REGISTERS,
        "total += «sum[s][r][v]»;",
        "s < 3 ? sum[s][r][v] : Raw{}",
        "The fourth set of sums of a product that is small in rows and columns is lost.",
    ),
    Mutant(
        "product_second_part",
        GEMM,
        "operand, b + «kColumns», stride, k_packs, tile.from(kColumns)",
        "int64_t(0)",
        "A register tile that takes its columns in two parts takes the first ones twice.",
        only="baseline avx512 emulated_avx512bf16",
    ),
    Mutant(
        "product_edge_adds_up",
        GEMM,
        "for (int64_t r = 0; «accumulates && r < rows»; ++r)",
        "false",
        "A product whose last panel is not full forgets what it is to be added to.",
    ),
    Mutant(
        "in_place_gates",
        BACKWARD,
        "EvenRows<E>{dgates.data + «side.dgates[g]» * block_, dgates.stride}",
        "g",
        "Where weights are read where they lie in backward, a GRU's gates are in the wrong order.",
        only="float32 float64",
    ),
    # ---- few rows
    Mutant(
        "few_rows_tail",
        GEMV,
        "if («k < k_size») add(k_size - k);",
        "false",
        "The product of few rows leaves out what is no whole vector along K.",
    ),
    Mutant(
        "few_rows_odd",
        GEMV,
        "for (; row + kRows <= «rows»; row += kRows)",
        "rows - (kRows == 1)",
        "The product of few rows leaves out the last one of an odd number.",
    ),
    Mutant(
        "few_rows_units",
        FORWARD,
        "const int64_t unit = (panel * kUnitVectors + «v / kGates») * kLanes, last",
        "0",
        "With few rows, a cell with one gate takes the first units of a panel for the others too.",
    ),
    Mutant(
        "few_rows_odd_bfloat16",
        FORMATS,
        "b = load(p + VecF::kLanes, «max(count - VecF::kLanes, 0)»)",
        "int64_t(0)",
        "With few rows and bfloat16 weights, inputs beyond one vector of the last two count as zero.",
        only="bfloat16 baseline avx512",
    ),
    Mutant(
        "pairs_odd",
        FORMATS,
        "__builtin_memcpy(&all, p, size_t(«max(count, 0)») * sizeof *p);",
        "max(count, 0) / 2 * 2",
        "Of an odd number of bfloat16 weights along K, the last one is left out.",
        only="bfloat16",
    ),
    # ---- tile registers and pairs of bfloat16
    Mutant(
        "tiles_second_half",
        TILES,
        "upper, a, b + «kColumns», stride",
        "int64_t(0)",
        "Of four tile registers' columns, the last two are multiplied with the weights of the first two.",
        only="emulated_amx",
    ),
    Mutant(
        "tiles_lower_rows",
        TILES,
        "a.data + h.value * «upper» * a.stride",
        "(upper - 1)",
        "Lower tile registers begin one row too early.",
        only="emulated_amx",
    ),
    Mutant(
        "tiles_odd_rows",
        PRODUCTS,
        "return r < «k_size» ? load(dgates",
        "k_size / 2 * 2",
        "The gradient of weights in tile registers leaves out the last of an odd number of rows.",
        only="emulated_amx",
    ),
    Mutant(
        "tiles_padding",
        PRODUCTS,
        "pack_zeros({«ceil_div(chunk.rows, F::kPack)», packs<F>(chunk.rows)}, side.panels()",
        "packs<F>(chunk.rows)",
        "What fills the last tile register along the rows of a chunk is not set to zero.",
        only="emulated_amx",
    ),
    Mutant(
        "pairs_padding",
        BACKWARD,
        "row < rows.end && «block_ > size_.hidden»; ++row",
        "false",
        "What fills the last pair of hidden units in the gradients of gates is not set to zero.",
        only="emulated_avx512bf16 emulated_amx",
    ),
    # ---- bias
    Mutant(
        "bias_hidden",
        FORWARD,
        "pack_bias(«weights.b_hh», buffers.b_hh);",
        "nullptr",
        "The bias of the hidden side is left out.",
    ),
    Mutant(
        "bias_tail",
        FORWARD,
        "bias ? load(row, «size_.hidden - unit») : V(0)",
        "size_.hidden / 2 * 2 - unit",
        "Of an odd number of units, the last one has no bias.",
    ),
    Mutant(
        "grad_bias_of_a_chunk",
        PRODUCTS,
        "Vectors sum = «chunk.begin == 0» ? Vectors(0) : read(grad);",
        "true",
        "The gradient of the bias is that of the last chunk of steps alone.",
    ),
    # ---- states
    Mutant(
        "state_left_out",
        FORWARD,
        "load(state_row(state, direction, b) + u, size_.hidden - u) : «V(0)»;",
        "V(1)",
        "A state that is not given is one instead of zero.",
        tests=FASTPATH,
    ),
    Mutant(
        "c0_is_h0",
        FORWARD,
        "store(buffers.c + b * size_.padded + u, «initial(p_.c0, slice.direction, b, u)»);",
        "initial(p_.h0, slice.direction, b, u)",
        "An LSTM's c begins with h0.",
    ),
    Mutant(
        "states_of_a_direction",
        FORWARD,
        "return reinterpret_cast<S*>(state) + («direction * shape_.batch» + b) * size_.hidden;",
        "0",
        "Both directions read and write the states of the first.",
    ),
    Mutant(
        "h0_in_backward",
        BACKWARD,
        "result.h_prev = starts ? «initial(p_.h0, d, b)» :",
        "output_row(t, b, d)",
        "Backward takes the output of a first step for what came before it.",
    ),
    Mutant(
        "c0_in_backward",
        BACKWARD,
        "prev.c = row.c0 ? «read_units(row.c0)» : read(row.c_prev);",
        "Vectors(0)",
        "Backward takes c0 for zero.",
    ),
    Mutant(
        "grad_h0",
        BACKWARD,
        "if (i + 1 < steps.count() || «p_.grad_h0») hidden_step",
        "nullptr",
        "The gradient of h0 lacks the product with the weights.",
    ),
    Mutant(
        "grad_c0",
        BACKWARD,
        "write(p_.grad_c0, «buffers.dc», b);",
        "buffers.dh",
        "The gradient of c0 is that of h0.",
    ),
    Mutant(
        "grad_of_the_last_state",
        BACKWARD,
        "start(buffers.dh, «p_.grad_h_n», b);",
        "nullptr",
        "The gradient of h_n is left out.",
    ),
    # ---- directions and packed sequences
    Mutant(
        "end_in_reverse",
        SEQUENCE,
        "int64_t ending(int64_t t) const { return «active(next(t))»; }",
        "active(t + 1)",
        "The reverse direction ends where the other one does.",
    ),
    Mutant(
        "end_of_short_sequences",
        FORWARD,
        "if («b >= step.ending») {",
        "step.ending == 0",
        "Only sequences that end with the last step have a final state.",
    ),
    Mutant(
        "start_of_short_sequences",
        PRODUCTS,
        "if (s == 1) source = «b >= steps.starting(t)» ? initial",
        "steps.starting(t) == 0",
        "For the gradient of W_hh, the reverse direction of short sequences does not start with h0.",
    ),
    Mutant(
        "grad_x_of_two_directions",
        BACKWARD,
        "i < «min(own.end * kLanes, n)»; i += kLanes)",
        "n / kLanes * kLanes",
        "The second direction's share of the gradient of x lacks its last numbers.",
    ),
    # ---- chunks of rows
    Mutant(
        "state_between_chunks",
        FORWARD,
        "buffers.h[«i % 2»],",
        "(i - chunk.begin) % 2",
        "A chunk that begins with an odd step reads h of the step before the last.",
    ),
    Mutant(
        "grad_x_of_a_chunk",
        PRODUCTS,
        "const int64_t out = («chunk.first_row» + rows.begin) * size_.inputs",
        "0",
        "All chunks write the gradient of x of the first rows.",
    ),
    Mutant(
        "grad_weights_of_a_chunk",
        PRODUCTS,
        "const bool starts = «chunk.begin == 0» && k0 == 0;",
        "true",
        "The gradients of weights are those of the last chunk alone.",
    ),
    Mutant(
        "grad_weights_parts",
        PRODUCTS,
        "chunk.begin == 0 && «k0 == 0»;",
        "true",
        "Where a chunk is taken in several parts, the gradients of weights are those of the last part.",
    ),
    Mutant(
        "grad_weights_operand",
        PRODUCTS,
        "packs<F>(chunk.rows)) + «k0 / F::kPack» * panels.width(panel);",
        "int64_t(0)",
        "All parts of a chunk are multiplied with the inputs of the first.",
    ),
    Mutant(
        "grad_weights_narrow_parts",
        BACKWARD,
        "bool adds_up() const { return rows_ == 0 || rows_ > «min(chunk_rows_, kMaxK)»; }",
        "chunk_rows_",
        "With 16 bits, a chunk that is taken in several parts leaves the last one's gradients of weights.",
        only="float16 bfloat16",
    ),
    # ---- gradients of 16 bits
    Mutant(
        "narrow_tail",
        BACKWARD,
        "const Range own = share(«ceil_div(n, kLanes)», slice.rank, slice.size);",
        "n / kLanes",
        "Gradients that were summed in float32 lack their last numbers.",
        only="float16 bfloat16",
    ),
    Mutant(
        "narrow_odd_columns",
        PRODUCTS,
        "load(tile + r * kWidth + v * kLanes), «columns - v * kLanes»);",
        "columns / 2 * 2 - v * kLanes",
        "Gradients of 16 bits lack the last one of an odd number of columns.",
        only="float16 bfloat16",
    ),
    # ---- cells
    Mutant(
        "lstm_gates",
        CELLS + "lstm.h",
        "saved[0] = «i», saved[1] = f,",
        "f",
        "An LSTM saves the forget gate for the input gate.",
    ),
    Mutant(
        "gru_gates",
        CELLS + "gru.h",
        "dgates[1] = r * (one - r) * «hn» * dn;",
        "n",
        "In the gradient of a GRU's reset gate, n stands for its hidden side.",
    ),
    Mutant(
        "rnn_gradient",
        CELLS + "rnn.h",
        "return dy * (V(1) - «y * y»);",
        "y",
        "The derivative of tanh lacks a square.",
    ),
    # ---- threads
    Mutant(
        "shares_of_threads",
        PRODUCTS,
        "for_items(share(kGates * blocks, slice.rank, «slice.size»), blocks",
        "slice.size + (slice.size > 1)",
        "Of several threads, none makes the last of the bias's gradients.",
        tests=THREADS,
    ),
    Mutant(
        "rows_of_threads",
        FORWARD,
        "h_stride_ * «slice.split.batch_parts»};",
        "1",
        "A thread that has every second sequence multiplies h of its neighbours.",
        tests=THREADS,
    ),
    Mutant(
        "gradients_of_threads",
        BACKWARD,
        "const int64_t b = slice.sequence(rows.begin), stride = «slice.split.batch_parts»;",
        "1",
        "A thread that has every second sequence adds to the gradients of its neighbours.",
        tests=THREADS,
    ),
    # ---- frozen modules
    Mutant(
        "frozen_remainder",
        FROZEN_LOOP,
        "for (; «k < k_size»; k += kPack, packs += kPackStride)",
        "false",
        "A frozen module's product leaves out what is less than a turn of its sums.",
        only="float32 bfloat16",
        tests=FROZEN,
    ),
    Mutant(
        "frozen_cell_state",
        FROZEN_LOOP,
        "const float* const c_prev = «i == 0 ? p_.c0 : p_.c_n»;",
        "p_.c0",
        "Every step of a frozen LSTM begins with c0.",
        only="float32 bfloat16",
        tests=FROZEN,
    ),
]
