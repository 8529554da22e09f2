# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How fast the shared data are copied and compared when they move, beside ``rsync -a`` of the same tree.

Both copy by turns; what counts is the median. Ends with 1 if the copy has less than 0.8 of rsync's speed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "plugins/module_utils"))

from _core import datamove, sametree

FILES, SMALL, LARGE, ROUNDS = 5000, 4 << 10, 32 << 20, 5
AT_LEAST = 0.8


def make_tree(top: Path) -> int:
    """Make a tree of many small files and a few large ones; return its bytes."""
    content = os.urandom(LARGE)
    for number in range(FILES):
        folder = top / f"folder-{number % 50}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_bytes(content[number : number + SMALL])
    for number in range(8):
        (top / f"large-{number}").write_bytes(content)
    return FILES * SMALL + 8 * LARGE


def copied(command: tuple[str, ...], source: Path, target: Path) -> float:
    """Copy to a new folder; return the seconds, with the time until all is on the disk."""
    shutil.rmtree(target, ignore_errors=True)  # the first time there is none
    target.mkdir()
    os.sync()
    began = time.monotonic()
    subprocess.run([*command, f"{source}/", f"{target}/"], check=True)
    subprocess.run(["sync", "-f", str(target)], check=True)
    return time.monotonic() - began


def compared(source: Path, target: Path, lines: list[sametree.Line]) -> tuple[float, list[sametree.Line]]:
    """Compare both; return the seconds, and the lines for the next comparison."""
    kept: list[sametree.Line] = []
    descriptors = [os.open(path, os.O_RDONLY) for path in (source, target)]
    began = time.monotonic()
    verdict = sametree.compare(*descriptors, lines, kept.append)
    seconds = time.monotonic() - began
    for descriptor in descriptors:
        os.close(descriptor)
    if verdict.different:
        raise SystemExit(f"The copy differs: {sametree.told(verdict.different)}")
    return seconds, kept


def main() -> int:
    """Measure, and say it."""
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        source, target = Path(folder) / "source", Path(folder) / "target"
        source.mkdir()
        size = make_tree(source)
        plain, ours = [], []
        for _round in range(ROUNDS):
            plain.append(copied(("rsync", "-a"), source, target))
            ours.append(copied((*datamove.RSYNC, "--delete", "--exclude=/lost+found"), source, target))
        ratio = statistics.median(plain) / statistics.median(ours)
        sys.stdout.write(
            f"{FILES + 8} files, {size >> 20} MiB: rsync -a {statistics.median(plain):.2f} s, "
            f"with links, ACLs, attributes and holes {statistics.median(ours):.2f} s: "
            f"{ratio:.2f} of its speed\n"
        )
        time.sleep(3)
        first, lines = compared(source, target, [])
        again, _lines = compared(source, target, lines)
        sys.stdout.write(
            f"compared by SHA-256 in {first:.2f} s; again, with nothing changed, in {again:.2f} s\n"
        )
    return 0 if ratio >= AT_LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
