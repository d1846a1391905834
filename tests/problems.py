"""One layer's inputs, what its ops make of them, and what is right."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from seqkernels import reference
from seqkernels.cells import CELLS as REGISTRY

CELLS = tuple(REGISTRY)
NORMALIZED_CELLS = tuple(name for name in CELLS if REGISTRY[name].is_normalized)
PERSISTENT_CELLS = tuple(name for name in CELLS if name not in NORMALIZED_CELLS)  # on CUDA
FLOAT64 = {"dtype": torch.float64}
# What may be asked of a layer beside its cell; of zoneout, either masks or rates.
OPTIONS = ("lengths", "reset_mask", "recurrent_mask", "zoneout_h", "zoneout_c", "return_cell_states")
RATES = {"zoneout_h_rate": 0.25, "zoneout_c_rate": 0.4}
FINALS = {name: ("h_n", "c_n")[: cell.states] for name, cell in REGISTRY.items()}


@dataclass
class Problem:
    """The arguments of a forward op, and gradients of its results as those of its backward op.

    Tensors stand in dicts by the name of the op's argument; `weights` is a list there. `lengths` makes it a
    packed problem, with the longest sequence first.
    """

    cell: str
    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    directions: int = 1
    bias: bool = True
    lengths: Sequence[int] | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    seed: int = 0
    proj_size: int = 0  # of a cell with a projection; 0: two thirds of the hidden units
    norm_eps: float = 0.5  # of a normalised cell; so large that few units are no ill-conditioned problem
    asked: Collection[str] = ()  # of OPTIONS and RATES; what the cell does not have is left out

    x: Tensor = field(init=False)  # [T, B, I], packed [rows, I]
    states: list[Tensor] = field(init=False)  # h0 [D, B, P] or h0, c0 [D, B, H]
    weights: list[Tensor] = field(init=False)
    batch_sizes: Tensor | None = field(init=False, default=None)
    grads: list[Tensor | None] = field(init=False)  # of output, the final states and, if asked, cell states
    extra: dict[str, Any] = field(init=False, default_factory=dict)  # the options that are asked for

    def __post_init__(self) -> None:
        if self.hidden_size == 1 and "norm_c" in REGISTRY[self.cell].extra_weights:
            self.hidden_size = 2  # the norm of a single number is zero, whatever that is
        generator = torch.Generator().manual_seed(self.seed)

        def random(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return values.to(self.dtype).to(self.device)

        d, h, gates = self.directions, self.hidden_size, REGISTRY[self.cell].gates * self.hidden_size
        p = self.output_size
        x = random(self.seq_len, self.batch, self.input_size)
        if self.lengths is not None:
            packed = pack_padded_sequence(x, torch.tensor(self.lengths))
            x, self.batch_sizes = packed.data, packed.batch_sizes
        self.x = x
        self.states = [random(d, self.batch, n) for n in self.state_sizes]
        shapes = [(gates, self.input_size), (gates, p)] + [(gates,), (gates,)] * self.bias
        extra = {"w_hr": (p, h), "norm_c": (h,), "norm_c_bias": (h,)}
        shapes += [extra.get(name, (gates,)) for name in REGISTRY[self.cell].extra_weights]
        # torch.nn's own deviation, or less for an input that would saturate gates: a step's gain is below 1.
        fans = [max(h, self.input_size)] + [h] * (len(shapes) - 1)
        self.weights = [
            random(*shape) * max(3 * fan, 1) ** -0.5
            for _ in range(d)
            for shape, fan in zip(shapes, fans, strict=True)
        ]
        # Norms leave gates of the size of their factors, which must not saturate either.
        for i, name in enumerate(self.names[1 + len(self.states) :]):
            if name.startswith(("norm_ih", "norm_hh", "norm_c[")):
                self.weights[i] = self.weights[i] + 0.5
        self.grads = [random(*x.shape[:-1], d * p), *(random(d, self.batch, n) for n in self.state_sizes)]
        for name in self.asked:
            if name in REGISTRY[self.cell].options:
                self.extra[name] = self._option(name, generator)
        if "lengths" in self.extra:  # what is beyond them is not read
            beyond = torch.arange(self.seq_len).unsqueeze(1) >= self.extra["lengths"].cpu()
            self.x = self.x.masked_fill(beyond.unsqueeze(2).to(x.device), float("nan"))
        if "return_cell_states" in self.extra:
            self.grads.append(random(*x.shape[:-1], d * h))

    def _option(self, name: str, generator: torch.Generator) -> Any:
        rows, d = self.x.shape[:-1], self.directions

        def flags(*shape: int) -> Tensor:
            return (torch.rand(*shape, generator=generator) < 0.3).to(self.device)

        if name == "lengths":  # some 0, some all steps
            least, most = torch.tensor(-1), self.seq_len + 1
            lengths = torch.randint(int(least), most + 1, (self.batch,), generator=generator)
            return lengths.clamp(0, self.seq_len).to(self.device)
        if name == "recurrent_mask":
            mask = flags(d, self.batch, self.output_size)
            return torch.where(mask, 0, 1.25).to(self.dtype)
        if name in ("return_cell_states", "reverse"):
            return True
        if name in RATES:
            return RATES[name]
        widths = {"zoneout_h": self.output_size, "zoneout_c": self.hidden_size}
        return flags(*rows, *([d * widths[name]] if name in widths else []))

    @property
    def output_size(self) -> int:
        """Units of h."""
        if not REGISTRY[self.cell].is_projected:
            return self.hidden_size
        return self.proj_size or (2 * self.hidden_size + 2) // 3

    @property
    def state_sizes(self) -> list[int]:
        """Units of each state."""
        return [self.output_size, self.hidden_size][: len(FINALS[self.cell])]

    @property
    def inputs(self) -> list[Tensor]:
        """What has a gradient."""
        return [self.x, *self.states, *self.weights]

    @property
    def names(self) -> list[str]:
        """Of `inputs`."""
        own = ["w_ih", "w_hh", "b_ih", "b_hh"][: 4 if self.bias else 2]
        own += REGISTRY[self.cell].extra_weights
        weights = [f"{name}[{d}]" for d in range(self.directions) for name in own]
        return ["x", *["h0", "c0"][: len(self.states)], *weights]

    @property
    def finals(self) -> tuple[str, ...]:
        return FINALS[self.cell]

    @property
    def options(self) -> tuple[Any, ...]:
        """Of the ops, in their order."""
        cell = REGISTRY[self.cell]
        defaults = dict.fromkeys(cell.options) | dict.fromkeys(RATES, 0.0)
        defaults |= {"return_cell_states": False, "reverse": False}
        values = defaults | {"batch_sizes": self.batch_sizes, "norm_eps": self.norm_eps} | self.extra
        return tuple(values[name] for name in cell.options)

    @property
    def named_options(self) -> dict[str, Any]:
        """The same by name, as the reference takes them."""
        return dict(zip(REGISTRY[self.cell].options, self.options, strict=True))

    @property
    def n_results(self) -> int:
        """Results of the forward op that have gradients: cell states, too, though they may be empty."""
        return REGISTRY[self.cell].results

    def arguments(self, save_for_backward: bool | None = None) -> tuple:
        """Of the forward op."""
        save = () if save_for_backward is None else (save_for_backward,)
        return (self.x, *self.states, self.weights, *self.options, *save)

    def forward(self, save_for_backward: bool | None = None) -> tuple[Tensor, ...]:
        return getattr(torch.ops.seqkernels, self.cell)(*self.arguments(save_for_backward))

    def backward_arguments(
        self, forward: Sequence[Tensor], needs_grad: Sequence[bool] | None = None
    ) -> tuple:
        """Of the backward op, after `forward` gave those results."""
        needs_grad = [True] * len(self.inputs) if needs_grad is None else list(needs_grad)
        grads = [*self.grads, *[None] * (self.n_results - len(self.grads))]
        return (*grads, *self.arguments(), forward[0], *forward[self.n_results :], needs_grad)

    def backward(self, forward: Sequence[Tensor], needs_grad: Sequence[bool] | None = None) -> list[Tensor]:
        """The gradients, in the order of `inputs`."""
        op = getattr(torch.ops.seqkernels, f"_{self.cell}_backward")
        *found, weights = op(*self.backward_arguments(forward, needs_grad))
        return [*found, *weights]

    def run(self) -> dict[str, Tensor]:
        """All results of the two ops by name."""
        with torch.no_grad():
            forward = self.forward()
            grads = self.backward(forward)
        return self._named(forward, grads)

    def expected(self, kinks: Tensor | None = None) -> dict[str, Tensor]:
        """What is right: the reference, in float64 on the CPU.

        The derivative of relu jumps at 0, and rounding decides on which side an element lies: with `kinks`,
        the output of the op, the gradients are those of the side on which the op was.
        """
        inputs = [t.detach().cpu().double().requires_grad_() for t in self.inputs]
        n = 1 + len(self.states)
        x, states, weights = inputs[0], inputs[1:n], inputs[n:]
        with torch.enable_grad():
            options = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in self.named_options.items()}
            results = reference.layer(self.cell, x, states, weights, **options)
            derived = results
            if self.cell == "rnn_relu" and kinks is not None:
                step = self._relu_step(kinks.detach().cpu())
                derived = reference.layer(self.cell, x, states, weights, step=step, **options)
            pairs = [(r, g.cpu().double()) for r, g in zip(derived, self.grads, strict=True) if g is not None]
            pairs = [(r, g) for r, g in pairs if r.requires_grad]
            grads = torch.autograd.grad(
                [r for r, _ in pairs],
                inputs,
                [g for _, g in pairs],
                allow_unused=True,
                materialize_grads=True,
            )
        return self._named(results, grads)

    def check(self, tolerance_of: torch.dtype | str | None = None) -> None:
        """The ops' results, all of them, against what is right; by default to the tolerance of the dtype.

        The mean square of a few elements says little about what size they might have had, so a tiny problem
        is run with several sets of numbers, all of them taken together.
        """
        from .conftest import assert_close

        fewest = min(t.numel() for t in self.inputs if t.numel() > 0)
        problems = [self, *(replace(self, seed=self.seed + n) for n in range(1, -(-16 // fewest)))]
        actual = [problem.run() for problem in problems]
        for name, tensor in zip(self.names, self.inputs, strict=True):
            assert actual[0][f"grad_{name}"].dtype == tensor.dtype, name
        expected = [p.expected(kinks=a["output"]) for p, a in zip(problems, actual, strict=True)]
        assert_close(_stacked(actual), _stacked(expected), tolerance_of or self.dtype)

    def _named(self, forward: Sequence[Tensor], grads: Sequence[Tensor]) -> dict[str, Tensor]:
        names = ["output", *self.finals, "cell_states"][: len(self.grads)]
        results = zip(names, forward, strict=False)
        return dict(results) | {f"grad_{name}": g for name, g in zip(self.names, grads, strict=True)}

    def _relu_step(self, output: Tensor) -> Callable[..., tuple[Tensor]]:
        """reference.rnn_step with relu, open exactly where `output` is positive."""
        h = self.hidden_size

        def masks() -> Iterator[Tensor]:
            rows = (
                output.split(self.batch_sizes.tolist()) if self.batch_sizes is not None else output.unbind(0)
            )
            for d in range(self.directions):
                for row in reversed(rows) if d == 1 or "reverse" in self.extra else rows:
                    yield (row[:, d * h : (d + 1) * h] > 0).double()

        mask = masks()
        return lambda *args, **kwargs: reference.rnn_step(
            *args, activation=lambda v: v * next(mask), **kwargs
        )


def _stacked(results: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def lengths_of(seq_len: int, batch: int) -> list[int]:
    """Lengths of a packed batch, longest first; some alike, the shortest 1 if there is room."""
    return [max(1, seq_len - seq_len * b // batch) for b in range(batch)]


def tiny(cell: str, **options: Any) -> Problem:
    return Problem(cell, 3, 2, 3, 2, **{**FLOAT64, **options})


def of_inputs(problem: Problem) -> Callable[..., tuple[Tensor, ...]]:
    """The forward op as a function of `problem.inputs`, one by one."""
    n = 1 + len(problem.states)
    op = getattr(torch.ops.seqkernels, problem.cell)
    return lambda *t: op(*t[:n], list(t[n:]), *problem.options)[:n]


# ---------------------------------------------------------------- what is to leave no trace


def with_unread_states(problem: Problem) -> Problem:
    """NaN in initial states that no step reads: of sequences of length 0, and of those that start anew."""
    problem.extra["lengths"][0] = 0
    problem.extra["reset_mask"][0] = True
    unread = problem.extra["lengths"] == 0
    for state in problem.states:
        state[0] = float("nan")  # the forward direction, where the mask's first row is its first step
        state[:, unread] = float("nan")
    return problem


def with_infinite_gradients(problem: Problem) -> Problem:
    """Infinite gradients of h of a unit that keeps its own value in every step, so that they pass by all."""
    unit = slice(0, 1)
    problem.extra["zoneout_h"][..., unit] = True
    grad = problem.grads[0]
    assert grad is not None
    grad[-1, 0, unit] = float("inf")
    return problem


def assert_finite(results: dict[str, Any], but: Collection[str]) -> None:
    """Of all results but some."""
    for name, tensor in results.items():
        assert name in but or bool(tensor.isfinite().all()), name
