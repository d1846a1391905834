"""A character language model, trained twice: on torch.nn.LSTM and on seqkernels.FusedLSTM.

Both models start from the same parameters and see the same batches of the same text (by default Python's own
standard library), so their losses must agree; what differs is the time. The two take turns step by step, each
on a clock of its own, so that whatever else the machine does hits both.

    python -m examples.char_lm
    python -m examples.char_lm --cell gru --text moby-dick.txt --steps 1000 --max-seconds 600
"""

from __future__ import annotations

import argparse
import math
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from torch import Tensor, nn

import seqkernels

Recurrent = type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]
LAYERS: dict[str, tuple[Recurrent, Recurrent]] = {
    "lstm": (nn.LSTM, seqkernels.FusedLSTM),
    "gru": (nn.GRU, seqkernels.FusedGRU),
    "rnn": (nn.RNN, seqkernels.FusedRNN),
}
LEARNING_RATE = 1e-3
# Any two implementations round differently (torch.nn's own with and without oneDNN, too), and training
# amplifies it. At this rate, with a fresh state for every batch, that takes well over 100 steps; at 2e-3, or
# with an LSTM's state carried from batch to batch, about 80.
AGREE_STEPS, AGREE_DIGITS = 100, 4


class CharModel(nn.Module):
    """Embedding, a stack of recurrent layers, and one logit per character."""

    def __init__(self, recurrent: Recurrent, vocabulary: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, hidden)
        self.recurrent = recurrent(hidden, hidden, num_layers=layers)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, characters: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Characters [T, B] -> logits [T, B, vocabulary] and the state after the last of them."""
        output, state = self.recurrent(self.embedding(characters), state)
        return self.head(output), state


@dataclass
class Run:
    """One model in training: its optimizer, its own clock and its losses."""

    name: str
    model: CharModel
    losses: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)  # seconds in this model's steps, summed up to each step

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE)

    @property
    def seconds(self) -> float:
        return self.clock[-1] if self.clock else 0.0

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """One training step on [T, B] characters, with the characters that follow them as targets."""
        synchronize(inputs.device)
        start = time.perf_counter()
        logits, _ = self.model(inputs)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())
        synchronize(inputs.device)
        self.clock.append(self.seconds + time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def standard_library(characters: int = 2_000_000) -> str:
    """The first ASCII characters of the standard library's own modules, in alphabetical order."""
    parts: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(path.read_bytes().decode("ascii", errors="ignore"))
        if sum(map(len, parts)) >= characters:
            break
    return "".join(parts)[:characters]


def batches(data: Tensor, batch: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, targets), both [length, batch]: `batch` streams side by side, each read in order, over
    and over."""
    streams = data[: data.numel() // batch * batch].view(batch, -1).t().contiguous()
    while True:
        for start in range(0, streams.size(0) - length, length):
            yield streams[start : start + length], streams[start + 1 : start + length + 1]


def train(
    runs: list[Run], source: Iterator[tuple[Tensor, Tensor]], steps: int, max_seconds: float, console: Console
) -> None:
    """Let all runs take `steps` steps, by turns, or as many as fit into max_seconds."""
    deadline = time.perf_counter() + max_seconds
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:6.4f}"),
        TextColumn("{task.fields[rate]:>9,.0f} characters/s"),
    )
    with Progress(*columns, console=console) as progress:
        bars = {run.name: progress.add_task(run.name, total=steps, loss=math.nan, rate=0.0) for run in runs}
        for step in range(steps):
            inputs, targets = next(source)
            for run in runs if step % 2 == 0 else runs[::-1]:
                run.step(inputs, targets)
                rate = inputs.numel() * len(run.losses) / run.seconds
                progress.update(bars[run.name], completed=step + 1, loss=run.losses[-1], rate=rate)
            if time.perf_counter() > deadline:
                break
    if step + 1 < steps:
        console.print(f"stopped after {step + 1} of {steps} steps: --max-seconds {max_seconds:g} are over")


@torch.inference_mode()
def sample(
    model: CharModel, alphabet: str, prompt: str, characters: int, seed: int, device: torch.device
) -> str:
    """Text that continues the prompt, one character a call, the state carried from call to call."""
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    written = [alphabet.index(c) for c in prompt if c in alphabet] or [0]
    logits, state = model(torch.tensor(written, device=device)[:, None])
    for _ in range(characters):
        probabilities = (logits[-1, 0].float().cpu() / 0.7).softmax(0)
        written.append(int(torch.multinomial(probabilities, 1, generator=generator)))
        logits, state = model(torch.tensor([[written[-1]]], device=device), state)
    return "".join(alphabet[i] for i in written)


def plot(runs: list[Run], title: str, path: Path) -> None:
    """Loss over each model's own seconds, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for run, colour in zip(runs, ("tab:gray", "tab:orange"), strict=True):
        axes.plot(run.clock, run.losses, label=f"{run.name}, {run.seconds:.1f} s", color=colour)
    axes.set(title=title, xlabel="seconds in training steps", ylabel="loss (nats per character)")
    axes.legend()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def disagreements(runs: list[Run]) -> list[int]:
    """Steps, of the first AGREE_STEPS, whose losses differ by more than AGREE_DIGITS significant digits
    allow."""
    pairs = list(zip(*(run.losses for run in runs), strict=True))[:AGREE_STEPS]
    return [i for i, (a, b) in enumerate(pairs) if not math.isclose(a, b, rel_tol=10.0**-AGREE_DIGITS)]


def report(runs: list[Run], characters_per_step: int) -> Table:
    """Losses side by side at a few steps, then speed."""
    steps = len(runs[0].losses)
    table = Table(*[" ", *(run.name for run in runs)], title="the same model, twice")
    for step in sorted({0, 9, 24, 49, 99, 199, 499, 999, steps - 1}):
        if step < steps:
            table.add_row(f"loss at step {step + 1}", *(f"{run.losses[step]:.5f}" for run in runs))
    table.add_section()
    table.add_row("seconds in training steps", *(f"{run.seconds:.2f}" for run in runs))
    table.add_row(
        "characters per second", *(f"{characters_per_step * steps / run.seconds:,.0f}" for run in runs)
    )
    table.add_row("speed", *(f"{runs[0].seconds / run.seconds:.2f}x" for run in runs))
    return table


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, str]:
    """The options and the text; ends the program with one clear line where they do not fit together."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.char_lm", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--cell", choices=LAYERS, default="lstm")
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="UTF-8 text to learn (default: the standard library)"
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("out/char_lm.png"), metavar="PNG", help="default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--max-seconds", type=float, default=150.0, help="stop training then (default: %(default)s)"
    )
    sizes = {"steps": 200, "hidden": 256, "layers": 2, "batch": 32, "length": 100}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default: {default}")
    options = parser.parse_args(arguments)

    for name in sizes:
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(options, name)}")
    try:
        options.device = torch.device(options.device)
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        parser.error(f"--device {options.device}: {str(error).splitlines()[0]}")
    try:
        text = options.text.read_text(encoding="utf-8") if options.text else standard_library()
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--text {options.text}: {error}")
    needed = options.batch * (options.length + 1)
    if len(text) < needed:
        parser.error(
            f"the text has {len(text):,} characters;"
            f" --batch {options.batch} --length {options.length} need {needed:,}"
        )
    return options, text


def main(arguments: list[str] | None = None) -> int:
    options, text = parse(arguments)
    console = Console(highlight=False)
    alphabet = "".join(sorted(set(text)))
    index = {character: i for i, character in enumerate(alphabet)}
    data = torch.tensor([index[character] for character in text], device=options.device)

    runs = []
    for recurrent in LAYERS[options.cell]:
        torch.manual_seed(options.seed)
        model = CharModel(recurrent, len(alphabet), options.hidden, options.layers).to(options.device)
        package = "torch.nn" if recurrent.__module__.startswith("torch.") else "seqkernels"
        runs.append(Run(f"{package}.{recurrent.__name__}", model))
    baseline, fused = runs
    fused.model.load_state_dict(baseline.model.state_dict())

    shape = f"{options.layers} layers, H={options.hidden}, B={options.batch}, T={options.length}"
    console.print(
        f"{len(text):,} characters of {options.text or 'the Python standard library'},"
        f" {len(alphabet)} different ones; {shape}, {options.device}, {torch.get_num_threads()} threads",
        soft_wrap=True,
    )
    source = batches(data, options.batch, options.length)
    train(runs, source, options.steps, options.max_seconds, console)

    console.print(report(runs, options.batch * options.length))
    differing = disagreements(runs)
    checked = min(AGREE_STEPS, len(fused.losses))
    if differing:
        console.print(f"[red]losses differ in {AGREE_DIGITS} digits from step {differing[0] + 1} on")
    else:
        console.print(f"losses agree to {AGREE_DIGITS} digits in the first {checked} steps")
    console.rule(f"written by {fused.name}")
    prompt = "    def " if options.text is None else text[:8]
    console.print(sample(fused.model, alphabet, prompt, 400, options.seed, options.device), markup=False)
    console.rule()
    plot(runs, f"Character language model: {shape}", options.out)
    console.print(f"loss curves: {options.out}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
