"""What a step of the persistent kernels costs, read off their machine code: no GPU needed.

    python -m benchmarks.cuda_sass                   a line for every persistent kernel of the last build
    python -m benchmarks.cuda_sass --listing NAME    the loop of one, with stalls and scoreboards

A persistent kernel has one loop over time steps, and in each step publishes, polls for what others published,
multiplies, meets at a barrier and does the pointwise part; of several stages, once for each. Instructions are
counted along the longest way through the loop's code that repeats nothing, so spinning counts once and of two
branches the longer: more than most steps take, never less than any.

Needs cuobjdump and nvdisasm: of the CUDA toolkit, or the wheels nvidia-cuda-cuobjdump and
nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("cuobjdump", "nvdisasm")
CELLS = {  # by mangled names
    "4Lstm": "LSTM",
    "13LstmProjected": "LSTM projected",
    "3Gru": "GRU",
    "14GruResetBefore": "GRU reset before",
    "13LstmLayerNorm": "LSTM layer norm",
    "18LstmLayerNormJoint": "LSTM layer norm joint",
    "12GruLayerNorm": "GRU layer norm",
    "4Tanh": "RNN tanh",
    "4Relu": "RNN relu",
}


@dataclass
class Instruction:
    """One of a kernel's, and what the 128 bits say beside its text."""

    address: int
    guard: str  # such as "@!P0", or empty
    opcode: str  # with its modifiers
    operands: str
    stall: int  # cycles until the next one of the warp
    sets: int | None  # the scoreboard that its result releases
    waits: int  # mask of the scoreboards that it waits for
    target: int | None = None  # of a branch

    @property
    def publishes(self) -> bool:
        """Whether it stores what other blocks wait for: strong, and one or two words a lane."""
        return bool(re.match(r"STG?\.E(\.64)?\.STRONG", self.opcode))

    @property
    def ends(self) -> bool:
        return not self.guard and (self.opcode.split(".")[0] in ("EXIT", "RET", "BRX", "JMX") or self.jumps)

    @property
    def jumps(self) -> bool:
        """Whether it goes elsewhere for certain."""
        return (
            not self.guard and self.opcode in ("BRA", "BRA.U.ANY") and not re.match(r"!?U?P\d", self.operands)
        )


def variant(symbol: str) -> str:
    """What a persistent kernel exchanges through, how many quarters and tiles a warp has, teams a block.

    And whether it has what happens between steps.
    """
    scope = "cluster" if "ScopeE0E" in symbol else "grid"
    tiles, teams = map(int, re.findall(r"Li(\d)E", symbol)[-2:])
    more = ", two teams" * (teams == 2) + ", transition" * ("14WithTransition" in symbol)
    return f"{scope}, {('several', 'one tile', 'two tiles')[tiles]}{more}"


@dataclass
class Kernel:
    name: str  # as the compiler mangled it
    target: str  # "sm_90a"
    code: list[Instruction] = field(default_factory=list)

    # ------------------------------------------------------------ what it is

    @property
    def title(self) -> str:
        """Such as "forward LSTM bf16 cluster, one tile"."""
        operands = {"8TFloat32": "tf32", "8BFloat16": "bf16", "7Float16": "fp16"}
        cell = next(title for key, title in CELLS.items() if key in self.name)
        operand = next((title for key, title in operands.items() if key in self.name), "fp32")
        direction = "forward" if "7Forward" in self.name else "backward"
        return f"{direction} {cell} {operand} {variant(self.name)}"

    # ------------------------------------------------------------ ways through it

    @cached_property
    def _index(self) -> dict[int, int]:
        return {instruction.address: n for n, instruction in enumerate(self.code)}

    def _next(self, n: int) -> Iterator[int]:
        """Where instruction n may go, but for the detours of warps whose lanes have parted (BRA.DIV)."""
        instruction = self.code[n]
        if (
            instruction.target is not None
            and "DIV" not in instruction.opcode
            and instruction.opcode != "BSSY"
        ):
            yield self._index[instruction.target]
        if not instruction.ends and n + 1 < len(self.code):
            yield n + 1

    @cached_property
    def _walked(self) -> tuple[list[int], set[tuple[int, int]]]:
        """What can be reached, each before all that it goes to, and where loops close."""
        state: dict[int, int] = {}
        order: list[int] = []
        closing: set[tuple[int, int]] = set()
        stack: list[tuple[int, Iterator[int]]] = [(0, self._next(0))]
        state[0] = 1
        while stack:
            n, following = stack[-1]
            for m in following:
                if m not in state:
                    state[m] = 1
                    stack.append((m, self._next(m)))
                    break
                if state[m] == 1:
                    closing.add((n, m))
            else:
                state[n] = 2
                order.append(n)
                stack.pop()
        return order[::-1], closing

    @cached_property
    def loop(self) -> tuple[int, int]:
        """First and last instruction of the loop over the steps: the outermost that has a barrier."""
        barriers = [n for n, i in enumerate(self.code) if i.opcode.startswith("BAR.SYNC")]
        # Two teams meet at barriers with a number of threads; at those of the block, weights are loaded.
        of_teams = [n for n in barriers if "," in self.code[n].operands]
        barriers = of_teams or barriers
        found = [(m, n) for n, m in self._walked[1] if any(m <= b <= n for b in barriers)]
        return max(found, key=lambda edge: edge[1] - edge[0])

    @cached_property
    def _followers(self) -> dict[int, list[int]]:
        """Where each of the loop's instructions may go within the same step."""
        first, last = self.loop
        closing = self._walked[1]
        return {
            n: [m for m in self._next(n) if (n, m) not in closing and first <= m <= last]
            for n in range(first, last + 1)
        }

    def _longest(self, sources: set[int], sinks: set[int], stops: Iterable[int] = frozenset()) -> int | None:
        """Instructions on the longest way from one of the first, which is not counted, to one of the second,
        past no other of either and none of `stops`."""
        length: dict[int, int] = dict.fromkeys(sources, 0)
        best = None
        for n in self._walked[0]:
            if n not in length:
                continue
            for m in self._followers.get(n, []):
                if m in sinks:
                    best = max(best or 0, length[n] + 1)
                elif m not in sources and m not in stops:
                    length[m] = max(length.get(m, 0), length[n] + 1)
        return best

    def between(self, begin: set[int], end: set[int], stops: Iterable[int] = frozenset()) -> int:
        """Instructions from one of `begin` to the first of `end` in the same step, past none of `stops`.

        -1 if there is no way.
        """
        way = self._longest(begin, end, stops)
        return -1 if way is None else way

    def reaches(self, begin: set[int], end: set[int], stops: set[int]) -> bool:
        """Whether there is a way within a step from one to the other that passes none of `stops`."""
        front, seen = list(begin), set(begin)
        while front:
            for m in self._followers[front.pop()]:
                if m in end:
                    return True
                if m not in seen and m not in stops:
                    seen.add(m)
                    front.append(m)
        return False

    def between_steps(self, begin: set[int], end: set[int], stops: Iterable[int] = frozenset()) -> int:
        """Instructions from one of `begin` to the first of `end` in the next step, past none of `stops`.

        -1 if there is no way.
        """
        first, last = self.loop
        before, after = self._longest(begin, {last}, stops), self._longest({first}, end, stops)
        return -1 if before is None or after is None else before + after + 1

    def at(self, pattern: str) -> set[int]:
        """The loop's instructions whose opcode and operands begin so."""
        first, last = self.loop
        return {
            n
            for n in range(first, last + 1)
            if re.match(pattern, f"{self.code[n].opcode} {self.code[n].operands}")
        }


_CODE = re.compile(r"/\*([0-9a-f]+)\*/\s+(@!?U?P\w+)?\s*([A-Z]\S*)\s*([^;]*?)\s*;")
_LABEL = re.compile(r"`\((\.L_\S+)\)")


def parse(listing: str, target: str, wanted: str = "") -> list[Kernel]:
    """The kernels in what `nvdisasm -hex` printed, of those with `wanted` in their names."""
    kernels = []
    for part in re.split(r"^\.text\.", listing, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition(":")
        if wanted in name and (kernel := _kernel(name, target, body)).code:
            kernels.append(kernel)
    return kernels


def _kernel(name: str, target: str, body: str) -> Kernel:
    """A kernel from its listing: two lines an instruction, each ending in 64 of its bits; labels between."""
    kernel, labels, jumps = Kernel(name, target), {}, []
    waiting: list[str] = []
    for line in body.splitlines():
        if line.startswith(".L_"):
            waiting.append(line.split(":")[0])
            continue
        text = line.strip()
        if not text.startswith("/*"):
            continue
        if text.startswith("/* 0x"):
            if kernel.code:
                bits = int(text[3:21], 16) >> 41
                last = kernel.code[-1]
                last.stall, last.waits = bits & 15, bits >> 11 & 63
                last.sets = None if (bits >> 5 & 7) == 7 else bits >> 5 & 7
        elif found := _CODE.match(text):
            address = int(found[1], 16)
            instruction = Instruction(address, found[2] or "", found[3], found[4], 0, None, 0)
            labels.update(dict.fromkeys(waiting, address))
            waiting.clear()
            if branch := _LABEL.search(found[4]):
                jumps.append((instruction, branch[1]))
            kernel.code.append(instruction)
    for instruction, label in jumps:
        instruction.target = labels.get(label)
    return kernel


def find_tool(name: str) -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [os.path.join(home, "bin") for home in homes if home]
    places += [str(path) for path in Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin")]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def persistent_kernels(objects: Iterable[Path], targets: Sequence[str] = ()) -> list[Kernel]:
    """Those in some object files, of these targets or all; an error where the tools are missing."""
    cuobjdump, nvdisasm = (find_tool(tool) for tool in TOOLS)
    if cuobjdump is None or nvdisasm is None:
        raise FileNotFoundError(f"reading machine code needs {' and '.join(TOOLS)}")
    found = []
    for path in objects:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [cuobjdump, "-xelf", "all", path.resolve()], cwd=folder, check=True, capture_output=True
            )
            for image in sorted(Path(folder).glob("*.cubin")):
                target = re.findall(r"sm_\d+a?", image.name)[-1]
                if targets and target not in targets:
                    continue
                listing = subprocess.run(
                    [nvdisasm, "-c", "-hex", image], check=True, capture_output=True, text=True
                ).stdout
                found += parse(listing, target, "persistent_kernel")
    return found


# ---------------------------------------------------------------- what is counted


@dataclass(frozen=True)
class Figures:
    """What is counted of one persistent kernel, in instructions of a warp."""

    step: int  # on the longest way through the loop
    publish_to_poll: int  # from the last word that is published to the first that is polled for
    barrier_to_publish: int  # from the barrier to the first word that is published
    waits: int  # of MMAs, each for loads of the exchange by itself: none, for all are awaited together
    fences: int  # between the last word published and the next poll: none, for they stand before the barrier
    invalidations: int  # of L1 in the loop: none
    narrow_loads: int  # of single words of weights from shared memory, which meet in banks: none
    early_waits: int  # for what a step loads, between publishing and polling: it is to arrive meanwhile


def figures(kernel: Kernel) -> Figures:
    first, last = kernel.loop
    loop = range(first, last + 1)
    publishes = {n for n in loop if kernel.code[n].publishes}
    # Those that what is published follows upon: two teams meet once more behind it.
    all_barriers = kernel.at(r"BAR\.SYNC")
    barriers = {n for n in all_barriers if kernel.reaches({n}, publishes, all_barriers)}
    loads = kernel.at(r"LDG?\.E\.128\.STRONG") or kernel.at(r"LDS\.128")
    # Weights and partial sums are read from shared memory in the same way: polls are what a vote follows.
    votes, others = kernel.at(r"VOTE"), barriers | kernel.at(r"HMMA")
    polls = {n for n in loads if kernel.reaches({n}, votes, others)}
    fences = kernel.at(r"MEMBAR")
    return Figures(
        step=kernel.between({first}, {last}) + 1,
        # Of several stages, in the step that publishes, too.
        publish_to_poll=max(
            kernel.between_steps(publishes, polls, barriers), kernel.between(publishes, polls, barriers)
        ),
        barrier_to_publish=kernel.between(barriers, publishes),
        waits=_waits(kernel, polls),
        fences=sum(
            _reaches(kernel, publishes, {fence}, polls | barriers)
            and _reaches(kernel, {fence}, polls, barriers)
            for fence in fences
        ),
        invalidations=len(kernel.at(r"CCTL\.IVALL")),
        narrow_loads=_narrow_loads(kernel),
        early_waits=_early_waits(kernel, publishes, polls),
    )


def _reaches(kernel: Kernel, begin: set[int], end: set[int], stops: set[int]) -> bool:
    """Whether there is a way from one to the other, in this step or into the next, past none of `stops`."""
    first, last = kernel.loop
    return kernel.reaches(begin, end, stops) or (
        (bool(begin & {last}) or kernel.reaches(begin, {last}, stops))
        and (bool(end & {first}) or kernel.reaches({first}, end, stops))
    )


def _waits(kernel: Kernel, polls: set[int]) -> int:
    """MMAs that wait for a scoreboard which, as the code stands, was last set by a poll."""
    first, last = kernel.loop
    setter: dict[int, bool] = {}
    found = 0
    for n in range(first, last + 1):
        instruction = kernel.code[n]
        if instruction.opcode.startswith("HMMA"):
            found += any(setter.get(board) for board in range(6) if instruction.waits >> board & 1)
        for board in range(6):
            if instruction.waits >> board & 1:
                setter.pop(board, None)
        if instruction.sets is not None:
            setter[instruction.sets] = n in polls
    return found


def _early_waits(kernel: Kernel, publishes: set[int], polls: set[int]) -> int:
    """Instructions that, as the code stands, wait for ordinary loads after the last word published.

    Up to the first poll, which counts if it waits.
    """
    first, last = kernel.loop
    setter: dict[int, bool] = {}
    found = 0
    for n in [
        *range(max(publishes, default=last) + 1, last + 1),
        *range(first, min(polls, default=first) + 1),
    ]:
        instruction = kernel.code[n]
        awaited = [setter.pop(board, False) for board in range(6) if instruction.waits >> board & 1]
        found += any(awaited)
        if instruction.sets is not None:
            is_ordinary = instruction.opcode.startswith("LDG") and "STRONG" not in instruction.opcode
            setter[instruction.sets] = is_ordinary or setter.get(instruction.sets, False)
    return found


def _narrow_loads(kernel: Kernel) -> int:
    """Loads from shared memory of less than 16 bytes that, as the code stands, an MMA's weights come from."""
    first, last = kernel.loop
    writer: dict[int, int] = {}  # of each register, the instruction before that wrote it
    found = set()
    for n in range(first, last + 1):
        opcode, operands = kernel.code[n].opcode, kernel.code[n].operands
        registers = [int(r) for r in re.findall(r"\bR(\d+)", operands)]
        if opcode.startswith("HMMA") and len(registers) > 1:
            found |= {writer[r] for r in range(registers[1], registers[1] + 4) if r in writer}
        if registers and operands.startswith("R"):
            for r in range(registers[0], registers[0] + 4):
                writer.pop(r, None)
            if opcode.startswith("LDS") and ".128" not in opcode:
                writer[registers[0]] = n
    return len(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--listing", help="print the loop of the kernels with this in their title")
    parser.add_argument("objects", nargs="*", type=Path)
    arguments = parser.parse_args()
    objects = arguments.objects or sorted((ROOT / "build").glob("objects/csrc_cuda_*.cu.o"))
    for kernel in persistent_kernels(objects):
        if arguments.listing is None:
            print(f"{kernel.target} {kernel.title:40} {figures(kernel)}")
        elif arguments.listing in kernel.title:
            first, last = kernel.loop
            targets = {i.target for i in kernel.code}
            for i in kernel.code[first : last + 1]:
                waits = "".join(str(b) for b in range(6) if i.waits >> b & 1)
                mark = ">" if i.address in targets else " "
                print(
                    f"{mark}{i.address:05x} {i.stall:2} w{waits:4} s{'' if i.sets is None else i.sets!s:2}"
                    f" {i.guard:5} {i.opcode} {i.operands}"
                )


if __name__ == "__main__":
    main()
