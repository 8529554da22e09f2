"""What the tests of a provisioned server share: shells of users and containers, the play, the machine."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[3]
INVENTORY = ROOT / "inventories" / "example"
MACHINES = Path(os.environ.get("LAB_VM_ROOT") or ROOT / ".vm")
ALICE, BOB, CAROL, DAVE = 2001, 2002, 2003, 2004
PATIENCE = 900
"""Seconds that a command may take: a build of eight steps took over six minutes on two emulated machines."""


def _machines() -> list[str]:
    """Return the names of the machines of the scenario: its own, and that one's twin if there is one."""
    name = os.environ["LAB_VM_NAME"]
    return [each for each in (name, f"{name}-twin") if (MACHINES / each / "machine.json").exists()] or [name]


def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers there are: each has a machine to itself."""
    return len(_machines())


def pytest_configure(config: pytest.Config) -> None:
    """Let this worker work on the machine of its number; without workers it is the first one."""
    worker = getattr(config, "workerinput", {}).get("workerid", "gw0")
    # What tools and playbooks of the tests go by, too.
    os.environ["LAB_VM_NAME"] = _machines()[int(worker.removeprefix("gw"))]
    config.option.ssh_config = str(MACHINES / os.environ["LAB_VM_NAME"] / "ssh_config")


@dataclass
class Outcome:
    """The end of a command."""

    rc: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams, for messages."""
        return f"{self.out}\n{self.err}".strip()


class Server:
    """The server as its administrator and its users see it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def root(self, command: str, *, check: bool = True) -> Outcome:
        """Run a shell command as root."""
        # testinfra formats a command only when it is given arguments, so '%' needs no escape here.
        # What takes longer would otherwise hold up all other tests.
        result = self.host.run(f"timeout {PATIENCE} bash -c {shlex.quote(command)}")
        outcome = Outcome(result.rc, result.stdout.rstrip("\n"), result.stderr.rstrip("\n"))
        if check:
            assert outcome.rc == 0, f"{command}: exit status {outcome.rc}\n{outcome.text}"
        return outcome

    def user(self, name: str, command: str, *, check: bool = True) -> Outcome:
        """Run a shell command in a login shell of a lab user."""
        return self.root(f"runuser -l {name} -c {shlex.quote(command)}", check=check)

    def inside(self, project: str, uid: int, command: str, *, check: bool = True) -> Outcome:
        """Run a shell command in a project's container, as the container's own user."""
        return self.root(f"docker exec {project}._.{uid} sh -c {shlex.quote(command)}", check=check)

    def inspect(self, project: str, uid: int) -> dict[str, Any]:
        """Return what the engine knows of a project's container."""
        found: list[dict[str, Any]] = json.loads(self.root(f"docker inspect {project}._.{uid}").out)
        return found[0]

    def containers(self, *, everything: bool = False) -> set[str]:
        """Return the names of the running containers, or of all."""
        flag = "-a" if everything else ""
        return set(self.root(f"docker ps {flag} --format '{{{{.Names}}}}'").out.split())

    def limits(self, name: str) -> dict[str, Any]:
        """Return the limits of a user as the policy of the server has them."""
        users = json.loads(self.root("cat /etc/lab-server/policy.json").out)["users"]
        limits: dict[str, Any] = next(user["limits"] for user in users if user["name"] == name)
        return limits

    def wait(self, true: Callable[[], bool], what: str, seconds: float = 180) -> None:
        """Wait until something is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if true():
                return
            time.sleep(3)
        raise AssertionError(f"not within {seconds:.0f} s: {what}")


@dataclass
class PlayOutcome:
    """The end of a play: its output and the line of its recap."""

    rc: int
    text: str

    def changed(self) -> list[str]:
        """Return the names of the tasks that changed something, in their order."""
        tasks = re.split(r"^(?:TASK|RUNNING HANDLER) \[", self.text, flags=re.MULTILINE)[1:]
        return [task.split("]")[0] for task in tasks if re.search(r"^changed: ", task, re.MULTILINE)]

    def count(self, word: str) -> int:
        """Return a number of the recap, such as ``changed``."""
        found = re.findall(rf"\b{word}=(\d+)", self.text)
        assert found, f"no recap in:\n{self.text[-3000:]}"
        return sum(int(number) for number in found)


def _play(*arguments: str, playbook: str = "lab.server.site") -> PlayOutcome:
    command = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        playbook,
        "-i",
        str(INVENTORY),
        *arguments,
    ]
    environment = {
        **os.environ,
        "ANSIBLE_HOME": str(ROOT / ".ansible"),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    }
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return PlayOutcome(done.returncode, done.stdout)


@pytest.fixture(scope="session")
def play() -> Callable[..., PlayOutcome]:
    """Return a function that runs the site playbook, or another one, with further arguments."""
    return _play


@pytest.fixture(scope="module")
def server(host: Host) -> Server:
    """Return the provisioned server."""
    return Server(host)


def _machine(*arguments: str) -> None:
    name = os.environ["LAB_VM_NAME"]
    verb, *rest = arguments
    subprocess.run([sys.executable, str(ROOT / "tools" / "vm.py"), verb, name, *rest], cwd=ROOT, check=True)


@pytest.fixture(scope="session")
def machine() -> Callable[..., None]:
    """Return a function that works the virtual machine's power switch and disks (tools/vm.py)."""
    return _machine
