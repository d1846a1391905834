from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import sweep


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description=(sweep.__doc__ or "").split("\n")[0]
    )
    parser.add_argument("results", type=Path, help="the CSV file to write")
    parser.add_argument("--seconds", type=float, default=45, help="when to stop (%(default)s)")
    parser.add_argument("--without", action="append", default=[], help="a plan that is known to hang")
    parser.add_argument(
        "--program", type=Path, default=sweep.ROOT / "build" / "sweep", help="where it is built"
    )
    options = parser.parse_args()
    program = sweep.build(options.program)
    ends = time.monotonic() + options.seconds
    output = options.results.with_suffix(".part")
    without: list[str] = options.without
    with output.open("w+", encoding="utf-8") as file:
        while (left := ends - time.monotonic()) > 1:
            run = sweep.command(program, left, 0, without)
            status = subprocess.run(run, stdout=file, timeout=left + 15).returncode
            if status != sweep.HUNG:
                break
            file.seek(0)
            hung = sweep.records(file)[-1]["plan"]
            print(f"{hung} hung, and is left out", flush=True)
            without.append(hung)
            file.seek(0)
            file.truncate()
    found = sweep.records(output.read_text(encoding="utf-8").splitlines())
    sweep.write(options.results, found)
    output.unlink()
    timed = [entry for entry in found if "us" in entry]
    difference = max((entry["error"] for entry in timed), default=0.0)
    print(f"{len(timed)} cuts timed; largest difference between cuts {difference:.1e}")
    return 0 if timed and status == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
