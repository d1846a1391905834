"""Tables and a plot from a benchmark run's JSON file.

    python -m benchmarks.report benchmarks/results/cpu.json                      # cpu.md and cpu.png
    python -m benchmarks.report benchmarks/results/cpu.json --readme README.md   # and the README

Speedup is a peer's seconds over ours, taken round by round; the table shows its median and, in brackets, its
quartiles.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
WORKS = {
    "inference": "Inference: forward without gradients",
    "training": "Training: forward and backward",
    "step": "One step at a time (T = B = 1)",
    "frozen step": "One step at a time of a frozen module (T = B = 1)",
}
CELLS = ("lstm", "gru", "rnn")

Info = dict[str, Any]  # one case, as bench_layers.py describes it


def read(path: Path) -> tuple[list[Info], dict[str, Any], dict[str, Any]]:
    """(cases, machine, commit) of a file that pytest-benchmark wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cases = [benchmark["extra_info"] for benchmark in content["benchmarks"]]
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"{path}: no benchmark results ({error})")
    if not cases:
        sys.exit(f"{path}: no case was measured")
    return cases, content["machine_info"], content["commit_info"]


def geometric_mean(values: Iterable[float]) -> float:
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))


def of(cases: list[Info], **wanted: str) -> list[Info]:
    return [info for info in cases if all(info["case"][name] == value for name, value in wanted.items())]


def peers_of(cases: list[Info]) -> list[str]:
    """torch.nn, and whoever else ran, in the order of the runs."""
    return list(dict.fromkeys(peer for info in cases for peer in info["speedup"]))


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def table(rows: list[list[str]]) -> str:
    """Rows in Markdown, the first being the head; numbers to the right."""
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def work_table(cases: list[Info]) -> str:
    """Every case of one kind of work, losses first: sorted by the least speedup over any peer."""
    peers = peers_of(cases)
    head = ["case", "ms", *(f"speedup over {peer}" for peer in peers), "GFLOP/s", "of GEMM's rate"]
    rows = []
    for info in sorted(
        cases, key=lambda info: min(speedup["median"] for speedup in info["speedup"].values())
    ):
        cells = []
        for peer in peers:
            ratio = info["speedup"].get(peer)
            mark = "**" if ratio and ratio["median"] < 1 else ""
            cells.append(
                f"{mark}{ratio['median']:.2f}{mark} [{ratio['q25']:.2f}, {ratio['q75']:.2f}]"
                if ratio
                else "–"
            )
        ours = milliseconds(info["seconds"]["seqkernels"]["median"])
        rows.append(
            [info["case"]["title"], ours, *cells, f"{info['gflops']:.1f}", f"{info['share_of_gemm']:.0%}"]
        )
    return table([head, *rows])


def summary(cases: list[Info]) -> str:
    """Geometric means over the cases of each work and cell, and how many of them are slower than the peer."""
    peers = peers_of(cases)
    rows = [["geometric mean", "cases", *(f"speedup over {peer} (slower in)" for peer in peers)]]
    for work in WORKS:
        for cell in CELLS:
            some = of(cases, work=work, cell=cell)
            if not some:
                continue
            cells = []
            for peer in peers:
                ratios = [info["speedup"][peer]["median"] for info in some if peer in info["speedup"]]
                slower = sum(ratio < 1 for ratio in ratios)
                cells.append(f"{geometric_mean(ratios):.2f} ({slower} of {len(ratios)})" if ratios else "–")
            rows.append([f"{cell.upper()} {work}", str(len(some)), *cells])
    return table(rows)


def machine_line(cases: list[Info], machine: dict[str, Any], commit: dict[str, Any]) -> str:
    """Where, with what and when the numbers came to be."""
    processor = machine.get("cpu", {}).get("brand_raw") or machine.get("machine", "unknown processor")
    rates = [info["gemm_gflops"] for info in of(cases, dtype="float32")] or [0.0]
    revision = str(commit.get("id", ""))[:10] or "no commit"
    return (
        f"{processor}, {machine['torch_threads']} threads, {machine['cpu_isa']} kernels"
        + f"; torch {machine['torch']}"
        + (f", ONNX Runtime {machine['onnxruntime']}" if "onnxruntime" in machine else "")
        + f"; float32 GEMM {min(rates):.0f} to {max(rates):.0f} GFLOP/s during the run"
        + f", load average before it {machine['load_average']:.1f}; commit {revision}"
        + (" with changes" if commit.get("dirty") else "")
        + ("; quick run" if machine["quick"] else "")
    )


def report(cases: list[Info], machine: dict[str, Any], commit: dict[str, Any], name: str) -> str:
    parts = [
        f"# Benchmark results: {name}",
        machine_line(cases, machine, commit) + ".",
        "Speedup is the peer's time over that of seqkernels, by turns in the same rounds: median [quartiles];"
        " below 1, in bold, the peer is faster. GFLOP/s counts the matrix products alone; the last column is"
        " its share of what a 1024 x 1024 x 1024 product of the same dtype reached in the same rounds.",
        "## Summary",
        summary(cases),
    ]
    for work, title in WORKS.items():
        some = of(cases, work=work)
        if some:
            parts += [f"## {title}", work_table(some)]
    return "\n\n".join([*parts, f"![speedups]({name}.png)"]) + "\n"


def plot(cases: list[Info], subtitle: str, path: Path) -> None:
    """Speedup of every case, a panel for each kind of work, a dot for each peer with its quartiles."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    works = [work for work in WORKS if of(cases, work=work)]
    heights = [len(of(cases, work=work)) + 2 for work in works]
    figure, panels = pyplot.subplots(
        len(works), figsize=(9, 1.5 + 0.2 * sum(heights)), height_ratios=heights, sharex=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    colours = dict(zip(peers_of(cases), ("tab:orange", "tab:blue", "tab:green"), strict=False))
    for work, axes in zip(works, panels[:, 0], strict=True):
        some = sorted(of(cases, work=work), key=lambda info: -info["speedup"]["torch.nn"]["median"])
        for peer, colour in colours.items():
            dots = [(y, info["speedup"][peer]) for y, info in enumerate(some) if peer in info["speedup"]]
            for y, speedup in dots:
                axes.hlines(y, speedup["q25"], speedup["q75"], color=colour, alpha=0.5)
            medians = [speedup["median"] for _, speedup in dots]
            axes.plot(medians, [y for y, _ in dots], "o", color=colour, markersize=4, label=peer)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_yticks(range(len(some)), [info["case"]["title"] for info in some], fontsize=7)
        axes.set_ylim(-1, len(some))
        axes.set_title(WORKS[work], fontsize=9, loc="left")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}x"))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), title="speedup over", loc="outside right upper", fontsize=8
    )
    panels[-1, 0].set_xlabel("peer's time / seqkernels' time (right of 1: seqkernels is faster)")
    figure.suptitle(subtitle.replace("; ", "\n", 1), fontsize=7)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def fill(readme: Path, text: str) -> None:
    """Replace what stands between the markers."""
    content = readme.read_text(encoding="utf-8")
    if content.count(BEGIN) != 1 or content.count(END) != 1:
        sys.exit(f"{readme}: needs the lines {BEGIN} and {END} once each")
    before, rest = content.split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("results", type=Path, help="the JSON file of `make bench`")
    parser.add_argument(
        "--readme", type=Path, help=f"a Markdown file with the lines {BEGIN} and {END} to fill"
    )
    options = parser.parse_args(arguments)

    cases, machine, commit = read(options.results)
    markdown, picture = options.results.with_suffix(".md"), options.results.with_suffix(".png")
    text = report(cases, machine, commit, options.results.stem)
    markdown.write_text(text, encoding="utf-8")
    plot(cases, machine_line(cases, machine, commit), picture)
    print(f"\n{summary(cases)}\n\nwrote {markdown} and {picture}")
    if options.readme:
        fill(options.readme, f"{summary(cases)}\n\n{machine_line(cases, machine, commit)}.")
        print(f"filled in {options.readme}")


if __name__ == "__main__":
    main()
