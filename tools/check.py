# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Run the tests and count them: ``check.py lint|unit|integration|molecule|test|test-all``.

``test`` runs two lanes side by side: what needs no machine, and the virtual machine, without the tests
that are marked ``thorough``. Each step writes a log under ``.vm/logs``, progress is told once a minute, and
the last line is ``N passed, M failed``.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from cache import as_root

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / ".vm" / "logs"
BIN = Path(sys.executable).parent
HEARTBEAT = 60
"""Seconds between two lines of progress of a step."""
BRIEF = "-m 'not thorough'"
"""The options of pytest that leave out what tells less in a minute than the rest."""
THOROUGH = {"LAB_TEST_LEASE_ROUNDS": "1000", "LAB_TEST_JUPYTERLAB": "1", "LAB_TEST_KILL_POINTS": "60"}
"""What asks for tests that only ``test-all`` has the time for."""
TAIL = 80
"""Lines of the log that are shown of a step that failed."""
WHY = 200
"""Characters that are shown of why a test failed."""
MOLECULE_ACTION = re.compile(r"\[[\w-]+ > (\w+)\] (?:\x1b\[\d+m)*Executed: (\w+)")

_print_lock = threading.Lock()
_running: dict[subprocess.Popen[bytes], Step] = {}
_stopped = threading.Event()
"""Set when all is to end: what a lane has not begun yet is not begun any more."""


def tell(text: str) -> None:
    """Print one line of progress; lines of two lanes do not mix."""
    with _print_lock:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


@dataclass(frozen=True)
class Step:
    """A command to run, and how the tests in it are counted."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    junit: bool = False
    """Whether it is pytest, somewhere within, and each of its tests counts."""
    molecule: bool = False
    """Whether each action of molecule counts."""
    cleanup: Sequence[str] = ()
    """A command to run when the step was killed by its time limit."""
    limit: float = 1200
    """Seconds after which it is killed."""

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return LOGS / f"{self.name.replace(' ', '-')}.log"

    @property
    def report(self) -> Path:
        """Where pytest writes its results."""
        return self.log.with_suffix(".xml")


@dataclass
class Count:
    """What came out of one step or of all."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    names: list[str] = field(default_factory=list)
    """What failed, a line each: the test, or the action of molecule, and the first words of why."""

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def python(script: str, *arguments: str) -> list[str]:
    """Return the command that runs one of our tools."""
    return [sys.executable, str(ROOT / "tools" / script), *arguments]


def tool(program: str, *arguments: str) -> list[str]:
    """Return the command of a program of the virtual environment."""
    return [str(BIN / program), *arguments]


def lint() -> list[Step]:
    """Return the steps that read the code without running it."""
    return [
        Step("ruff check", tool("ruff", "check")),
        Step("ruff format", tool("ruff", "format", "--check")),
        Step("mypy", tool("mypy")),
        Step("ansible-lint", tool("ansible-lint", "--nocolor")),
        Step("sanity", python("sanity.py")),
    ]


def unit(*, limit: float = 2400) -> list[Step]:
    """Return the step of the unit tests, ended after ``limit`` seconds."""
    command = tool("pytest", "tests/unit")
    return [Step("unit", command, {"PYTHONPATH": ".ansible/collections"}, junit=True, limit=limit)]


def integration(*, limit: float = 2400) -> list[Step]:
    """Return the steps of the tests against an engine of their own, which needs root.

    Once with the engine of Debian 13 and the newest Docker SDK; once with the engine that is installed, and
    the SDK of Debian 12 where that runs. Each is ended after ``limit`` seconds.
    """
    pytest = tool("pytest", "-p", "no:cacheprovider", "tests/integration")
    # The SDK 5.0 of Debian 12 imports distutils, which Python 3.12 does not have any more.
    sdk = ("--sdk", "debian-12") if sys.version_info < (3, 12) else ()
    steps = []
    for name, options in (("integration debian-13", ("--engine", "debian-13")), ("integration", sdk)):
        command = python("engine.py", *options, "run", *pytest)
        if os.geteuid() != 0:
            kept = ",".join(
                ("PATH", "PYTHONPATH", "PYTEST_ADDOPTS", "ANSIBLE_HOME", "ANSIBLE_CONFIG", *THOROUGH)
            )
            command = as_root(f"--preserve-env={kept}", *command)
        steps.append(Step(name, command, {"PYTHONPATH": ".ansible/collections"}, junit=True, limit=limit))
    return steps


def molecule(
    distro: str, scenario: str = "default", *, limit: float = 5200, more: Mapping[str, str] | None = None
) -> list[Step]:
    """Return the step of a scenario on a virtual machine of ``distro``, ended after ``limit`` seconds.

    ``more`` are variables that ask for tests which take a quarter of an hour each.
    """
    return [
        Step(
            f"{scenario} {distro}",
            tool("molecule", "test", "--no-command-borders", "--scenario-name", scenario),
            {
                "DISTRO": distro,
                "LAB_VM_NAME": f"molecule-{distro}",
                **(more or {}),
            },
            junit=True,
            molecule=True,
            cleanup=python("vm.py", "destroy", f"molecule-{distro}", f"molecule-{distro}-twin"),
            limit=limit,
        )
    ]


def count(step: Step, status: int) -> Count:
    """Return what a finished step counts; a step that failed counts at least one failure."""
    result = Count()
    if step.molecule:
        actions = MOLECULE_ACTION.findall(step.log.read_text(errors="replace"))
        result.passed = sum(
            1 for action, outcome in actions if outcome == "Successful" and action != "verify"
        )
        names = [action for action, outcome in actions if outcome == "Failed" and action != "verify"]
        result.names += [f"{step.name}: {name}" for name in names]
        result.failed = len(names)
    if step.junit and step.report.exists():
        # The report is pytest's own, written a moment ago.
        for suite in ElementTree.parse(step.report).iter("testsuite"):  # noqa: S314 - see above
            numbers = {key: int(suite.get(key, "0")) for key in ("tests", "failures", "errors", "skipped")}
            wrong = numbers["failures"] + numbers["errors"]
            result.failed += wrong
            result.skipped += numbers["skipped"]
            result.passed += max(0, numbers["tests"] - wrong - numbers["skipped"])
            result.names += [f"{step.name}: {text}" for text in _wrong(suite)]
    if not step.junit and status == 0:
        result.passed += 1
    if status != 0 and result.failed == 0:
        result.failed = 1
        result.names.append(f"{step.name}: exit status {status}")
    return result


def _wrong(suite: ElementTree.Element) -> list[str]:
    """Return a line for each test of a suite that failed or could not begin."""
    lines = []
    for case in suite.iter("testcase"):
        for outcome in (*case.iter("failure"), *case.iter("error")):
            why = " ".join(outcome.get("message", "").split())[:WHY]
            lines.append(f"{case.get('classname')}::{case.get('name')}: {why}")
    return lines


def run(step: Step, *, stream: bool) -> Count:
    """Run a step to its end or its time limit; ``stream`` shows its output as it comes."""
    LOGS.mkdir(parents=True, exist_ok=True)
    step.report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
        "ANSIBLE_HOME": str(ROOT / ".ansible"),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "PYTHONUNBUFFERED": "1",
        "NO_COLOR": "1",
        **step.environment,
    }
    if step.junit:
        environment["PYTEST_ADDOPTS"] = (
            f"{os.environ.get('PYTEST_ADDOPTS', '')} --junitxml={step.report}".strip()
        )
    started = time.monotonic()
    tell(f"{step.name}: starts, log {step.log.relative_to(ROOT)}")
    with step.log.open("wb") as log:
        process = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        _running[process] = step
        status = _wait(step, process, started, stream=stream)
        _running.pop(process, None)
    result = count(step, status)
    duration = time.monotonic() - started
    if status != 0 and not stream:
        with _print_lock:
            print(f"--- the end of {step.log.relative_to(ROOT)}")
            print("\n".join(f"{step.name} | {line}" for line in _lines(step.log)[-TAIL:]), flush=True)
    tell(f"{step.name}: {'ok' if status == 0 else 'FAILED'} after {duration:.0f} s, {result}")
    return result


def _wait(step: Step, process: subprocess.Popen[bytes], started: float, *, stream: bool) -> int:
    """Wait for the end of a step and tell how it goes; return its exit status."""
    shown, beat = 0, started
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.3 if stream else 2)
        now = time.monotonic()
        if stream:
            with step.log.open("rb") as log:
                log.seek(shown)
                text = log.read()
            shown += len(text)
            sys.stdout.buffer.write(text)
            sys.stdout.buffer.flush()
        elif now - beat > HEARTBEAT:
            beat = now
            last = next((line for line in reversed(_lines(step.log)) if line.strip()), "")
            tell(f"{step.name}: {(now - started) / 60:.0f} min, at: {last.strip()[:100]}")
        if process.returncode is not None:
            return process.returncode
        if now - started > step.limit:
            tell(f"{step.name}: not finished after {step.limit / 60:.0f} min, it is ended")
            _end(process)
            _clean_up(step)
            return 124


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step and what it started: kindly, so that it can put things away, then by force."""
    for number, patience in ((signal.SIGTERM, 40), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _clean_up(step: Step) -> None:
    """Put away what a step that was ended leaves: its machine is a process of its own."""
    if step.cleanup:
        subprocess.run(step.cleanup, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()


def run_lanes(lanes: Sequence[Sequence[Step]], *, stream: bool = False) -> Count:
    """Run the lanes side by side, the steps of each one after the other; return the sum."""
    results: list[Count] = []

    def lane(steps: Sequence[Step]) -> None:
        for step in steps:
            if not _stopped.is_set():
                results.append(run(step, stream=stream))

    threads = [threading.Thread(target=lane, args=(steps,)) for steps in lanes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Count()
    for result in results:
        total.passed += result.passed
        total.failed += result.failed
        total.skipped += result.skipped
        total.names += result.names
    return total


def _stop(*_: object) -> None:
    _stopped.set()
    for process, step in tuple(_running.items()):
        _end(process)
        _clean_up(step)
    os._exit(130)


def main() -> int:
    """Run the command line; return the exit status: 0 when nothing failed."""
    parser = argparse.ArgumentParser(description="Run the tests and count them.")
    parser.add_argument("part", choices=["lint", "unit", "integration", "molecule", "test", "test-all"])
    parser.add_argument("--distro", default="debian-12")
    parser.add_argument("--scenario", default="default")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    longest = {"limit": 5400.0} if arguments.part == "test-all" else {}
    newest, installed = integration(**longest)
    quick = [*lint(), *unit(**longest), newest]
    lanes: dict[str, list[list[Step]]] = {
        "lint": [lint()],
        "unit": [unit()],
        "integration": [integration()],
        "molecule": [molecule(arguments.distro, arguments.scenario)],
        # The older engine and its SDK are those of the virtual machine.
        "test": [quick, molecule(arguments.distro)],
        # One scenario after the other: with its twin, each takes two processors for its tests.
        "test-all": [
            [*quick, installed],
            [
                *molecule("debian-12", limit=6000, more={"LAB_TEST_HOSTILE_ROUNDS": "12"}),
                *molecule("debian-13", limit=6000, more={"LAB_TEST_POWER_CUTS": "1"}),
            ],
        ],
    }
    if arguments.part == "test":
        os.environ["PYTEST_ADDOPTS"] = f"{os.environ.get('PYTEST_ADDOPTS', '')} {BRIEF}"
    if arguments.part == "test-all":
        os.environ.update(THOROUGH)
    total = run_lanes(lanes[arguments.part], stream=len(lanes[arguments.part]) == 1)
    if total.skipped:
        print(f"{total.skipped} tests were skipped; their reasons are in {LOGS.relative_to(ROOT)}")
    # Near the end, as that is what is kept and read of a long run.
    for name in total.names:
        print(f"failed: {name}")
    print(f"{total.passed} passed, {total.failed} failed", flush=True)
    return 1 if total.failed else 0


if __name__ == "__main__":
    sys.exit(main())
