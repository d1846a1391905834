"""What the tests of all programs share: a folder for each test's results, and training in two processes."""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

for module in ("matplotlib", "rich", "safetensors"):
    pytest.importorskip(module)

Main = Callable[[list[str]], int]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs write to out/ below the current folder."""
    monkeypatch.chdir(tmp_path)


def _child(main: Main, arguments: list[str], environment: dict[str, str]) -> int:
    """Fork; in the child, run `main` in the environment that torchrun would give it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.environ.update(environment)
            torch.set_num_threads(1)
            status = main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def _run_in_two(main: Main, arguments: list[str], seconds: float = 60) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [{"RANK": str(n), "LOCAL_RANK": str(n), **common} for n in range(2)]
    running = {_child(main, arguments, rank) for rank in ranks}
    deadline = time.monotonic() + seconds
    failed: str | None = None
    while running and not failed:
        for child in list(running):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                running.remove(child)
                if status:
                    failed = f"a process ended with {os.waitstatus_to_exitcode(status)}"
        if running and time.monotonic() > deadline:
            failed = f"the processes were not done after {seconds} s"
        time.sleep(0.01)
    for child in running:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if failed:
        pytest.fail(failed)


@pytest.fixture
def two_processes() -> Callable[[Main, list[str]], None]:
    """`two_processes(main, arguments)`: a program's main in two processes that train together, without
    torchrun's start of several seconds; fails where one of them does not return 0."""
    return _run_in_two
