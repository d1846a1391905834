"""The same training from several seeds, in processes side by side, and what all of them together come to."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import distributed, results, terminal
from .data import replace_text
from .errors import InputError

__all__ = ["folders", "train", "trained", "write"]

ROOT = Path(__file__).resolve().parents[2]


def folders(out: Path, first: int, count: int) -> dict[int, Path]:
    """Where each seed's results go: those of the first to the folder itself, as without --seeds, so that what
    takes a trained model finds one there; the others' to folders within.

    Example:
        >>> folders(Path("out"), 7, 2)
        {7: PosixPath('out'), 8: PosixPath('out/seed-8')}
    """
    return {seed: out if seed == first else out / f"seed-{seed}" for seed in range(first, first + count)}


def train(name: str, arguments: list[str], options: argparse.Namespace) -> dict[int, Path]:
    """Run a command once for each seed, as many at a time as there are cores, and print the tables' medians.

    Args:
        name: The program's.
        arguments: Those that it was called with; `--seeds` in them is overruled.
        options: What they were parsed to.

    Returns:
        The folder of each seed.

    Raises:
        InputError: A training failed; its last line says why.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("--seeds", None, "1 under torchrun", str(options.seeds))
    where = folders(options.out, options.seed, options.seeds)
    file = f"{options.command}.log"
    jobs = options.jobs or max(1, (os.cpu_count() or 1) // options.threads)
    console = terminal.console()
    running: list[subprocess.Popen[bytes]] = []
    stopped = threading.Event()
    console.print(f"seeds {options.seed} to {options.seed + options.seeds - 1}, {jobs} at a time")

    def one(seed: int) -> tuple[int, str]:
        folder, start = where[seed], time.perf_counter()
        output = folder / file
        given = [argument for argument in arguments if argument != "--"]  # after it, there are no options
        own = [*given, "--seed", str(seed), "--seeds", "1", "--out", str(folder)]
        if options.resume and not any(folder.glob("*.safetensors")):
            own.remove("--resume")
        folder.mkdir(parents=True, exist_ok=True)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with open(output, "w+", encoding="utf-8") as log:
            command = [sys.executable, "-m", f"examples.{name}", *own]
            if stopped.is_set():
                return 1, "interrupted"
            run = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path})
            running.append(run)
            run.wait()
            log.seek(0)
            lines = log.read().strip().splitlines()
        if run.returncode == 0:
            console.print(f"seed {seed}: {time.perf_counter() - start:.0f} s, {output}")
        return run.returncode, lines[-1] if lines else "nothing"

    with ThreadPoolExecutor(jobs) as pool:
        try:
            ended = list(pool.map(one, where))
        except BaseException:  # an interruption, which is that of all trainings
            stopped.set()
            for run in running:
                run.terminate()
            raise
    for folder, (status, line) in zip(where.values(), ended, strict=True):
        if status:
            raise InputError(
                folder / f"{options.command}.log", None, "a training that ends", line.removeprefix("error: ")
            )
    write(options.out, where)
    return where


def trained(out: Path) -> dict[int, Path]:
    """The folder of each seed that `train` was run with last.

    Raises:
        InputError: It has not been run with several seeds.
    """
    try:
        seeds = json.loads((out / results.SUMMARY).read_text(encoding="utf-8"))["seeds"]
        if seeds != list(range(seeds[0], seeds[0] + len(seeds))):
            raise ValueError("not one seed after the other")
    except (OSError, IndexError, KeyError, TypeError, ValueError):
        expected = "the results of several seeds (run `train --seeds 5` first)"
        raise InputError(out / results.SUMMARY, None, expected, "none") from None
    return folders(out, seeds[0], len(seeds))


def write(out: Path, where: dict[int, Path]) -> None:
    """Print the tables that all seeds have, each number as the median with the lowest and the highest, and
    keep all numbers in `out`."""
    if distributed.rank() > 0:
        return
    first, *others = map(results.names, where.values())
    shared = [table for table in first if all(table in names for names in others)]
    tables = {table: results.sum_up(where, table) for table in shared}
    for summary in tables.values():
        title = f"{summary.title}: median of {len(where)} seeds (lowest–highest)"
        terminal.console().print(terminal.table(title, summary.spreads()))
    kept = {
        "seeds": list(where),
        "tables": {name: {"title": own.title, "rows": own.rows} for name, own in tables.items()},
    }
    replace_text(out / results.SUMMARY, json.dumps(kept, ensure_ascii=False, indent=1) + "\n")
