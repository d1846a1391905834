"""What is measured: sizes, the kind of work, and how many floating-point operations it takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

GATES = {"lstm": 4, "gru": 3, "rnn": 1}

# (T, B, H), input_size = hidden_size throughout. The quick run takes the first five.
GRID = [
    *[(1, 1, 128), (100, 1, 128), (100, 8, 256), (100, 32, 256), (500, 16, 64)],
    *[(1, 1, 512), (100, 1, 512), (100, 32, 512), (50, 128, 512)],
]
ODD_HIDDEN = [130, 100, 300, 650]  # no multiple of any vector or tile; the quick run takes the first


@dataclass(frozen=True)
class Case:
    """One measurement.

    `work` is inference (forward without gradients), training (forward and backward, gradients of the input
    and of every parameter), step (one time step, the state carried by the caller, without gradients) or
    frozen step (likewise, with ours frozen by `seqkernels.freeze`).
    """

    work: str
    cell: str
    seq_len: int
    batch: int
    hidden: int
    variant: str = (
        ""  # "", "packed", "2 layers, bidirectional", "Cell": the single-step module, "bfloat16 weights"
    )
    dtype: str = "float32"
    quick: bool = False

    @property
    def layers(self) -> int:
        return 2 if self.variant.startswith("2 layers") else 1

    @property
    def directions(self) -> int:
        return 2 if self.variant.endswith("bidirectional") else 1

    @cached_property
    def lengths(self) -> list[int]:
        """Length of every sequence of the batch: T, or, packed, from T down to T / 4."""
        if self.variant != "packed":
            return [self.seq_len] * self.batch
        return [self.seq_len - self.seq_len * 3 * b // (4 * self.batch) for b in range(self.batch)]

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products, the pointwise part, O(H) of O(H^2), left out.

        A layer takes, for every sequence and time step, [G H, input] and [G H, H] matrix-vector products of 2
        operations an entry in each direction, G gates being 4 (LSTM), 3 (GRU) or 1 (RNN). Backward takes two
        products of each forward product's size (gradient of its operand, gradient of its weights), so
        training counts three times forward.
        """
        inputs = [self.hidden] + [self.directions * self.hidden] * (self.layers - 1)
        row = sum(2 * GATES[self.cell] * self.hidden * (n + self.hidden) * self.directions for n in inputs)
        return row * sum(self.lengths) * (3 if self.work == "training" else 1)

    @property
    def title(self) -> str:
        extra = [part for part in (self.variant, self.dtype if self.dtype != "float32" else "") if part]
        return f"{self.cell.upper()} T={self.seq_len} B={self.batch} H={self.hidden}{', '.join(['', *extra])}"

    @property
    def id(self) -> str:
        return f"{self.work}-{self.title}".replace(", ", "-").replace(" ", "-").replace("=", "").lower()


def layer_cases() -> list[Case]:
    """Forward and training of whole layers."""
    cases = []
    for work in ("inference", "training"):
        for cell in GATES:
            cases += [Case(work, cell, *size, quick=i < 5) for i, size in enumerate(GRID)]
            cases += [Case(work, cell, 50, 16, hidden, quick=i < 1) for i, hidden in enumerate(ODD_HIDDEN)]
            cases += [Case(work, cell, 100, 32, 256, "packed", quick=cell == "lstm")]
            cases += [Case(work, cell, 50, 16, 256, "2 layers, bidirectional", quick=cell == "gru")]
            cases += [Case(work, cell, 100, 32, 256, dtype="bfloat16", quick=cell == "lstm")]
            cases += [Case(work, cell, 100, 1, 512, dtype="bfloat16")]
    return cases


def step_cases() -> list[Case]:
    """Streaming: one step at a time, through the layer and through the Cell; and through the frozen layer."""
    cases = [
        Case("step", cell, 1, 1, hidden, variant, quick=hidden == 128)
        for cell in GATES
        for hidden in (128, 512)
        for variant in ("", "Cell")
    ]
    return cases + [
        Case("frozen step", cell, 1, 1, hidden, variant, quick=hidden == 128)
        for cell in GATES
        for hidden in (64, 128, 256, 512, 1024)
        for variant in ("", "bfloat16 weights")
    ]
