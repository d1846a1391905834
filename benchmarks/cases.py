"""What is measured: sizes, the kind of work, and how many floating-point operations it takes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
PACKED_WIDE = "packed, lengths 1 to T"  # "packed" alone has lengths T / 4 to T

# (T, B, H), input_size = hidden_size. The quick run takes the first five.
GRID = [
    *[(1, 1, 128), (100, 1, 128), (100, 8, 256), (100, 32, 256), (500, 16, 64)],
    *[
        (1, 1, 512),
        (100, 1, 512),
        (100, 32, 512),
        (50, 128, 512),
        (1000, 4, 32),
        (20, 256, 256),
        (50, 8, 1024),
    ],
]
OTHER_INPUTS = [(64, 512), (512, 64)]  # (I, H)
# Of the cell forms that benchmarks/cell_forms.py measures; the quick run takes the first.
FORM_GRID = [
    *[(100, 8, 256), (1, 1, 128), (1, 1, 512), (100, 1, 128), (100, 1, 512)],
    *[(100, 32, 256), (100, 32, 512), (50, 128, 512), (500, 16, 64), (50, 8, 1024)],
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
    # "", "packed", PACKED_WIDE, "bidirectional", "2 layers" or both, "Cell": the single-step module,
    # or "bfloat16 weights", of a frozen one
    variant: str = ""
    dtype: str = "float32"  # or "tf32": float32 whose products may be done in TF32
    quick: bool = False
    inputs: int = 0  # input_size; 0: that of hidden
    reset_after: bool = True  # False: a GRU whose reset gate comes before the product
    proj_size: int = 0  # of an LSTM; 0: no projection
    norm: str | None = None  # "layer", or of an LSTM "layer-joint": layer normalisation inside the recurrence

    @property
    def beyond_torch(self) -> dict[str, Any]:
        """The options of our layer that torch.nn's does not have."""
        options = {} if self.reset_after else {"reset_after": False}
        return options | ({"norm": self.norm} if self.norm else {})

    @property
    def form(self) -> str:
        """These in words; "" where torch.nn has the cell."""
        return ", ".join(f"{name}={value}" for name, value in self.beyond_torch.items())

    @property
    def input_size(self) -> int:
        return self.inputs or self.hidden

    @property
    def output_size(self) -> int:
        """Of one direction."""
        return self.proj_size or self.hidden

    @property
    def packed(self) -> bool:
        return self.variant.startswith("packed")

    @property
    def layers(self) -> int:
        return 2 if self.variant.startswith("2 layers") else 1

    @property
    def directions(self) -> int:
        return 2 if self.variant.endswith("bidirectional") else 1

    @cached_property
    def lengths(self) -> list[int]:
        """Length of every sequence of the batch: T, or, packed, evenly from T down."""
        if not self.packed:
            return [self.seq_len] * self.batch
        if self.variant == PACKED_WIDE:
            return [max(1, self.seq_len - self.seq_len * b // self.batch) for b in range(self.batch)]
        return [self.seq_len - self.seq_len * 3 * b // (4 * self.batch) for b in range(self.batch)]

    @property
    def flops(self) -> int:
        """Multiplications and additions of the matrix products; the pointwise part and norms, O(H) of O(H^2),
        are left out.

        A layer takes, for every sequence and time step, [G H, input] and [G H, H] matrix-vector products of 2
        operations an entry in each direction, G gates being 4 (LSTM), 3 (GRU) or 1 (RNN). A projection makes
        the second [G H, P] and adds one of [P, H]. Backward takes two products of each forward product's size
        (gradient of its operand, gradient of its weights), so training counts three times forward.
        """
        inputs = [self.input_size] + [self.directions * self.output_size] * (self.layers - 1)
        gates = sum(2 * GATES[self.cell] * self.hidden * (n + self.output_size) for n in inputs)
        row = self.directions * (gates + self.layers * 2 * self.proj_size * self.hidden)
        return row * sum(self.lengths) * (3 if self.work == "training" else 1)

    @property
    def title(self) -> str:
        parts = (self.variant, self.form, self.dtype if self.dtype != "float32" else "")
        inputs, proj = (f" {k}={n}" if n else "" for k, n in (("I", self.inputs), ("P", self.proj_size)))
        sizes = f"T={self.seq_len} B={self.batch}{inputs} H={self.hidden}{proj}"
        return f"{self.cell.upper()} {sizes}{', '.join(['', *filter(None, parts)])}"

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
            cases += [Case(work, cell, 50, 16, hidden, inputs=inputs) for inputs, hidden in OTHER_INPUTS]
            cases += [Case(work, cell, 100, 32, 256, PACKED_WIDE, quick=cell == "lstm")]
            cases += [Case(work, cell, 50, 16, 256, "2 layers, bidirectional", quick=cell == "gru")]
            cases += [Case(work, cell, 100, 32, 256, dtype="bfloat16", quick=cell == "lstm")]
            cases += [Case(work, cell, 100, 1, 512, dtype="bfloat16")]
    return cases


def form_cases() -> list[Case]:
    """GRUs that reset before the product, LSTMs with a projection to a quarter and to half of H, and those
    that normalise."""
    cases = []
    for work in ("inference", "training"):
        for i, size in enumerate(FORM_GRID):
            cases += [Case(work, "gru", *size, quick=i < 1, reset_after=False)]
            cases += [
                Case(work, cell, *size, quick=i < 1, norm=norm)
                for cell, norm in (("gru", "layer"), ("lstm", "layer"), ("lstm", "layer-joint"))
            ]
            cases += [
                Case(work, "lstm", *size, "", dtype, quick=i < 1 and share == 4, proj_size=size[2] // share)
                for share in (4, 2)
                for dtype in ("float32", "bfloat16")
            ]
    return sorted(cases, key=lambda case: (case.cell, case.form))


def step_cases() -> list[Case]:
    """Streaming: one step at a time, through the layer and through the Cell; and through the frozen layer."""
    cases = [
        Case("step", cell, 1, 1, hidden, variant, quick=hidden == 128)
        for cell in GATES
        for hidden in (64, 128, 256, 512, 1024)
        for variant in ("", "Cell")
    ]
    return cases + [
        Case("frozen step", cell, 1, 1, hidden, variant, quick=hidden == 128)
        for cell in GATES
        for hidden in (64, 128, 256, 512, 1024)
        for variant in ("", "bfloat16 weights")
    ]


def scaling_cases() -> list[Case]:
    """Training of an LSTM with ever more steps, and with ever more sequences."""
    steps = [Case("training", "lstm", steps, 8, 128, "more steps") for steps in (10, 30, 100, 300, 1000)]
    return steps + [
        Case("training", "lstm", 50, batch, 128, "more sequences") for batch in (1, 4, 16, 64, 256)
    ]


def neighbour_cases() -> list[Case]:
    """What is measured once more while other processes want the cores."""
    works = ("inference", "training")
    return [
        Case(work, cell, 100, 8, 256, quick=(work, cell) == ("training", "lstm"))
        for work in works
        for cell in ("lstm", "gru")
    ]


def gpu_cases() -> list[Case]:
    """What is measured on a GPU, inference and training of each, what matters most first.

    One thing at a time is varied around LSTM T=256 B=16 H=512 or 768 in float16, since all combinations would
    be thousands. The quick run takes those at the beginning.
    """
    hiddens = (128, 130, 160, 192, 193, 256, 512, 768, 1024, 2048)
    dtypes = ("float16", "bfloat16", "tf32", "float32")
    rows: list[tuple[str, int, int, int, str, str]] = [  # cell, T, B, H, variant, dtype
        ("lstm", 1024, 16, 768, "", "float16"),
        *(("lstm", 256, 16, 512, "", dtype) for dtype in dtypes),
        *(("gru", 256, 16, 512, "", dtype) for dtype in dtypes[:3]),
        *(("lstm", 256, 16, hidden, "", "float16") for hidden in (128, 256, 1024)),
        ("lstm", 1024, 16, 768, "", "bfloat16"),
        ("lstm", 1024, 16, 768, "", "tf32"),
        ("gru", 1024, 16, 768, "", "float16"),
        ("lstm", 1024, 32, 512, PACKED_WIDE, "float16"),
        ("lstm", 256, 16, 512, "bidirectional", "float16"),
        ("lstm", 256, 16, 512, "2 layers", "float16"),
        ("rnn", 256, 16, 512, "", "float16"),
        *(("lstm", 256, 16, hidden, "", "bfloat16") for hidden in hiddens),
        *(("lstm", 256, 16, hidden, "", "float16") for hidden in hiddens),
        *(("gru", 256, 16, hidden, "", "bfloat16") for hidden in hiddens),
        *(("lstm", 256, batch, 768, "", "float16") for batch in (1, 8, 32, 64, 128)),
        *(("lstm", seq_len, 16, 768, "", "float16") for seq_len in (1, 64, 256)),
        *(("lstm", seq_len, 1, 256, "", "float16") for seq_len in (1, 64, 1024)),
        *(("lstm", 256, 16, hidden, "", "tf32") for hidden in hiddens),
        *(("gru", 256, 16, hidden, "", "tf32") for hidden in hiddens),
        *(
            (cell, 256, 32, 256, variant, dtype)
            for variant in ("bidirectional", "2 layers", "2 layers, bidirectional", PACKED_WIDE)
            for cell in ("lstm", "gru")
            for dtype in ("bfloat16", "tf32")
        ),
        *(("lstm", 256, batch, 256, "", "tf32") for batch in (1, 8, 64, 128)),
        *(("lstm", 256, batch, 1024, "", "bfloat16") for batch in (1, 8, 64, 128)),
        *(("gru", 256, batch, 768, "", "float16") for batch in (1, 8, 64, 128)),
        *((cell, 256, 16, hidden, "", "float32") for cell in ("lstm", "gru") for hidden in hiddens),
        *(("rnn", 256, 16, hidden, "", dtype) for dtype in ("bfloat16", "tf32") for hidden in hiddens),
        *(("rnn", 1024, batch, 512, "", "float16") for batch in (1, 64)),
        *((cell, 1024, 64, 2048, "", "bfloat16") for cell in GATES),
    ]
    return [
        Case(work, *row, quick=n < 12)
        for n, row in enumerate(dict.fromkeys(rows))
        for work in ("inference", "training")
    ]
