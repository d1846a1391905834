"""What a step costs in machine code, against docs/kernels-cuda-figures.md. Needs nvcc's output, no GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import cuda_sass
from benchmarks.cuda_tables import FIGURES, ROOT, SASS_TARGET
from seqkernels._extension import BUILD_CONFIG

TITLES = {
    "lstm": "LSTM",
    "lstm_projected": "LSTM projected",
    "gru": "GRU",
    "gru_reset_before": "GRU reset before",
    "rnn_tanh": "RNN tanh",
    "rnn_relu": "RNN relu",
}
GROWTH = 1.05
# Instructions of a warp with one quarter of one tile, on tensor cores.
MOST_TO_POLL = {"forward": 130, "backward": 150}

needs_build = pytest.mark.skipif(
    SASS_TARGET not in BUILD_CONFIG["cuda_targets"] or not all(map(cuda_sass.find_tool, cuda_sass.TOOLS)),
    reason=f"no build for {SASS_TARGET}, or no {' and '.join(cuda_sass.TOOLS)}",
)


def table() -> dict[str, list[int]]:
    """The document's figures by kernel."""
    text = FIGURES.read_text(encoding="utf-8")
    section = text[text.index("<!-- machine code:") : text.index("<!-- /machine code -->")]
    rows = re.findall(r"^\| ((?:forward|backward) [^|]+?) \|(.*)\|$", section, re.MULTILINE)
    return {title: [int(cell) for cell in cells.split("|")] for title, cells in rows}


@needs_build
@pytest.mark.parametrize("source", TITLES)
def test_no_step_grows(source: str) -> None:
    folder = ROOT / "build" / "objects"
    objects = [folder / f"csrc_cuda_{source}{part}.cu.o" for part in ("", "_transition")]
    if not all(path.is_file() for path in objects):
        pytest.skip("no build folder: seqkernels was built elsewhere")
    kernels = cuda_sass.persistent_kernels(objects, [SASS_TARGET])
    known = table()
    of_cell = re.compile(rf"\w+ {TITLES[source]} \w\w(16|32) ")
    assert {k.title for k in kernels} == set(filter(of_cell.match, known))
    for kernel in kernels:
        found = cuda_sass.figures(kernel)
        step, to_poll, to_publish, *_, early_waits = known[kernel.title]
        assert found.step <= GROWTH * step, kernel.title
        assert found.publish_to_poll <= GROWTH * to_poll, kernel.title
        assert found.barrier_to_publish <= GROWTH * to_publish, kernel.title
        assert min(found.step, found.publish_to_poll, found.barrier_to_publish) > 0, kernel.title
        assert found.early_waits <= early_waits, kernel.title
        assert found.waits == found.fences == found.invalidations == found.narrow_loads == 0, kernel.title
        if kernel.title.endswith("one tile") and "fp32" not in kernel.title:
            assert found.publish_to_poll <= MOST_TO_POLL[kernel.title.split()[0]], kernel.title


# ---------------------------------------------------------------- it bites


def listing(*instructions: tuple[str, int, int | None]) -> str:
    """What nvdisasm would print of (text, scoreboards waited for, scoreboard set); ">" begins the loop."""
    lines = [".text._ZN10seqkernels4cuda17persistent_kernel:"]
    for n, (text, waits, sets) in enumerate(instructions):
        if text.startswith(">"):
            lines.append(".L_x_1:")
        bits = (waits << 11 | (7 if sets is None else sets) << 5 | 4) << 41
        lines.append(f"        /*{16 * n:04x}*/   {text.lstrip('>')} ;   /* 0x{0:016x} */")
        lines.append(f"                                            /* 0x{bits:016x} */")
    return "\n".join(lines)


GOOD = [
    (">MOV R1, R2", 0, None),
    ("LDG.E.128.STRONG.GPU R4, [R2.64]", 0, 0),
    ("ISETP.NE.AND P3, PT, R4, -0x1, PT", 1, None),
    ("VOTE.ALL P3, P3", 0, None),
    ("HMMA.16816.F32.BF16 R8, R16, R4, RZ", 0, None),
    ("MEMBAR.ALL.GPU", 0, None),
    ("BAR.SYNC.DEFER_BLOCKING 0x0", 0, None),
    ("FADD R1, R1, R2", 0, None),
    ("STG.E.STRONG.GPU [R6.64], R1", 0, None),
    ("IADD3 R2, R2, R3, RZ", 0, None),
    ("@P0 BRA `(.L_x_1)", 0, None),
    ("EXIT", 0, None),
]


def figures(instructions: list[tuple[str, int, int | None]]) -> cuda_sass.Figures:
    (kernel,) = cuda_sass.parse(listing(*instructions), SASS_TARGET)
    return cuda_sass.figures(kernel)


def test_figures_of_a_loop() -> None:
    assert figures(GOOD) == cuda_sass.Figures(
        step=11,
        publish_to_poll=4,
        barrier_to_publish=2,
        waits=0,
        fences=0,
        invalidations=0,
        narrow_loads=0,
        early_waits=0,
    )


def test_a_fence_behind_what_is_published_is_found() -> None:
    late = [*GOOD[:5], *GOOD[6:9], GOOD[5], *GOOD[9:]]
    assert figures(late).fences == 1


def test_loads_awaited_one_by_one_are_found() -> None:
    one_by_one = [*GOOD[:4], ("LDG.E.128.STRONG.GPU R4, [R2.64]", 0, 2), *GOOD[4:]]
    one_by_one[5] = ("HMMA.16816.F32.BF16 R8, R16, R4, RZ", 4, None)
    one_by_one.insert(6, ("VOTE.ALL P3, P3", 0, None))
    one_by_one[5], one_by_one[6] = one_by_one[6], one_by_one[5]
    assert figures(one_by_one).waits == 1


def test_an_invalidation_of_l1_is_found() -> None:
    assert figures([*GOOD[:6], ("CCTL.IVALL", 0, None), *GOOD[6:]]).invalidations == 1


def test_weights_loaded_word_by_word_are_found() -> None:
    def loaded(width: str) -> int:
        return figures([*GOOD[:4], (f"LDS{width} R16, [R30]", 0, 3), *GOOD[4:]]).narrow_loads

    assert [loaded(width) for width in ("", ".64", ".128")] == [1, 1, 0]


def test_inputs_awaited_before_a_poll_are_found() -> None:
    def waits(*after_the_load: tuple[str, int, int | None], poll: int = 0) -> int:
        load = ("LDG.E.U16 R20, [R22.64]", 0, 5)
        polling = ("LDG.E.128.STRONG.GPU R4, [R2.64]", poll, 0)
        return figures([GOOD[0], polling, *GOOD[2:9], load, *after_the_load, *GOOD[9:]]).early_waits

    assert waits() == 0
    assert waits(("IMAD.U32 R20, R20, 0x10000, RZ", 1 << 5, None)) == 1
    assert waits(poll=1 << 5) == 1  # the poll itself has to wait: their loads share a scoreboard
    assert waits(("IMAD.U32 R20, R20, 0x10000, RZ", 1 << 4, None)) == 0


def test_a_longer_branch_counts() -> None:
    branch = [*GOOD[:9], ("@P1 BRA `(.L_x_2)", 0, None), *[("NOP", 0, None)] * 5, *GOOD[9:]]
    text = listing(*branch).replace("        /*00f0*/", ".L_x_2:\n        /*00f0*/")
    (kernel,) = cuda_sass.parse(text, SASS_TARGET)
    assert cuda_sass.figures(kernel).publish_to_poll == 10


def test_titles() -> None:
    name = "17persistent_kernelINS0_7ForwardINS_5cells4LstmENS0_8BFloat16EEES5_LNS0_5ScopeE0ELi1ELi1EEEvNT_7P"
    assert cuda_sass.Kernel(name, SASS_TARGET).title == "forward LSTM bf16 cluster, one tile"
    of_teams = cuda_sass.Kernel(name.replace("E0ELi1ELi1", "E1ELi2ELi2"), SASS_TARGET)
    assert of_teams.title == "forward LSTM bf16 grid, two tiles, two teams"


def test_tools_are_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "nvdisasm-of-the-toolkit"
    tool.touch(mode=0o755)
    assert cuda_sass.find_tool(tool.name) == str(tool)
    assert cuda_sass.find_tool("no-such-tool") is None
