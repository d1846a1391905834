"""A character language model, trained twice: on torch.nn.GRU and on seqkernels.FusedGRU.

Both models start from the same parameters and see the same batches of the same text (by default Python's own
standard library), so their losses must agree; what differs is the time. They take turns step by step, each
on a clock of its own, so that whatever else the machine does hits both. Then the fused one learns on for the
rest of the time, and writes.

    python -m examples.char_lm
    python -m examples.char_lm --cell lstm --text moby-dick.txt --seconds 600
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from torch import Tensor, nn

import seqkernels

from .common import books, cli, machine, plot

Recurrent = type[nn.LSTM] | type[nn.GRU] | type[nn.RNN]
LAYERS: dict[str, tuple[Recurrent, Recurrent]] = {
    "lstm": (nn.LSTM, seqkernels.FusedLSTM),
    "gru": (nn.GRU, seqkernels.FusedGRU),
    "rnn": (nn.RNN, seqkernels.FusedRNN),
}
# Any two implementations round differently (torch.nn's own with and without oneDNN, too), and training
# amplifies it. At the first rate, with a fresh state for every batch, that takes well over 100 steps; at
# twice the rate, or with an LSTM's state carried from batch to batch, about 80.
RATE, LATER_RATE = 1e-3, 4e-3
AGREE_STEPS, AGREE_DIGITS = 100, 4
BUSY = 0.15  # half of all steps take the median time give or take so much of it, or something disturbs them
PICTURES = (".png", ".svg", ".pdf")
TEMPERATURE = 0.5  # of the text that is written: below 1, likely characters are preferred


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
    """One model in training: its optimizer, its losses, and the seconds that each of its steps took."""

    name: str
    model: CharModel
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)

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
        self.seconds.append(time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def batches(data: Tensor, batch: int, length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (inputs, targets), both [length, batch]: `batch` streams side by side, each read in order, over
    and over."""
    streams = data[: data.numel() // batch * batch].view(batch, -1).t().contiguous()
    while True:
        for start in range(0, streams.size(0) - length, length):
            yield streams[start : start + length], streams[start + 1 : start + length + 1]


def compare(
    runs: list[Run], source: Iterator[tuple[Tensor, Tensor]], steps: int, seconds: float, console: Console
) -> None:
    """Let all runs take `steps` steps, by turns, or as many as fit into the time."""
    deadline = time.perf_counter() + seconds
    with _progress(console) as progress:
        bars = {run.name: progress.add_task(run.name, total=steps, loss=math.nan, rate=0.0) for run in runs}
        for step in range(steps):
            inputs, targets = next(source)
            for run in runs if step % 2 == 0 else runs[::-1]:
                run.step(inputs, targets)
                rate = inputs.numel() / statistics.median(run.seconds)
                progress.update(bars[run.name], completed=step + 1, loss=run.losses[-1], rate=rate)
            if time.perf_counter() > deadline:
                console.print(f"{step + 1} steps are compared: so many take half of --seconds here")
                break


def learn_on(run: Run, source: Iterator[tuple[Tensor, Tensor]], seconds: float, console: Console) -> None:
    """Train one model for some time, at a rate that falls to zero."""
    start = time.perf_counter()
    with _progress(console) as progress:
        bar = progress.add_task(f"{run.name} learns on", total=seconds, loss=math.nan, rate=0.0)
        while (spent := time.perf_counter() - start) < seconds:
            for group in run.optimizer.param_groups:
                group["lr"] = LATER_RATE * (1 - spent / seconds)
            inputs, targets = next(source)
            run.step(inputs, targets)
            rate = inputs.numel() / run.seconds[-1]
            progress.update(bar, completed=spent, loss=run.losses[-1], rate=rate)
        progress.update(bar, completed=seconds)


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:6.4f}"),
        TextColumn("{task.fields[rate]:>9,.0f} characters/s"),
    )
    return Progress(*columns, console=console)


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
        probabilities = (logits[-1, 0].float().cpu() / TEMPERATURE).softmax(0)
        written.append(int(torch.multinomial(probabilities, 1, generator=generator)))
        logits, state = model(torch.tensor([[written[-1]]], device=device), state)
    return "".join(alphabet[i] for i in written)


def draw(runs: list[Run], compared: int, title: str, path: Path) -> None:
    """Left, loss by step, equal for both; right, by each one's own seconds, and then the fused one alone."""
    figure, (left, right) = plot.new(1, 2, width=12, height=4.2)
    for run, colour, style in zip(runs, ("tab:gray", "tab:orange"), ("-", "--"), strict=True):
        steps, clock = range(1, compared + 1), list(accumulate(run.seconds))
        left.plot(steps, run.losses[:compared], style, label=run.name, color=colour, linewidth=2)
        label = f"{run.name}, {clock[compared - 1]:.1f} s for {compared} steps"
        right.plot(clock[:compared], run.losses[:compared], label=label, color=colour)
        if len(clock) > compared:
            after = plot.smooth(run.losses[compared:], 20)
            right.plot(clock[compared:], after, ":", label=f"{run.name} learns on", color=colour)
    left.set(title="The same losses", xlabel="step", ylabel="loss (nats per character)")
    right.set(title="in another time", xlabel="seconds in training steps")
    left.legend()
    right.legend()
    figure.suptitle(title)
    plot.save(figure, path)


def speedup(runs: list[Run], compared: int) -> tuple[float, float, float]:
    """How many times as long a step takes the first as the second: median and quartiles over pairs of steps
    that took turns."""
    pairs = zip(*(run.seconds[:compared] for run in runs), strict=True)
    return _quartiles([first / second for first, second in pairs])


def disturbed(runs: list[Run], compared: int) -> float:
    """By how much of the median the steps' times differ: half the distance of their quartiles, the larger one
    of the two runs'."""
    spreads = []
    for run in runs:
        median, low, high = _quartiles(run.seconds[:compared])
        spreads.append((high - low) / 2 / median)
    return max(spreads)


def disturbances(spread: float, in_the_way: bool, cores: float) -> str:
    """What speaks against a measured speed; empty if nothing does.

    Args:
        spread: By how much of the median the steps' times differ.
        in_the_way: Whether other programs needed the cores of this one.
        cores: How many they kept busy.
    """
    found = [f"other programs keep {cores:.1f} cores busy"] if in_the_way else []
    found += (
        [f"half of the steps differ from the median time by {spread:.0%} or more"] if spread > BUSY else []
    )
    return "; ".join(found)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return median, low, high


def disagreements(runs: list[Run]) -> list[int]:
    """Steps, of the first AGREE_STEPS, whose losses differ by more than AGREE_DIGITS significant digits
    allow."""
    pairs = list(zip(*(run.losses for run in runs), strict=False))[:AGREE_STEPS]
    return [i for i, (a, b) in enumerate(pairs) if not math.isclose(a, b, rel_tol=10.0**-AGREE_DIGITS)]


def report(runs: list[Run], compared: int, characters_per_step: int) -> Table:
    """Losses side by side at a few steps, then speed."""
    table = Table(*[" ", *(run.name for run in runs)], title="the same model, twice")
    for step in sorted({0, 9, 24, 49, 99, 199, 499, 999, compared - 1}):
        if step < compared:
            table.add_row(f"loss at step {step + 1}", *(f"{run.losses[step]:.5f}" for run in runs))
    table.add_section()
    seconds = [statistics.median(run.seconds[:compared]) for run in runs]
    table.add_row("milliseconds a step", *(f"{1000 * own:.1f}" for own in seconds))
    table.add_row("characters per second", *(f"{characters_per_step / own:,.0f}" for own in seconds))
    median, low, high = speedup(runs, compared)
    table.add_row("speed", "1.00x", f"{median:.2f}x ({low:.2f}–{high:.2f})")
    return table


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, str]:
    """The options and the text; ends the program with one clear line where they do not fit together."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.char_lm", description=__doc__, formatter_class=cli.Help
    )
    add = parser.add_argument
    add("--cell", choices=LAYERS, default="gru", help="of the recurrent layers")
    add("--text", type=Path, metavar="FILE", help="UTF-8 text to learn; None: the standard library")
    add("--device", type=cli.device, default="cpu", help="cpu, cuda, cuda:1, …")
    add("--out", type=Path, default=Path("out/char_lm.png"), metavar="PNG", help="the picture")
    add("--seed", type=cli.seed, default=0, metavar="N", help="of the parameters and of what is written")
    add("--steps", type=cli.positive, default=AGREE_STEPS, metavar="N", help="side by side")
    help = "of training in all; the comparison takes at most half of them"
    add("--seconds", type=cli.above_zero, default=70.0, metavar="X", help=help)
    sizes = {
        "hidden": (256, "units of a layer"),
        "layers": (1, "recurrent layers"),
        "batch": (32, "streams of text side by side"),
        "length": (100, "characters in a step of each"),
    }
    for name, (default, help) in sizes.items():
        add(f"--{name}", type=cli.positive, default=default, metavar="N", help=help)
    options = parser.parse_args(arguments)
    try:
        text = options.text.read_text(encoding="utf-8") if options.text else books.standard_library(2_000_000)
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--text {options.text}: {error}")
    needed = options.batch * (options.length + 1)
    if len(text) < needed:
        parser.error(
            f"the text has {len(text):,} characters;"
            f" --batch {options.batch} --length {options.length} need {needed:,}"
        )
    try:
        if options.out.is_dir():
            parser.error(f"--out {options.out}: a folder, where the picture's file name is expected")
        if options.out.suffix not in PICTURES:
            parser.error(f"--out {options.out}: expected a name that ends in {' or '.join(PICTURES)}")
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.open("ab").close()  # now, rather than after the training
    except OSError as error:
        parser.error(f"--out {options.out}: {(error.strerror or str(error)).lower()}")
    return options, text


def main(arguments: list[str] | None = None) -> int:
    options, text = parse(arguments)
    return cli.status(lambda: demonstrate(options, text), "interrupted")


def demonstrate(options: argparse.Namespace, text: str) -> int:
    """Train both, compare, write and draw; the exit status."""
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

    layers = f"{options.layers} layer{'s' * (options.layers > 1)}"
    shape = f"{layers}, H={options.hidden}, B={options.batch}, T={options.length}"
    console.print(
        f"{len(text):,} characters of {escape(str(options.text or 'the Python standard library'))},"
        f" {len(alphabet)} different ones; {shape}, {options.device}, {torch.get_num_threads()} threads",
        soft_wrap=True,
    )
    source, start = batches(data, options.batch, options.length), time.perf_counter()
    others = machine.Others()
    compare(runs, source, options.steps, options.seconds / 2, console)
    in_the_way = others.in_the_way(torch.get_num_threads()), others.cores()
    compared = len(fused.losses)
    learn_on(fused, source, options.seconds - (time.perf_counter() - start), console)

    console.print(report(runs, compared, options.batch * options.length))
    if why := disturbances(disturbed(runs, compared), *in_the_way):
        console.print(f"{why}: this speed is no more than a hint", style="yellow", soft_wrap=True)
    differing = disagreements(runs)
    checked = min(AGREE_STEPS, compared)
    if differing:
        console.print(f"[red]losses differ in {AGREE_DIGITS} digits from step {differing[0] + 1} on")
    else:
        console.print(f"losses agree to {AGREE_DIGITS} digits in the first {checked} steps")
    last = plot.smooth(fused.losses, 20)[-1]
    console.rule(f"written by {fused.name} after {len(fused.losses):,} steps, loss {last:.2f}")
    prompt = "    def " if options.text is None else text[:8]
    console.print(
        sample(fused.model, alphabet, prompt, 500, options.seed, options.device), markup=False, soft_wrap=True
    )
    console.rule()
    draw(runs, compared, f"Character language model: {shape}", options.out)
    console.print(f"loss curves: {options.out}", markup=False)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
