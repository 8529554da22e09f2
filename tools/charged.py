# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Find out on a provisioned machine whom each kind of byte is charged to; print a table for docs/storage.md.

``charged.py NAME`` copies itself to the machine of that name and runs there as ``charged.py --here``. It uses
the first lab user who has a running container and that project, writes 4 MiB of each kind, reads the user
quotas of root and of the user on the three file systems before and after, and removes what it wrote.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

LIBRARY = "/usr/local/lib/lab-server/current"
SIZE = 4 << 20
WRITE = "head -c 4194304 /dev/urandom > {0}; sync"
SCRATCH = "/root/lab-charged"


class Machine:
    """The machine that this runs on: a lab user with a running container, and the library."""

    def __init__(self) -> None:
        sys.path.insert(0, LIBRARY)
        # The library as it is installed on the machine.
        self.quota, self.policy = import_module("_core.quota"), import_module("_core.policy").load()
        self.temporary = tuple(import_module("_core.privatetmp").FOLDERS)
        running = shell("docker ps --format '{{.Names}}'").split()
        held = [
            (user, name) for user in self.policy.users for name in running if name.endswith(f"._.{user.uid}")
        ]
        if not held:
            raise SystemExit("No lab user has a container that runs: start one first.")
        self.user, self.container = held[0]
        self.project = self.container.partition("._.")[0]
        self.devices: dict[str, str] = {}
        for label, path in (
            ("homes", "/home"),
            ("docker", self.policy.docker_root),
            ("data", self.policy.data_root),
        ):
            device = self.quota.device_of(path)
            if self.quota.USER in self.quota.enforced(device) and device not in self.devices.values():
                self.devices[label] = device

    def used(self) -> dict[tuple[str, str], int]:
        """Return the bytes of root and of the user on each file system."""
        os.sync()
        return {
            (who, label): self.quota.read(device, self.quota.USER, uid).used
            for label, device in self.devices.items()
            for who, uid in (("root", 0), (self.user.name, self.user.uid))
        }

    def inside(self, command: str) -> None:
        """Run a command in the container, as its user."""
        shell(f"docker exec {self.container} sh -c '{command}'")

    def as_user(self, command: str) -> None:
        """Run a command on the host, as the user."""
        shell(f"runuser -u {self.user.name} -- sh -c '{command}'")

    def in_session(self, command: str) -> None:
        """Run a command in a session of the user, as after a login."""
        shell(f"sudo -niu {self.user.name} sh -c '{command}'")

    def workspace(self, name: str) -> str:
        """Return a path of the host in the user's project."""
        return f"{self.policy.workspace(self.user)}/{self.project}/{name}"


def shell(command: str) -> str:
    """Run a command; return what it printed. It ends this program where it fails."""
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command}: {done.stderr.strip()[-500:]}")
    return done.stdout


@contextmanager
def built(machine: Machine, step: str) -> Iterator[None]:
    """Have an image with one more step, from the classic builder; it is removed afterwards."""
    os.makedirs(SCRATCH, exist_ok=True)
    Path(SCRATCH, "big").write_bytes(os.urandom(SIZE))
    image = shell(f"docker inspect -f '{{{{.Image}}}}' {machine.container}").strip().partition(":")[2]
    Path(SCRATCH, "Dockerfile").write_text(f"FROM {image}\nUSER 0\n{step}\n")
    shell(f"DOCKER_BUILDKIT=0 docker build -q -t lab-charged {SCRATCH}")
    try:
        yield
    finally:
        shell("docker rmi -f lab-charged")


@dataclass(frozen=True)
class Kind:
    """A kind of byte: what it is, what bounds it, what writes it and what removes it again."""

    what: str
    bound: str
    write: Callable[[], Any]
    remove: Callable[[], Any]


def files(machine: Machine) -> list[Kind]:
    """Return the kinds that are files of the user."""

    def kind(what: str, bound: str, run: Callable[[str], None], path: str) -> Kind:
        return Kind(what, bound, lambda: run(WRITE.format(path)), lambda: run(f"rm -f {path}"))

    work, own = f"{machine.project}/.charged", "user quota of the homes"
    layer = "`limits.layers_size`"
    return [
        kind("file in the workspace, from the host", own, machine.as_user, machine.workspace(".charged")),
        kind("file in the workspace, from the container", own, machine.inside, f"/workspace/{work}"),
        kind("file in the home on the host", own, machine.as_user, f"{machine.user.home}/.charged"),
        *(
            kind(f"file in `{path}` of the server", own, machine.in_session, f"{path}/.charged")
            for path in machine.temporary
        ),
        kind("file in `/opt` or `/var` of the container", layer, machine.inside, _inner("var/tmp")),
        kind("file in `/tmp` of the container", layer, machine.inside, _inner("tmp")),
        kind(
            "file in `/dev/shm` of the container",
            "`limits.shm`, as memory",
            machine.inside,
            _inner("dev/shm"),
        ),
    ]


def _inner(folder: str) -> str:
    return f"/{folder}/.charged"


def layers(machine: Machine) -> list[Kind]:
    """Return the kinds that come of builds."""
    uid, held = machine.user.uid, "`limits.images_size`"
    begun: list[Any] = []

    def build(step: str) -> None:
        begun.append(built(machine, step))
        begun[-1].__enter__()

    def end() -> None:
        begun.pop().__exit__(None, None, None)

    def kind(what: str, bound: str, step: str) -> Kind:
        return Kind(what, bound, lambda: build(step), end)

    return [
        kind("layer of an image: `RUN` as root", held, "RUN head -c 4194304 /dev/urandom > /big"),
        kind("layer of an image: `COPY`", held, "COPY big /big"),
        kind(
            "layer of an image: `COPY --chown` to a user",
            f"{held}, and `limits.layers_size` of that user",
            f"COPY --chown={uid} big /big",
        ),
        kind(
            "build cache: a step on which another stands",
            f"{held}; what nothing stands on is collected",
            "RUN head -c 4194304 /dev/urandom > /big\nRUN true",
        ),
    ]


def others(machine: Machine) -> list[Kind]:
    """Return what else is written on Docker's file system."""
    uid = machine.user.uid

    def commit() -> None:
        machine.inside(WRITE.format(_inner("var/tmp")))
        shell(f"docker commit -p {machine.container} lab-charged")
        machine.inside(f"rm -f {_inner('var/tmp')}")

    point = "$(docker volume inspect -f '{{.Mountpoint}}' lab-charged)"
    volume = f"docker volume create lab-charged; cd {point}; {WRITE.format('big')}; chown {uid} big"
    return [
        Kind(
            "output of the container's own process (its log)",
            "10 MB and one older file for each container",
            lambda: machine.inside("head -c 3300000 /dev/urandom | base64 > /proc/1/fd/1"),
            lambda: None,
        ),
        Kind(
            "`docker commit` by root",
            "no command of ours does it",
            commit,
            lambda: shell("docker rmi -f lab-charged"),
        ),
        Kind(
            "file of the user in a volume",
            "`limits.layers_size`",
            lambda: shell(volume),
            lambda: shell("docker volume rm -f lab-charged"),
        ),
    ]


def table(machine: Machine) -> str:
    """Write each kind of byte, and return a Markdown table of who was charged."""
    lines = ["| bytes | charged to | on | bounded by |", "|---|---|---|---|"]
    for kind in (*files(machine), *layers(machine), *others(machine)):
        before = machine.used()
        try:
            kind.write()
            time.sleep(1)  # ext4 and XFS count a delayed block when it is given its place
            after = machine.used()
        finally:
            kind.remove()
        grown = {key: after[key] - before[key] for key in before if after[key] - before[key] > SIZE // 2}
        who = ", ".join(sorted({name for name, _label in grown})) or "nobody"
        where = ", ".join(sorted({label for _name, label in grown})) or "-"
        who = who.replace(machine.user.name, "the user")
        lines.append(f"| {kind.what} | {who} | {where} | {kind.bound} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Find out whom each kind of byte is charged to.")
    parser.add_argument("name", nargs="?", help="a machine of tools/vm.py that is provisioned")
    parser.add_argument("--here", action="store_true", help="on this machine")
    given = parser.parse_args()
    if given.here:
        print(table(Machine()))
        return 0
    if not given.name:
        parser.error("name a machine, or say --here")
    from vm import Machine as Virtual  # only here: on the machine itself there is no such tool

    command = [*Virtual(given.name).ssh_command(), "python3 -I - --here"]
    with open(__file__, "rb") as program:
        return subprocess.run(command, stdin=program, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
