"""Tables and a plot from a benchmark run's JSON file.

    python -m benchmarks.report benchmarks/results/cpu.json                      # cpu.md and cpu.png
    python -m benchmarks.report benchmarks/results/cpu.json --output docs/performance-cpu.md
    python -m benchmarks.report benchmarks/results/nvidia-h200.json              # likewise, of a GPU

Speedup is a peer's seconds over ours, taken round by round; the table shows its median and, in brackets, its
quartiles.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

WORKS = {
    "inference": "Inference: forward without gradients",
    "training": "Training: forward and backward",
    "step": "One step at a time (T = B = 1)",
    "frozen step": "One step at a time of a frozen module (T = B = 1)",
}
CELLS = ("lstm", "gru", "rnn")
COUNTED_TO = 0.5e6  # bytes, to which a peak of memory is known
FILLS_A_TILE = 8  # sequences, from which on products are limited by arithmetic and not by memory

Info = dict[str, Any]  # one case, as bench_layers.py describes it


def read(path: Path) -> tuple[list[Info], dict[str, Any], dict[str, Any]]:
    """(cases, machine, commit) of a file that pytest-benchmark wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        infos = [benchmark["extra_info"] for benchmark in content["benchmarks"]]
        cases = [info for info in infos if "case" in info]
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


def median_of(speedup: dict[str, float]) -> float:
    return speedup["median"]


def least_speedup(info: Info) -> dict[str, float]:
    """Over the peer that is the best in this case; our own float32 is none."""
    return min((s for peer, s in info["speedup"].items() if not peer.startswith("seqkernels")), key=median_of)


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def table(rows: list[list[str]]) -> str:
    """Rows in Markdown, the first being the head; numbers to the right."""
    head, *body = rows
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def on_gpu(machine: dict[str, Any]) -> bool:
    return "gpu" in machine


def held_isa(machine: dict[str, Any]) -> str:
    """The instruction set that everybody was held to, if so."""
    return str(machine.get("held_by", {}).get("SEQKERNELS_CPU_ISA", ""))


def progress_line(info: Info) -> str:
    """A case in one line, for whoever waits."""
    ratios = (
        f"{s['median']:.2f}x {name} [{s['q25']:.2f}, {s['q75']:.2f}]" for name, s in info["speedup"].items()
    )
    seconds, case = info["seconds"]["seqkernels"]["median"], info["case"]
    return f"{case['work']:9} {case['title']:48} {seconds * 1e3:9.3f} ms  {'  '.join(ratios)}"


def rate_columns(info: Info) -> dict[str, str]:
    """How much of the machine is used."""
    if "share_of_gemm" in info:
        return {"GFLOP/s": f"{info['gflops']:.1f}", "of GEMM's rate": f"{info['share_of_gemm']:.0%}"}
    errors = [info["errors"].get(name) for name in ("seqkernels", "torch.nn")]
    return {
        "µs a step": f"{info['us_per_step']:.2f}",
        "TFLOP/s": f"{info['tflops']:.2f}",
        "plan": info["plan"].partition(": ")[2] or info["plan"],
        "error / torch.nn's": " / ".join(f"{error:.0e}" for error in errors if error is not None),
    }


def needs_more(info: Info) -> bool:
    """Whether torch.nn has less memory in use at its peak, by more than can be counted."""
    return info["peak_bytes"]["seqkernels"] > info["peak_bytes"]["torch.nn"] + COUNTED_TO


def memory_column(info: Info) -> dict[str, str]:
    """Peak memory of a training step, where it was to be measured, with torch.nn's."""
    if "peak_bytes" not in info:
        return {}
    if not info["peak_bytes"]:
        return {"peak MB (torch.nn)": "no /proc"}
    mark = "**" if needs_more(info) else ""
    ours, theirs = (f"{info['peak_bytes'][name] / 1e6:.1f}" for name in ("seqkernels", "torch.nn"))
    return {"peak MB (torch.nn)": f"{mark}{ours}{mark} ({theirs})"}


def memory_legend(cases: list[Info]) -> list[str]:
    """What that column says, in sum."""
    some = [info for info in cases if info.get("peak_bytes")]
    if not some:
        return []
    peaks = [info["peak_bytes"] for info in some]
    ratio = geometric_mean(peak["seqkernels"] / peak["torch.nn"] for peak in peaks)
    return [
        "Peak MB is what one step has in use at most beyond the module and its inputs, in a process of its"
        f" own (`benchmarks/memory.py`): {ratio:.2f} of torch.nn's in the geometric mean. It is counted to"
        f" some hundred KB, and in bold where it is more than torch.nn's by over {COUNTED_TO / 1e6:g} MB, in"
        f" {sum(map(needs_more, some))} of {len(some)}."
    ]


def limit_line(cases: list[Info]) -> list[str]:
    """How far the speedup over the best peer could go: what it would be, had ours run at GEMM's rate."""
    parts = []
    for cell in CELLS:
        some = [
            info
            for info in of(cases, cell=cell, dtype="float32")
            if "share_of_gemm" in info
            and info["case"]["batch"] >= FILLS_A_TILE
            and not info["case"]["variant"].startswith("packed")
        ]
        best = [median_of(least_speedup(info)) for info in some]
        if some:
            limits = (ratio / info["share_of_gemm"] for ratio, info in zip(best, some, strict=True))
            parts.append(f"{cell.upper()} {geometric_mean(best):.2f} of {geometric_mean(limits):.2f}")
    if not parts:
        return []
    return [
        f"Where GEMM's rate is the limit, in float32 with B ≥ {FILLS_A_TILE}: geometric means of the speedup"
        " over the best peer, and of what it would be had ours run at that rate from the first operation to"
        f" the last, with cells, packing and saving taking no time: {', '.join(parts)}."
    ]


def work_table(cases: list[Info]) -> str:
    """Every case of one kind of work, losses first: sorted by the least speedup over any peer."""
    peers = peers_of(cases)
    speedups = [f"speedup over {peer}" for peer in peers]
    head = ["case", "ms", *speedups, *memory_column(cases[0]), *rate_columns(cases[0])]
    rows = []
    for info in sorted(cases, key=lambda info: median_of(least_speedup(info))):
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
        cells += [*memory_column(info).values(), *rate_columns(info).values()]
        rows.append([info["case"]["title"], ours, *cells])
    return table([head, *rows])


def groups(cases: list[Info], by_dtype: bool) -> dict[str, list[Info]]:
    """Cases by what the summary tells apart: work and cell, and dtype or, for all cells, what is special."""
    found: dict[str, list[Info]] = {}
    for work, cell in itertools.product(WORKS, CELLS):
        for info in of(cases, work=work, cell=cell):
            dtype, packed = info["case"]["dtype"], info["case"]["variant"].startswith("packed")
            if by_dtype:
                title = f"{cell.upper()} {work} {dtype}"
            elif packed or dtype != "float32":
                title = f"{'packed' if packed else dtype} {work}"
            else:
                title = f"{cell.upper()} {work}"
            found.setdefault(title, []).append(info)
    return dict(sorted(found.items(), key=lambda group: group[0][0].islower()))  # cells first


def mean_speedup(speedups: Iterable[dict[str, float]]) -> str:
    """Of the medians, and in how many the peer is faster."""
    ratios = list(map(median_of, speedups))
    slower = sum(ratio < 1 for ratio in ratios)
    return f"{geometric_mean(ratios):.2f} ({slower} of {len(ratios)})" if ratios else "–"


def summary(cases: list[Info], by_dtype: bool = False) -> str:
    """Geometric means over the cases of each group, and in how many the peer, or the best one, is faster."""
    peers = peers_of(cases)
    best = ["over the best of them"] if len(peers) > 1 else []
    rows = [["geometric mean", "cases", *(f"speedup over {peer} (slower in)" for peer in peers), *best]]
    for title, some in groups(cases, by_dtype).items():
        speedups = [info["speedup"] for info in some]
        cells = [mean_speedup(of_case[peer] for of_case in speedups if peer in of_case) for peer in peers]
        if best:
            cells.append(mean_speedup(map(least_speedup, some)))
        rows.append([title, str(len(some)), *cells])
    return table(rows)


def machine_line(cases: list[Info], machine: dict[str, Any], commit: dict[str, Any]) -> str:
    """Where, with what and when the numbers came to be."""
    if on_gpu(machine):
        return gpu_line(machine, commit)
    processor = machine.get("cpu", {}).get("brand_raw") or machine.get("machine", "unknown processor")
    rates = [info["gemm_gflops"] for info in of(cases, dtype="float32") if "gemm_gflops" in info]
    held = ", ".join(f"{name}={value}" for name, value in machine.get("held_by", {}).items())
    revision = str(commit.get("id", ""))[:10] or "no commit"
    return (
        f"{processor}, {machine['torch_threads']} threads, {machine['cpu_isa']} kernels"
        + f"; torch {machine['torch']}"
        + (f", all held to {held_isa(machine)} by {held}" if held else "")
        + (f", ONNX Runtime {machine['onnxruntime']}" if "onnxruntime" in machine else "")
        + (f"; float32 GEMM {min(rates):.0f} to {max(rates):.0f} GFLOP/s during the run" if rates else "")
        + f", load average before it {machine['load_average']:.1f}; commit {revision}"
        + (" with changes" if commit.get("dirty") else "")
        + ("; quick run" if machine["quick"] else "")
    )


def gpu_line(machine: dict[str, Any], commit: dict[str, Any]) -> str:
    known = [
        machine["gpu"],
        f"driver {machine['driver']}" if machine.get("driver") else "",
        f"torch {machine['torch']}",
        f"cuDNN {machine['cudnn']}" if "cudnn" in machine else "",
        f"copies at {machine['copy_gb_per_s']:.0f} GB/s",
        f"bfloat16 products at {machine['matmul_tflops']:.0f} TFLOP/s",
        f"commit {commit['id'][:10]}" + " with changes" * commit["dirty"] if commit.get("id") else "",
        "quick run" if machine["quick"] else "",
    ]
    return "; ".join(filter(None, known))


def plans_table(plans: list[Info]) -> str:
    """Microseconds a step of every plan in both passes; in bold the one that is chosen."""
    names = list(dict.fromkeys(plan for entry in plans for plan in entry["forward"]))
    rows = [["layer", "pass", *(name.replace("_", " ") for name in names)]]
    for entry in plans:
        for which in ("forward", "backward"):
            cells = []
            for name in names:
                time = entry[which].get(name, {}).get("us_per_step")
                mark = "**" if entry["chosen"].get(which) == name else ""
                cells.append("–" if time is None else f"{mark}{time:.2f}{mark}")
            layer = f"{entry['cell'].upper()} {entry['dtype']} H={entry['hidden']} B={entry['batch']}"
            rows.append([layer, which, *cells])
    return table(rows)


def missing(content: dict[str, Any]) -> list[str]:
    """Sections on what a run on a GPU did not measure."""
    failed = [f"- {entry['id']}: {entry['why']}" for entry in content.get("failed", [])]
    left_out = [f"- {title}" for title in content.get("left_out", [])]
    return [
        *(["## Failed", "\n".join(failed)] if failed else []),
        *(["## Left out for lack of time", "\n".join(left_out)] if left_out else []),
    ]


CPU_LEGEND = (
    " GFLOP/s counts the matrix products alone; the last column is"
    " its share of what a 1024 x 1024 x 1024 product of the same dtype reached in the same rounds."
)
GPU_LEGEND = (
    " torch.nn runs cuDNN with the same dtype and setting of TF32, torch.nn float16 the same layer in the"
    " dtype for which cuDNN has its fastest kernels. Times are the GPU's, from the first call of a burst to"
    " the end of the last, with the host's part where the GPU waits for it; in CUDA graphs it does not."
    " TFLOP/s counts the matrix products alone. Errors are the largest of all results and gradients, against"
    " float64 and relative to the RMS."
)


def scaling_table(cases: list[Info], what: str) -> list[str]:
    """Time against the number of steps or sequences, with the straight line that fits best."""
    some = of(cases, variant=f"more {what}s")
    if len(some) < 3:
        return []
    size = {"step": "seq_len", "sequence": "batch"}[what]
    numbers = [info["case"][size] for info in some]
    ours, theirs = ([info["seconds"][name]["median"] for info in some] for name in ("seqkernels", "torch.nn"))
    slope, intercept = statistics.linear_regression(numbers, ours)
    fit = statistics.correlation(numbers, ours) ** 2
    rows = [[f"{what}s", "ms", f"µs a {what}", f"torch.nn, µs a {what}"]]
    for n, seconds, peer in zip(numbers, ours, theirs, strict=True):
        rows.append([str(n), milliseconds(seconds), f"{seconds / n * 1e6:.1f}", f"{peer / n * 1e6:.1f}"])
    case = some[0]["case"]
    fixed = f"B = {case['batch']}" if what == "step" else f"T = {case['seq_len']}"
    line = f"{intercept * 1e3:.2f} ms + {slope * 1e6:.1f} µs a {what}"
    return [f"LSTM training, {fixed}, H = {case['hidden']}: {line} (R² = {fit:.4f}).", table(rows)]


def neighbours_table(path: Path) -> list[str]:
    """Slowdowns beside busy processes, of a run that measured them."""
    content = json.loads(path.read_text(encoding="utf-8"))
    some = [b["extra_info"] for b in content["benchmarks"] if "neighbours" in b["extra_info"]]
    if not some:
        return []
    peers = list(dict.fromkeys(name for info in some for name in info["slowdown"]))
    rows = [["times slower beside one busy process a core", *peers]]
    for info in some:
        found = (info["slowdown"].get(name) for name in peers)
        case = info["neighbours"]
        rows.append([f"{case['work']}, {case['title']}", *("–" if f is None else f"{f:.1f}" for f in found)])
    return ["## Neighbours", "`make bench ARGS='-k neighbours'`", table(rows)]


def report(cases: list[Info], machine: dict[str, Any], commit: dict[str, Any], name: str) -> str:
    isa = held_isa(machine)
    bench = f"make bench ISA={isa}" if isa else "make bench"
    title = "# Performance on CPUs" + (f" held to {isa.upper()}" if isa else "")
    parts = [
        f"# Benchmark results: {name}" if on_gpu(machine) else title,
        machine_line(cases, machine, commit) + ".",
        "Speedup is the peer's time over that of seqkernels, interleaved: median of all rounds [quartiles];"
        " below 1, in bold, the peer is faster." + (GPU_LEGEND if on_gpu(machine) else CPU_LEGEND),
        "## Summary",
        summary(cases, by_dtype=on_gpu(machine)),
    ]
    if isa:
        parts[2] += " The float32 part of the grid" + (
            "."
            if len(peers_of(cases)) > 1
            else ", without ONNX Runtime, which cannot be held to an instruction set."
        )
    for work, title in WORKS.items():
        some = of(cases, work=work)
        if some:
            command = [] if on_gpu(machine) else [f"`{bench} ARGS='-k {work.replace(' ', '-')}'`"]
            legends = [*limit_line(some), *memory_legend(some)]
            parts += [f"## {title}", *command, *legends, work_table(some)]
    scaling = [*scaling_table(cases, "step"), *scaling_table(cases, "sequence")]
    parts += ["## Scaling", "`make bench ARGS='-k more'`", *scaling] if scaling else []
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
        known = [info for info in of(cases, work=work) if "torch.nn" in info["speedup"]]
        some = sorted(known, key=lambda info: -info["speedup"]["torch.nn"]["median"])
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("results", type=Path, help="the JSON file of `make bench`")
    parser.add_argument(
        "--output", type=Path, help="the Markdown file to write (default: beside the results)"
    )
    options = parser.parse_args(arguments)

    cases, machine, commit = read(options.results)
    markdown = options.output or options.results.with_suffix(".md")
    picture = markdown.with_suffix(".png")
    text = report(cases, machine, commit, markdown.stem)
    text = "\n\n".join([text.rstrip(), *neighbours_table(options.results)]) + "\n"
    if on_gpu(machine):
        content = json.loads(options.results.read_text(encoding="utf-8"))
        plans = ["## Plans, µs a step", plans_table(content["plans"])] if content["plans"] else []
        text = "\n\n".join([text.rstrip(), *plans, *missing(content)]) + "\n"
    markdown.write_text(text, encoding="utf-8")
    plot(cases, machine_line(cases, machine, commit), picture)
    print(f"\n{summary(cases, by_dtype=on_gpu(machine))}\n\nwrote {markdown} and {picture}")


if __name__ == "__main__":
    main()
