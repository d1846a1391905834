"""What the stages of `make gpu` print, in a line each. Needs nothing but Python."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

PLANS = ("stepwise", "persistent_block", "persistent_cluster", "persistent_grid")
SHOWN = 12  # lines of a failed stage's output that are printed


def slug(name: str) -> str:
    """A file's name for a GPU's: "NVIDIA H100 80GB HBM3" is nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "gpu"


def test_results(output: str) -> list[tuple[str, str]]:
    """(test, outcome) of what `pytest -v` printed, with or without workers."""
    outcome = r"(PASSED|FAILED|ERROR|SKIPPED)"
    by_worker = re.findall(rf"^\[gw\d+\] \[ *\d+%\] {outcome} (\S.*?) *$", output, re.MULTILINE)
    alone = re.findall(rf"^(tests/\S*::.*?) {outcome}\b.*$", output, re.MULTILINE)
    return [(test, said.lower()) for said, test in by_worker] + [(test, said.lower()) for test, said in alone]


def counts(outcomes: Iterable[str]) -> str:
    found = Counter(outcomes)
    return ", ".join(
        f"{found[name]} {name}" for name in ("passed", "failed", "error", "skipped") if found[name]
    )


def test_detail(output: str) -> str:
    results = test_results(output)
    crashed = re.findall(r"worker 'gw\d+' crashed while running '(.*?)'", output)
    said = [counts(outcome for _, outcome in results) or "no test ran"]
    return "; ".join([*said, *([f"{len(crashed)} crashes: {crashed[0]}"] if crashed else [])])


def plan_detail(output: str) -> str:
    """The tests' outcomes plan by plan."""
    results = test_results(output)
    by_plan = {plan: counts(o for test, o in results if re.search(rf"\b{plan}\b", test)) for plan in PLANS}
    return "; ".join(f"{plan}: {said or 'nothing'}" for plan, said in by_plan.items())


def last_line(output: str) -> str:
    return (output.strip().splitlines() or [""])[-1]


def ptxas_summary(logs: Iterable[str]) -> str:
    """Registers and spills of all kernels, from what ptxas -v says of them."""
    kernels, most, spilling = 0, 0, []
    for log in logs:
        for entry in re.split(r"(?=ptxas info\s*: Compiling entry function)", log)[1:]:
            kernels += 1
            name = re.search(r"entry function '(\w+)'", entry)
            used = re.search(r"Used (\d+) registers", entry)
            most = max(most, int(used[1]) if used else 0)
            memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores", entry)
            if memory and memory.groups() != ("0", "0"):
                spilling.append(name[1] if name else "?")
    if not kernels:
        return ""
    said = f"{kernels} kernels of up to {most} registers, {len(spilling)} with a stack or spills"
    return said + "".join(f"\n  stack or spills: {name[:100]}" for name in spilling[:3])


def sanitizer_detail(output: str) -> str:
    """Its last summary, and how many kernels' launches ran."""
    summaries = re.findall(r"((?:ERROR|RACECHECK) SUMMARY: .*)", output)
    ran = len(re.findall(r"^ran ", output, re.MULTILINE))
    return f"{ran} combinations; {summaries[-1] if summaries else 'no summary'}"


def sanitizer_refusal(output: str) -> str:
    """Why the tool cannot look at this machine's GPU, if it says so."""
    found = re.search(r"Device not supported.*|is not supported on .*|Unable to find .*injection.*", output)
    return found[0][:100] if found else ""


def race_detail(results: Path) -> str:
    """Of the benchmark's file: how much was measured, and how it went against torch.nn."""
    try:
        content = json.loads(results.read_text(encoding="utf-8"))
        infos = [benchmark["extra_info"] for benchmark in content["benchmarks"]]
        speedups = [
            (info["speedup"]["torch.nn"]["median"], f"{info['case']['work']} {info['case']['title']}")
            for info in infos
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return "no results"
    said = f"{len(speedups)} cases, {len(content['failed'])} failed, {len(content['left_out'])} left out"
    if speedups:
        losses = sum(speedup < 1 for speedup, _ in speedups)
        said += "; slower than torch.nn in {}; least {:.2f}x, {}".format(losses, *min(speedups))
    return said


def smoke_detail(results: Path, plan: str) -> str:
    """Of the smoke test's lines about a plan: how many layers were right, and the first that was not."""
    counts: Counter[str] = Counter()
    wrong = ""
    for line in results.read_text(encoding="utf-8").splitlines() if results.is_file() else []:
        entry = json.loads(line)
        if entry.get("plan") != plan or "trying" in entry or "left_out" in entry:
            continue
        right = "failed" not in entry and entry.get("error", 0) <= 1
        counts["refused" if "refused" in entry else "right" if right else "WRONG"] += 1
        if not right and not wrong:
            what = entry.get("failed", entry.get("error"))
            wrong = f": {entry['cell']} {entry['dtype']} {entry['pass']} {what}"
    return (", ".join(f"{n} {what}" for what, n in sorted(counts.items())) or "nothing ran") + wrong


def telling(output: str) -> list[str]:
    """The lines of a failed stage that say most: errors, failed tests, else its last ones."""
    lines = [line for line in output.splitlines() if line.strip()]
    wanted = r"^(FAILED|ERROR) |\berror\b|^E  |FAILED:|========= (Error|Invalid|Race)"
    found = [line for line in lines if re.search(wanted, line)]
    named = [line for line in found if line.startswith(("FAILED ", "ERROR "))]
    return (named or found or lines[-SHOWN:])[:SHOWN]
