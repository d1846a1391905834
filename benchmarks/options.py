"""What options of the recurrence cost, and what people run for them today.

    python -m benchmarks.options                            # some six minutes, to options.md
    python -m benchmarks.options --quick --output FILE.md   # half a minute
    python -m benchmarks.options --only zoneout             # some cases
    python -m benchmarks.options --device cuda              # on a GPU, float32 as TF32

The cost is the time of our layer with the option over that of the same layer without, interleaved. The peers
are a Python loop over torch.nn's Cell, with what the option does written between its steps; for `lengths`
packing, torch.nn and unpacking, and the same with our layer; for `weight_dropout` torch.nn with a W_hh that
is dropped outside; for `recompute` torch.utils.checkpoint around our layer; on a GPU for `reset_mask` the
Triton kernels of TorchRL where it is installed. torch.nn's layer without the option is no peer: it tells what
that loop leaves behind. What draws no random numbers is checked against its peers before it is timed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.plugin import get_cpu_info
from pytest_benchmark.utils import get_commit_info
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seqkernels
from benchmarks import report
from benchmarks.conftest import check_held, settings
from benchmarks.gpu_timing import ceilings, commit, machine
from benchmarks.implementations import HELD_BY, set_tf32
from benchmarks.timing import OURS, Call, InterleavedTiming, gpu_clock, quantiles, wall_clock

PLAIN, TORCH, LOOP = f"{OURS} without", "torch.nn without", "loop over a Cell"
FULL: dict[str, Any] = {"seconds": 3.0, "min_rounds": 7}  # per case
QUICK: dict[str, Any] = {"seconds": 0.4, "min_rounds": 3}
P = 0.25  # of everything random
IDLE = ("recurrent_dropout", "weight_dropout", "recompute")  # in inference
SIZES = ((100, 8, 64), (100, 32, 128), (100, 64, 256))  # T, B, H = I
FEW = ((500, 1, 64), (500, 4, 128))  # few and long sequences
ON_GPUS = ((128, 16, 256), (128, 64, 512), (128, 256, 128))
# rtol and atol between implementations, by device: on GPUs products are of TF32.
AGREE = {"cpu": (1e-3, 1e-4), "cuda": (2e-2, 2e-2)}


@dataclass(frozen=True)
class Case:
    option: str
    cell: str  # LSTM or GRU
    work: str  # inference or training
    seq_len: int
    batch: int
    hidden: int
    device: str = "cpu"

    @property
    def title(self) -> str:
        sizes = f"T={self.seq_len} B={self.batch} H={self.hidden}"
        return f"{self.option}, {self.work}, {self.cell} {sizes}"

    @property
    def quick(self) -> bool:
        first = SIZES[0] if self.device == "cpu" else ON_GPUS[0]
        return self.cell == "LSTM" and (self.seq_len, self.batch, self.hidden) == first


def all_cases(device: str = "cpu") -> list[Case]:
    cases = []
    for option in OPTIONS:
        for cell in ("LSTM",) if option == "return_cell_states" else ("LSTM", "GRU"):
            for work in ("inference", "training"):
                if work == "inference" and option in IDLE:
                    continue
                sizes = SIZES + FEW * (option == "reset_mask") if device == "cpu" else ON_GPUS
                cases += [Case(option, cell, work, *size, device) for size in sizes]
    return cases


class Loop(nn.Module):
    """torch.nn's Cell step by step, with an option written into the loop."""

    def __init__(self, layer: nn.RNNBase, option: str) -> None:
        super().__init__()
        device = layer.weight_hh_l0.device
        self.cell = getattr(nn, f"{layer.mode}Cell")(layer.input_size, layer.hidden_size, device=device)
        for name, parameter in layer.named_parameters():
            setattr(self.cell, name.removesuffix("_l0"), nn.Parameter(parameter.detach().clone()))
        self.option, self.has_c, self.hidden = option, layer.mode == "LSTM", layer.hidden_size

    def forward(self, x: Tensor, reset_mask: Tensor | None = None) -> tuple[Tensor, ...]:
        h = x.new_zeros(x.size(1), self.hidden)
        state: tuple[Tensor, ...] = (h, h) if self.has_c else (h,)
        mask = torch.dropout(torch.ones_like(h), P, True)
        outputs, cells = [], []
        for t, row in enumerate(x):
            if reset_mask is not None:
                keep = 1.0 - reset_mask[t].float().unsqueeze(1)
                state = tuple(s * keep for s in state)
            # The Cell has but one h: where it is masked, GRUs carry it on so.
            given = (state[0] * mask, *state[1:]) if self.option == "recurrent_dropout" else state
            new = self.cell(row, given if self.has_c else given[0])
            new = new if self.has_c else (new,)
            if self.option == "zoneout":
                new = tuple(self._zoned(old, made) for old, made in zip(state, new, strict=True))
            state = new
            outputs.append(state[0])
            cells.append(state[-1])
        results = [torch.stack(outputs)]
        if self.option == "return_cell_states":
            results.append(torch.stack(cells))
        return tuple(results)

    def _zoned(self, old: Tensor, new: Tensor) -> Tensor:
        if self.training:
            return torch.where(torch.rand_like(new) < P, old, new)
        return P * old + (1 - P) * new


class Packed(nn.Module):
    """Packing, a layer, and unpacking."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        return (pad_packed_sequence(self.layer(packed)[0], total_length=x.size(0))[0],)


class DroppedWeight(nn.Module):
    """torch.nn's layer with another W_hh in each call."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        weight: Any = self.layer.weight_hh_l0
        dropped = nn.functional.dropout(weight, P, self.training)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # weights are not contiguous in memory
            return (torch.func.functional_call(self.layer, {"weight_hh_l0": dropped}, (x,))[0],)


class Checkpointed(nn.Module):
    """A layer whose backward runs all of its forward once more."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return torch.utils.checkpoint.checkpoint(self.layer, x, use_reentrant=False)


class Triton(nn.Module):
    """TorchRL's kernels for a layer with resets, of batch first."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer, self.run = layer, getattr(_torchrl(), f"{layer.mode.lower()}_triton")

    def forward(self, x: Tensor, reset_mask: Tensor) -> tuple[Tensor, ...]:
        weights = self.layer._flat_weights
        x = x.transpose(0, 1)
        zeros = x.new_zeros(*x.shape[:-1], self.layer.hidden_size)  # what sequences start from at resets
        states = [zeros] * (2 if self.layer.mode == "LSTM" else 1)
        resets = reset_mask.t().contiguous()
        return (self.run(x, *states, *weights, resets, input_precision="tf32")[0].transpose(0, 1),)


def _torchrl() -> Any:
    """The module with TorchRL's Triton kernels; None where it is not installed, or without Triton."""
    try:
        module = importlib.import_module("torchrl.modules.tensordict_module._rnn_triton")
    except ImportError:
        return None
    return module if module._has_triton else None


@dataclass(frozen=True)
class Option:
    """How our layer has it, and who else does."""

    constructor: dict[str, Any]
    given: Callable[[Case], dict[str, Any]]  # for forward
    peers: Callable[[nn.RNNBase, nn.RNNBase], dict[str, nn.Module]]  # of ours and torch.nn's layer
    is_random: bool = False


def _nothing(case: Case) -> dict[str, Any]:
    return {}


def _resets(case: Case) -> dict[str, Any]:
    return {"reset_mask": (torch.rand(case.seq_len, case.batch) < 0.02).to(case.device)}


def _lengths(case: Case) -> dict[str, Any]:
    lengths = torch.randint(1, case.seq_len + 1, (case.batch,))
    lengths[0] = case.seq_len
    return {"lengths": lengths.to(case.device)}


def _loop(option: str) -> Callable[[nn.RNNBase, nn.RNNBase], dict[str, nn.Module]]:
    return lambda ours, theirs: {LOOP: Loop(theirs, option)}


def _resetting(ours: nn.RNNBase, theirs: nn.RNNBase) -> dict[str, nn.Module]:
    has_triton = theirs.weight_hh_l0.is_cuda and _torchrl() is not None
    return {LOOP: Loop(theirs, "reset_mask")} | ({"TorchRL, Triton": Triton(theirs)} if has_triton else {})


def _packed(ours: nn.RNNBase, theirs: nn.RNNBase) -> dict[str, nn.Module]:
    return {"torch.nn, packed": Packed(theirs), f"{OURS}, packed": Packed(ours)}


OPTIONS = {
    "reset_mask": Option({}, _resets, _resetting),
    "lengths": Option({}, _lengths, _packed),
    "return_cell_states": Option({"return_cell_states": True}, _nothing, _loop("return_cell_states")),
    "recurrent_dropout": Option({"recurrent_dropout": P}, _nothing, _loop("recurrent_dropout"), True),
    "zoneout": Option({"zoneout": P}, _nothing, _loop("zoneout"), True),
    "weight_dropout": Option(
        {"weight_dropout": P},
        _nothing,
        lambda ours, theirs: {"torch.nn, weight dropped outside": DroppedWeight(theirs)},
        True,
    ),
    "recompute": Option(
        {"recompute": True}, _nothing, lambda ours, theirs: {"checkpoint": Checkpointed(ours)}
    ),
}


def calls_of(case: Case) -> dict[str, Call]:
    """Whom to time, by name; raises where results differ."""
    torch.manual_seed(0)
    option, training = OPTIONS[case.option], case.work == "training"
    x = torch.randn(case.seq_len, case.batch, case.hidden, device=case.device, requires_grad=training)
    gradient = torch.randn(case.seq_len, case.batch, case.hidden, device=case.device)
    sizes, on = (case.hidden, case.hidden), {"device": case.device}
    theirs = getattr(nn, case.cell)(*sizes, **on)
    given = option.given(case)
    kind = getattr(seqkernels, f"Fused{case.cell}")
    ours, plain = kind(*sizes, **on, **option.constructor), kind(*sizes, **on)
    for layer in (ours, plain):
        layer.load_state_dict(theirs.state_dict())
    modules = {OURS: (ours, given), PLAIN: (plain, {}), TORCH: (theirs, {})}
    for name, peer in option.peers(plain, theirs).items():
        modules[name] = (peer, given)
    for module, _ in modules.values():
        module.train(training)

    def call(module: nn.Module, given: dict[str, Any]) -> Call:
        def run() -> Any:
            results = [t for t in module(x, **given) if isinstance(t, Tensor)]
            if training:  # h_n and c_n are not in the loss, which itself is not timed
                rows = [t for t in results if t.dim() == 3 and t.size(0) == case.seq_len]
                torch.autograd.backward(rows, [gradient] * len(rows))
            return results[0]

        return run

    calls: dict[str, Callable[[], Any]] = {name: call(*module) for name, module in modules.items()}
    if not option.is_random:
        expected = calls[OURS]()
        for name in modules.keys() - {OURS, PLAIN, TORCH}:
            found = calls[name]()
            assert torch.allclose(found, expected, *AGREE[case.device]), f"{name} has another result"
    return calls


def measure(case: Case, options: dict[str, Any]) -> report.Info:
    """What the report shows of a case."""
    with contextlib.nullcontext() if case.work == "training" else torch.no_grad():
        clock = wall_clock if case.device == "cpu" else gpu_clock
        timing = InterleavedTiming(calls_of(case), **options, clock=clock)
        for _ in range(timing.rounds):
            timing.round()
    cost = quantiles([1 / ratio for ratio in timing.ratio(PLAIN)])
    speedups = {n: quantiles(timing.ratio(n)) for n in timing.times if n not in (OURS, PLAIN)}
    return {
        "case": {
            "work": case.work,
            "title": case.title,
            "option": case.option,
            "dtype": "float32" if case.device == "cpu" else "tf32",
        },
        "seconds": {name: quantiles(times) for name, times in timing.times.items()},
        "cost": cost,
        "speedup": speedups,
        "rounds": timing.rounds,
    }


def progress_line(info: report.Info) -> str:
    ratios = "  ".join(f"{s['median']:.2f}x {name}" for name, s in info["speedup"].items())
    ours = info["seconds"][OURS]["median"] * 1e3
    return f"{info['case']['title']:58} {ours:9.3f} ms  cost {info['cost']['median']:.3f}  {ratios}"


def _span(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['q25']:.2f}, {ratio['q75']:.2f}]"


def markdown(infos: list[report.Info], machine_line: str, command: str) -> str:
    dtype = infos[0]["case"]["dtype"]
    parts = [
        f"# Options of the recurrence on {'CPUs' if dtype == 'float32' else 'a GPU'}",
        f"`{command}`",
        machine_line + ".",
        "Cost is our time with the option over that without, speedup a peer's time over ours: medians of all"
        f" rounds [quartiles], interleaved. {dtype}; a case is T steps of B sequences with I = H."
        f" Resets fall on 2 % of the rows, lengths are uniform from 1 to T, and probabilities are {P}."
        " Training is forward and backward, from gradients that are given: no loss is timed.",
    ]
    for option in OPTIONS:
        some = [info for info in infos if info["case"]["option"] == option]
        if not some:
            continue
        peers = report.peers_of(some)
        head = ["case", "ms", "cost", *(f"speedup over {peer}" for peer in peers)]
        rows = [
            [
                info["case"]["title"].partition(", ")[2],
                report.milliseconds(info["seconds"][OURS]["median"]),
                _span(info["cost"]),
                *(_span(info["speedup"][peer]) if peer in info["speedup"] else "" for peer in peers),
            ]
            for info in some
        ]
        means = [f"cost {report.geometric_mean(info['cost']['median'] for info in some):.2f}"]
        for peer in peers:
            speedups = [info["speedup"][peer]["median"] for info in some if peer in info["speedup"]]
            mean = report.geometric_mean(speedups)
            means.append(f"{mean:.1f} times as fast as {peer}")
        parts += [f"## {option}", "Geometric means: " + ", ".join(means) + ".", report.table([head, *rows])]
    return "\n\n".join(parts) + "\n"


def main(arguments: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.options", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="few cases and rounds")
    parser.add_argument("--output", type=Path, default=Path("options.md"), help="the Markdown file to write")
    parser.add_argument("--only", default="", help="cases whose title has this, such as zoneout")
    parser.add_argument("--threads", type=int, help="of everybody (default: torch's own number)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--until", type=float, help="when to begin no more cases, in seconds since the epoch")
    options = parser.parse_args(arguments)
    if HELD_BY:
        check_held(HELD_BY)
    if options.threads:
        torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    if load > 0.5 and options.device == "cpu":
        print(f"WARNING: the load average is {load:.1f}; measure on an idle machine")
    set_tf32(options.device == "cuda")
    cases = [
        case
        for case in all_cases(options.device)
        if options.only in case.title and (case.quick or not options.quick)
    ]
    if not cases:
        parser.error(f"--only: there is no case with {options.only!r} in its title")
    started = time.monotonic()
    infos: list[report.Info] = []
    pace = QUICK if options.quick or options.device == "cuda" else FULL
    for case in cases:
        if options.until is not None and time.time() > options.until:
            print(f"{len(cases) - len(infos)} cases left out: no time was left")
            break
        infos.append(measure(case, pace))
        print(progress_line(infos[-1]), flush=True)
    if not infos:
        return
    if options.device == "cuda":
        line = report.gpu_line(machine("cuda", options.quick) | ceilings("cuda"), commit())
    else:
        found = {"cpu": get_cpu_info(), **settings(load, options.quick)}
        line = report.machine_line(infos, found, get_commit_info())
    command = shlex.join(["python", "-m", "benchmarks.options", *arguments])
    options.output.write_text(markdown(infos, line, command), encoding="utf-8")
    print(f"{len(infos)} cases, {options.output}, after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
