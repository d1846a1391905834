"""What `make gpu` does besides using the GPU: keeping to its time, reading what stages print, reporting."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cases, gpu, gpu_strict, gpu_timing, report


def stage(name: str, code: str = "", least: float = 1, most: float = 30, **options: Any) -> gpu.Stage:
    return gpu.Stage(name, lambda limit: [sys.executable, "-c", code], least, most, **options)


# ---------------------------------------------------------------- time


def test_limits_keep_what_later_stages_need() -> None:
    stages = [stage("a", least=10, most=100), stage("b", least=20, most=30), stage("c", least=40, most=500)]
    assert gpu.limit_of(stages, 0, 200) == 100
    assert gpu.limit_of(stages, 0, 90) == 30
    assert gpu.limit_of(stages, 0, 50) == 0
    assert gpu.limit_of(stages, 1, 65) == 25
    assert gpu.limit_of(stages, 2, 300) == 300


@pytest.mark.parametrize("look", ["first", "second"])
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_all_stages_fit_into_the_time(device: str, quick: bool, look: str) -> None:
    stages = gpu.stages(device, quick, Path("x.json"), look)
    total = gpu.TOTAL[look, quick]
    assert total < (3 if quick else 7 if look == "first" else 4) * 60
    assert sum(s.least for s in stages) <= total
    assert all(s.least <= s.most for s in stages)
    for s in stages:  # what begins one thing after another has time to begin some
        if s.plan or s.name == "benchmark":
            words = s.command(s.least)
            assert float(words[words.index("--until") + 1]) > time.time(), s.name
    for slow in (False, True):  # the first ones as slow as they may be, or done at once
        remaining = total
        for n, s in enumerate(stages):
            limit = gpu.limit_of(stages, n, remaining)
            assert limit >= s.least
            remaining -= limit if slow else 1
        assert remaining >= 0


def is_running(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_stage_ends_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it has printed, and with what it has started."""
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    code = """if 1:
        import signal, subprocess, sys, time
        signal.signal(signal.SIGINT, lambda *_: print("asked to end", flush=True))
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(child.pid, flush=True)
        while True:
            time.sleep(0.1)
    """
    began = time.monotonic()
    outcome = gpu.carry_out(stage("slow", code), 2.0, tmp_path / "x.log")
    assert time.monotonic() - began < 5
    assert outcome.status == gpu.FAILED
    assert outcome.detail == "stopped at its limit"
    printed = (tmp_path / "x.log").read_text()
    assert "asked to end" in printed
    child = int(printed.splitlines()[printed.splitlines().index("asked to end") - 1])
    while is_running(child):  # a killed process takes a moment to end
        assert time.monotonic() - began < 10
        time.sleep(0.05)


def test_a_crashed_stage_goes_on(tmp_path: Path) -> None:
    """As long as it gets anywhere."""
    file = tmp_path / "x.json"
    code = f"""if 1:
        import os, pathlib, sys
        file = pathlib.Path({str(file)!r})
        done = file.read_text() if file.exists() else ""
        file.write_text(done + "x")
        print("resumed" if "--resume" in sys.argv else "begun")
        if len(done) < 2:
            os._exit(75)
        sys.exit({gpu.SOME_FAILED})
    """
    outcome = gpu.carry_out(stage("races", code, resumes_with=file), 60, tmp_path / "x.log")
    assert outcome.detail == f"exit status {gpu.SOME_FAILED}"
    assert file.read_text() == "xxx"
    output = (tmp_path / "x.log").read_text()
    assert (output.count("begun\n"), output.count("resumed\n")) == (1, 2)
    hopeless = gpu.carry_out(stage("races", "1/0", resumes_with=file), 60, tmp_path / "x.log")
    assert hopeless.status == gpu.FAILED


def test_a_plan_that_hangs_is_skipped_by_all_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    seen: list[list[str]] = []

    def stages(device: str, quick: bool, results: Path, look: str, hung: list[str]) -> list[gpu.Stage]:
        def follow(limit: float) -> list[str]:
            seen.append(list(hung))
            return [sys.executable, "-c", ""]

        hangs = stage("smoke x", "import time; time.sleep(60)", most=2, plan="persistent_grid")
        wrong = stage("smoke y", "raise SystemExit(1)", plan="persistent_block")
        return [hangs, wrong, gpu.Stage("after", follow, 1, 30)]

    monkeypatch.setattr(gpu, "stages", stages)
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path), "--seconds", "60"]) == 1
    assert seen == [["persistent_grid"]]
    assert "persistent_grid does not end" in capsys.readouterr().out
    gpu.main(["--device", "cpu", "--out", str(tmp_path), "--look", "second", "--seconds", "60"])
    assert seen[1][0] == "persistent_grid"


def test_what_hangs_is_given_to_every_program(tmp_path: Path) -> None:
    hung: list[str] = []
    stages = {s.name: s for s in gpu.stages("cuda", False, tmp_path / "x.json", "first", hung)}
    hung.append("persistent_grid")
    for name in ("sweep", "benchmark"):
        assert " ".join(stages[name].command(60)).count("--without persistent_grid") == 1
    assert "not persistent_grid" in " ".join(stages["plans"].command(60))


def test_bits_of_a_strict_build_are_compared() -> None:
    entry = {"plan": "persistent_grid", "cell": "gru", "dtype": "tf32", "pass": "forward", "sizes": [1, 2]}
    usual = [entry | {"digest": "a"}, entry | {"cell": "lstm", "digest": "b"}, entry | {"refused": "x"}]
    usual.append(entry | {"asked": ["lengths"], "digest": "e"})
    strict = [
        entry | {"digest": "a"},
        entry | {"asked": ["lengths"], "digest": "f"},
        entry | {"cell": "lstm", "digest": "c"},
        entry | {"pass": "x", "digest": "d"},
    ]
    found = [gpu_strict.digests(json.dumps(line) for line in lines) for lines in (usual, strict)]
    different = ["gru tf32 forward (1, 2) ('lengths',)", "lstm tf32 forward (1, 2) ()"]
    assert gpu_strict.difference(*found) == (3, [f"persistent_grid {layer}" for layer in different])


def test_detail_of_a_first_light(tmp_path: Path) -> None:
    file = tmp_path / "smoke.jsonl"
    entry = {"plan": "persistent_grid", "cell": "gru", "dtype": "tf32", "pass": "forward"}
    lines = [entry | {"trying": True}, entry | {"error": 0.5}, entry | {"refused": "too large"}]
    lines += [entry | {"error": 3.0}, entry | {"plan": "stepwise", "failed": "x"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = gpu.smoke_detail(file, "persistent_grid")
    assert said == "1 WRONG, 1 refused, 1 right: gru tf32 forward 3.0"
    assert gpu.smoke_detail(file, "persistent_block") == "nothing ran"


def test_refusals_and_missing_programs_are_no_failures(tmp_path: Path) -> None:
    refused = stage("x", "print('Device not supported'); 1/0", skipped=gpu.sanitizer_refusal)
    outcome = gpu.carry_out(refused, 30, tmp_path / "x.log")
    assert (outcome.status, outcome.detail) == (gpu.SKIPPED, "Device not supported")
    absent = gpu.Stage("x", gpu.sanitizer("memcheck", "/no/such/program"), 1, 30)
    assert gpu.carry_out(absent, 30, tmp_path / "x.log").status == gpu.SKIPPED


# ---------------------------------------------------------------- reading and writing


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H200", "nvidia-h200"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-sxm4-80gb"),
        ("Tesla (T4)", "tesla-t4"),
        ("?", "gpu"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert gpu.slug(name) == expected


VERBOSE = """
tests/test_ops.py::test_a[cuda/stepwise-lstm] PASSED                    [ 10%]
tests/test_ops.py::test_a[cuda/persistent_grid-bidirectional, packed] SKIPPED (why not) [ 20%]
[gw0] [ 30%] FAILED tests/test_ops.py::test_b[cuda/persistent_grid-x, y]
[gw12] [100%] PASSED tests/test_ops.py::test_c[cuda]
FAILED tests/test_ops.py::test_b[cuda/persistent_grid-x, y] - AssertionError
"""


def test_results_of_tests() -> None:
    assert gpu.test_detail(VERBOSE) == "2 passed, 1 failed, 1 skipped"
    assert gpu.test_detail("") == "no test ran"
    assert gpu.plan_detail(VERBOSE) == (
        "stepwise: 1 passed; persistent_block: nothing; persistent_cluster: nothing;"
        " persistent_grid: 1 failed, 1 skipped"
    )
    crash = "worker 'gw3' crashed while running 'tests/test_a.py::test_b'\n"
    assert gpu.test_detail(VERBOSE + crash).endswith("1 crashes: tests/test_a.py::test_b")
    assert gpu.telling(VERBOSE) == [VERBOSE.splitlines()[-1]]
    assert gpu.telling("\n".join(map(str, range(50))))[-1] == "49"


def test_compilers_report() -> None:
    entry = """ptxas info    : Compiling entry function '_Z{0}' for 'sm_90a'
ptxas info    : Function properties for _Z{0}
    {1} bytes stack frame, {2} bytes spill stores, 0 bytes spill loads
ptxas info    : Used {3} registers, used 1 barriers
"""
    logs = [entry.format("a", 0, 0, 168) + entry.format("b", 8, 16, 255), entry.format("c", 0, 0, 32)]
    said = gpu.ptxas_summary(logs).splitlines()
    assert said == ["3 kernels of up to 255 registers, 1 with a stack or spills", "  stack or spills: _Zb"]
    assert gpu.ptxas_summary(["nothing"]) == ""


def test_sanitizers_report() -> None:
    output = "ran a\nran b\ncannot run c\n========= ERROR SUMMARY: 0 errors\n"
    assert gpu.sanitizer_detail(output) == "2 combinations; ERROR SUMMARY: 0 errors"


def test_summary_is_a_table() -> None:
    lines = gpu.summary(
        [gpu.Outcome("build", gpu.PASSED, 61.4, "fine\nmore"), gpu.Outcome("tests", gpu.FAILED, 3, "")]
    ).splitlines()
    assert lines == [
        "stage  outcome  seconds",
        "build  passed   61       fine",
        "tests  FAILED   3",
    ]


def test_steps_and_what_comes_once() -> None:
    times = {64: 1e-3 + 64 * 2e-6, 320: 1e-3 + 320 * 2e-6}
    assert gpu_timing.per_step(times) == pytest.approx({"us_per_step": 2, "us_once": 1000})


# ---------------------------------------------------------------- cases


def test_cases_of_a_gpu() -> None:
    found = cases.gpu_cases()
    assert (found[0].title, found[0].work) == ("LSTM T=1024 B=16 H=768, float16", "inference")
    assert len({case.id for case in found}) == len(found)
    assert {case.hidden for case in found} >= {128, 130, 160, 192, 193, 256, 512, 768, 1024, 2048}
    assert {case.batch for case in found} >= {1, 8, 16, 32, 64, 128}
    assert {case.seq_len for case in found} >= {1, 64, 256, 1024}
    assert {case.dtype for case in found} == {"float16", "bfloat16", "tf32", "float32"}
    assert [case.quick for case in found] == sorted((case.quick for case in found), reverse=True)


def test_lengths_of_packed_cases() -> None:
    case = cases.Case("inference", "lstm", 100, 32, 256, cases.PACKED_WIDE)
    assert case.packed
    assert case.lengths[0] == 100
    assert min(case.lengths) < 5
    assert case.lengths == sorted(case.lengths, reverse=True)
    short = cases.Case("inference", "lstm", 3, 8, 256, cases.PACKED_WIDE)
    assert set(short.lengths) == {1, 2, 3}


# ---------------------------------------------------------------- measuring, without a GPU


def item(name: str, result: Any) -> gpu_timing.Item:
    def measure(_: gpu_timing.Attempts) -> dict[str, Any]:
        if isinstance(result, Exception):
            raise result
        return result

    return gpu_timing.Item(name, name, "plans", measure)


def fresh() -> dict[str, Any]:
    return {"measured": [], "failed": [], "left_out": [], "benchmarks": [], "plans": []}


def plans() -> dict[str, Any]:
    return {
        "forward": {"stepwise": {"us_per_step": 1.0}, "persistent_grid": {"obstacle": "no"}},
        "backward": {},
    }


def test_failures_are_written_down_and_passed_over(tmp_path: Path) -> None:
    content, path = fresh(), tmp_path / "x.json"
    work = [item("a", plans()), item("b", RuntimeError("wrong\nmore")), item("c", plans())]
    gpu_timing.measure_all(work, content, path, 60)
    assert [entry["id"] for entry in content["measured"]] == ["a", "c"]
    assert content["failed"] == [{"id": "b", "why": "wrong"}]
    assert json.loads(path.read_text()) == content


def test_no_time_left_is_written_down(tmp_path: Path) -> None:
    content = fresh()
    gpu_timing.measure_all([item("a", plans()), item("b", plans())], content, tmp_path / "x.json", 0)
    assert content["left_out"] == ["a", "b"]


def test_resuming_passes_over_what_crashed(tmp_path: Path) -> None:
    content = fresh() | {"measured": [{"id": "a"}], "running": "b"}
    work = [item("a", ValueError("again")), item("b", ValueError("again")), item("c", plans())]
    gpu_timing.measure_all(work, content, tmp_path / "x.json", 60)
    assert [entry["id"] for entry in content["measured"]] == ["a", "c"]
    assert [entry["id"] for entry in content["failed"]] == ["b"]


def test_a_plan_that_hung_is_not_tried_again(tmp_path: Path) -> None:
    def layer(name: str) -> gpu_timing.Item:
        def measure(attempts: gpu_timing.Attempts) -> dict[str, Any]:
            attempts.begin(["persistent_grid forward"])
            return plans()

        return gpu_timing.Item(name, name, "plans", measure)

    content = fresh() | {"running": "a", "trying": ["persistent_cluster backward"]}
    gpu_timing.measure_all([layer("a"), layer("b")], content, tmp_path / "x.json", 60)
    assert [entry["id"] for entry in content["measured"]] == ["a", "b"]  # "a" anew, without that plan
    assert content["hung"] == [["persistent_cluster backward"]]
    assert "trying" not in content
    content |= {"running": "c", "trying": ["persistent_grid forward"]}
    gpu_timing.measure_all([layer("d")], content, tmp_path / "x.json", 60)
    assert content["failed"] == [
        {"id": "c", "why": f"crashed, or took more than {gpu_timing.STALLED:.0f} s"},
        {"id": "d", "why": "persistent_grid forward hung before"},
    ]


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    """The benchmark and its report from end to end, on tiny sizes."""
    pytest.importorskip("matplotlib")
    path = tmp_path / "rehearsal.json"
    assert gpu_timing.main([str(path), "--device", "cpu", "--seconds", "120", "--quick"]) == 0
    content = json.loads(path.read_text())
    assert (len(content["benchmarks"]), len(content["plans"])) == (5, 1)
    assert gpu.race_detail(path).startswith("5 cases, 0 failed, 0 left out; slower than torch.nn in")
    report.main([str(path)])
    text = path.with_suffix(".md").read_text()
    assert "rehearsal on a CPU" in text
    assert "## Plans, µs a step" in text
    assert path.with_suffix(".png").stat().st_size > 0


def test_report_names_losses_first_and_what_is_missing() -> None:
    def info(title: str, speedup: float) -> dict[str, Any]:
        quantiles = {"q25": speedup, "median": speedup, "q75": speedup}
        return {
            "case": {"title": title, "work": "inference", "cell": "lstm", "dtype": "float16"},
            "seconds": {"seqkernels": {"median": 1e-3}},
            "speedup": {"torch.nn": quantiles},
            "us_per_step": 1.0,
            "tflops": 2.0,
            "plan": "cuda lstm: persistent_grid forward, stepwise backward",
            "errors": {"seqkernels": 1e-3, "torch.nn": 2e-3},
        }

    rows = report.work_table([info("won", 2.0), info("lost", 0.5)]).splitlines()
    assert rows[2].startswith("| lost | 1 | **0.50** [0.50, 0.50] |")
    assert rows[2].endswith("| persistent_grid forward, stepwise backward | 1e-03 / 2e-03 |")
    assert rows[3].startswith("| won |")
    sections = report.missing({"failed": [{"id": "a", "why": "wrong"}], "left_out": ["b"]})
    assert sections == ["## Failed", "- a: wrong", "## Left out for lack of time", "- b"]
    assert report.missing({}) == []
    entry = {"cell": "lstm", "dtype": "float16", "hidden": 8, "batch": 1, "chosen": {"forward": "stepwise"}}
    assert "**1.00**" in report.plans_table([entry | plans()])
