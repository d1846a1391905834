"""`python -m seqkernels explain`: runs a program, and says which kernels its recurrent layers ran on.

The program runs as by `python script.py` or `python -m module`: with its own `sys.argv`, `sys.path[0]` and
`__main__`, and with its exit status.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import runpy
import sys
import warnings
from collections.abc import Sequence
from types import TracebackType

from ._call_table import table
from ._calls import Calls, Enough

__all__ = ["NOTHING_CALLED", "main", "parser"]

# The exit status where the program succeeds, and has called no recurrent layer.
NOTHING_CALLED = 3
DESCRIPTION = """\
Run a program, and say of each recurrent layer that it calls which kernel ran it, why nothing faster, how
often it was called, with what, and how long its forward took. Layers of torch.nn are shown with what would
run them after seqkernels.fuse(model). The table comes at the end, also of a program that raises, exits, or
is stopped with Ctrl-C.
"""
EPILOG = f"""\
What is not seen: layers inside of code that torch.compile or torch.jit has compiled, calls in other
processes, and calls of a layer's forward by itself. On a GPU, each call of a layer waits until it is done.

exit status: that of the program; 0 after --calls; {NOTHING_CALLED} where the program succeeds and has called
no recurrent layer.

example: python -m seqkernels explain --calls 100 train.py --epochs 3
"""


def parser() -> argparse.ArgumentParser:
    """The command's own options; what comes after the program's name is the program's."""
    made = argparse.ArgumentParser(
        prog="python -m seqkernels explain",
        usage="%(prog)s [-h] [--calls N] (script.py | -m module) [args ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--calls", metavar="N", type=_positive, help="end the program after N calls of recurrent layers"
    )
    made.add_argument("-m", metavar="module", dest="module", help="run a module, as python -m does")
    made.add_argument("script", nargs="?", help="the program, with its arguments behind it")
    return made


def _positive(text: str) -> int:
    with contextlib.suppress(ValueError):
        if int(text) > 0:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")


def main(argv: Sequence[str]) -> int:
    """Run a program and print the table of its calls.

    The process is the program's: `sys.argv` and `sys.path` stay as it has them.

    Args:
        argv: What comes after "explain".

    Returns:
        The exit status.
    """
    own = _own_arguments(argv)
    options = parser().parse_args(argv[:own])
    name, is_module = (options.module, True) if options.module else (options.script, False)
    if name is None:
        parser().error("a script is needed, or -m and a module")
    if wrong := _why_not_there(name, is_module):
        parser().error(wrong)
    sys.argv = [name, *argv[own:]]
    return _run(name, is_module, options.calls)


def _own_arguments(argv: Sequence[str]) -> int:
    """How many of the arguments are this command's, the name of the program included."""
    place = 0
    while place < len(argv):
        word = argv[place]
        place += 1
        if word == "-m" or (word.startswith("-m") and not word.startswith("--")):
            return place + (word == "-m")
        if word == "--calls":
            place += 1
        elif word == "--":
            return place + 1
        elif not word.startswith("-"):
            break
    return place


def _why_not_there(name: str, is_module: bool) -> str:
    """What is wrong with the name of a program; empty if it can be run."""
    if not is_module:
        return "" if os.path.exists(name) else f"there is no script {name!r}"
    try:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations is not None:
            name = f"{name}.__main__"
            spec = importlib.util.find_spec(name)
    except (ModuleNotFoundError, ValueError):
        spec = None
    return "" if spec is not None else f"there is no module {name!r}"


def _run(name: str, is_module: bool, limit: int | None) -> int:
    # The user did not ask for global hooks, and they do nothing to what was compiled.
    warnings.filterwarnings("ignore", message=r"Using `torch\.compile\(module\)` when there are global hooks")
    if not is_module and not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.realpath(name))
    process, output = os.getpid(), sys.stdout
    calls, status, ended, kept = Calls(limit), 0, "", {}
    try:
        with calls.recorded():
            if is_module:
                kept = runpy.run_module(name, run_name="__main__", alter_sys=True)
            else:
                kept = runpy.run_path(name, run_name="__main__")
    except Enough:
        ended = f"ended after {calls.total} calls (--calls)"
    except SystemExit as error:
        status = _status(error.code)
    except KeyboardInterrupt as error:
        if limit is not None and calls.total >= limit:
            ended = f"ended after {calls.total} calls (--calls)"
        else:
            _show(error)
            ended, status = "interrupted", 130
    except BaseException as error:
        _show(error)
        ended, status = f"ended by {type(error).__name__}", 1
    if os.getpid() != process:  # a child of the program that has come to its end
        return status
    title = f"seqkernels explain: {name}" + (f", {ended}" if ended else "")
    with contextlib.suppress(OSError, ValueError):  # the program may have closed it
        sys.stderr.flush()
        print(f"\n{title}\n{table(calls)}", file=output, flush=True)
    kept.clear()
    return status or (NOTHING_CALLED if not calls.rows and not ended else 0)


def _status(code: object) -> int:
    """The exit status of `sys.exit(code)`, which prints what is no number."""
    if code is None or isinstance(code, int):
        return int(code or 0)
    print(code, file=sys.stderr)
    return 1


def _show(error: BaseException) -> None:
    """What Python prints of an error that nobody catches, without the frames around the program."""
    trace = error.__traceback__
    while trace is not None and _is_around(trace):
        trace = trace.tb_next
    sys.stdout.flush()
    sys.excepthook(type(error), error.with_traceback(trace), trace)


def _is_around(trace: TracebackType) -> bool:
    name = trace.tb_frame.f_globals.get("__name__")
    return name in (__name__, "runpy", "contextlib")
