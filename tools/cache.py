# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Things that are slow to make and may be kept: base images of machines and of containers.

An entry is a folder named after what it is and a digest of the recipe it was made by. It is made again when
the recipe changes, and when it is older than ``MAXIMUM_AGE`` days, because a Debian of last year is no test
of today's. An entry appears whole or not at all, and two makers at once make it once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

MAXIMUM_AGE = 14
"""Days after which an entry is made again; the variable LAB_CACHE_DAYS overrides it."""


class ToolError(Exception):
    """Something that a person must be told, in one sentence."""


def say(message: str) -> None:
    """Tell the person what goes on, on the error stream, so that the output stays for results."""
    print(message, file=sys.stderr, flush=True)


def folder() -> Path:
    """Return the cache folder of this user; it exists afterwards."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    path = Path(base) / "lab-server"
    path.mkdir(parents=True, exist_ok=True)
    return path


def as_root(*command: str) -> list[str]:
    """Return a command as root would run it: unchanged for root, else through sudo."""
    return list(command) if os.geteuid() == 0 else ["sudo", *command]


def run(command: Sequence[str], *, quiet: bool = True) -> None:
    """Run a command; ToolError with the end of its output when it fails."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join((done.stdout or "").splitlines()[-15:])
        raise ToolError(
            f"{' '.join(command[:3])} ... failed with exit status {done.returncode}.\n{tail}".rstrip()
        )


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold an exclusive lock on ``path`` as long as the block runs; it dies with the process.

    ``waiting`` is said where somebody else holds it.
    """
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                say(waiting)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Entry:
    """One thing in the cache: ``name``, and the ``recipe`` (JSON data) that decides what it contains."""

    name: str
    recipe: Mapping[str, object]

    @property
    def digest(self) -> str:
        """The first 12 hexadecimal digits of the digest of the recipe."""
        text = json.dumps(self.recipe, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def path(self) -> Path:
        """Where the entry lies, or will lie."""
        return folder() / f"{self.name}-{self.digest}"

    def age(self) -> float | None:
        """Return the age in days, or None when it is not there."""
        try:
            return (time.time() - (self.path / "made").stat().st_mtime) / 86400
        except FileNotFoundError:
            return None

    def state(self) -> str:
        """Return what is to be said of the entry: ``missing``, ``stale ...`` or ``fresh ...``."""
        age = self.age()
        if age is None:
            return "missing"
        limit = float(os.environ.get("LAB_CACHE_DAYS") or MAXIMUM_AGE)
        word = "fresh" if 0 <= age <= limit else "stale"
        return f"{word} (recipe {self.digest}, {age:.1f} days old, made again after {limit:g})"

    def get(self, make: Callable[[Path], None], *, force: bool = False) -> Path:
        """Return the folder of the entry, made by ``make(new folder)`` when it is missing or stale."""
        with locked(folder() / f"{self.name}.lock"):
            state = self.state()
            if state.startswith("fresh") and not force:
                return self.path
            say(f"{self.name}: {'made again as asked' if force else state}; making it ...")
            started = time.monotonic()
            work = Path(tempfile.mkdtemp(prefix=f".{self.name}-", dir=folder()))
            try:
                # mkdtemp keeps everybody else out; what is in here is public.
                work.chmod(0o755)
                make(work)
                (work / "recipe.json").write_text(json.dumps(self.recipe, indent=1, sort_keys=True) + "\n")
                (work / "made").touch()
                self._replace(work)
            finally:
                shutil.rmtree(work, ignore_errors=True)
            say(f"{self.name}: made in {time.monotonic() - started:.0f} s, {self.path}")
            return self.path

    def _replace(self, work: Path) -> None:
        """Put ``work`` in the place of the entry and remove those of other recipes."""
        for old in folder().glob(f"{self.name}-{'?' * 12}"):
            shutil.rmtree(old)
        work.rename(self.path)
