# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Measure what lab users wait for, as whole processes, and print a table for docs/performance.md.

In one run on one computer: ``project launch`` of an image that is built, in turns with ``docker run -d`` of
the same container; ``container list``, ``workspace usage``, a TAB in bash, and the greeting at login. The
commands are installed as on a server and run as a lab user: launcher, sudo, broker, Docker Engine.

The folders of a server, /etc and /usr/local are this process' own, in its mount namespace. One thing is
simulated, because the kernel of a computer for tests need not have disk quotas: quotactl(2), in quota.py.
It needs root, sudo and python3-docker; the engine is the tests' own (engine.py).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import engine
from bench_engine import BASE, PLACE, Lab, Promise, Report, measure, root_file_system, running, staged
from bench_engine import seconds as shown
from cache import ToolError, run, say

ROOT = Path(__file__).resolve().parent.parent
SOCKET = Path("/run/docker.sock")
#: Where the commands are installed: what is written there is seen by nobody else.
COVERED = ("/etc", "/usr/local")
PYTHON = "/usr/bin/python3"
PROJECT = "thesis"
USERS = 300
FEW = 5
"""Containers that a user sees at login."""
SIMULATED = """

def _quotactl(command, kind, device, number, buffer):  # simulated by tools/bench_commands.py
    buffer.raw = _DQBLK.pack(250 << 10, 200 << 10, 100 << 20, 0, 0, 20000, 0, 0, 0)
"""


@dataclass(frozen=True)
class Caller:
    """A lab user at work."""

    name: str
    uid: int
    groups: tuple[int, ...]

    @property
    def home(self) -> Path:
        """The user's home."""
        return Path("/home") / self.name

    def run(self, *command: str) -> tuple[float, str]:
        """Run a command as the user's login shell would; return its seconds and what it said."""
        environment = {
            "HOME": str(self.home),
            "USER": self.name,
            "LOGNAME": self.name,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TERM": "xterm",
        }
        started = time.perf_counter()
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.home,
            env=environment,
            user=self.uid,
            group=self.uid,
            extra_groups=self.groups,
            check=False,
        )
        took = time.perf_counter() - started
        if done.returncode != 0:
            raise ToolError(f"{' '.join(command)} failed ({done.returncode}): {done.stdout[-1500:]}")
        return took, done.stdout


# The server


@contextmanager
def covered() -> Iterator[None]:
    """Let what is written to /etc and /usr/local be seen by this process and its children alone."""
    layers = PLACE / "layers"
    layers.mkdir()
    mounted: list[str] = []
    made = not SOCKET.exists()
    try:
        run(["mount", "-t", "tmpfs", "tmpfs", str(layers)])
        mounted.append(str(layers))
        for folder in COVERED:
            upper, work = (layers / f"{kind}{folder.replace('/', '-')}" for kind in ("upper", "work"))
            upper.mkdir(mode=0o755)
            work.mkdir()
            options = f"lowerdir={folder},upperdir={upper},workdir={work}"
            run(["mount", "-t", "overlay", "overlay", "-o", options, folder])
            mounted.append(folder)
        if made:
            SOCKET.touch()
        yield
    finally:
        for folder in reversed(mounted):
            subprocess.run(["umount", "--lazy", folder], check=False)
        if made:
            SOCKET.unlink(missing_ok=True)


@contextmanager
def reachable() -> Iterator[None]:
    """Have the engine where the broker looks for it."""
    run(["mount", "--bind", str(engine.SOCKET), str(SOCKET)])
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(SOCKET)], check=False)


def install(lab: Lab) -> Caller:
    """Install the commands as the playbook does, and the account of the lab's first user; return the user."""
    # The library is the collection's; the path to it is set in main().
    from ansible_collections.lab.server.plugins.module_utils._core import install as installer
    from ansible_collections.lab.server.plugins.module_utils._core import policy as policies

    policy = policies.parse(lab.policy)
    user = policy.users[0]
    caller = Caller(user.name, user.uid, (policy.lab_gid,))
    for result in installer.reconcile(policy, check=False):
        if result.failed:
            raise ToolError(f"The commands could not be installed: {result.message}")
    library = Path(installer.CURRENT) / installer.PACKAGE
    with (library / "quota.py").open("a") as module:
        module.write(SIMULATED)
    run([PYTHON, "-I", "-m", "compileall", "-q", "-f", str(library.resolve())])
    for file, line in {
        "passwd": f"{user.name}:x:{user.uid}:{user.gid}::{caller.home}:/bin/bash",
        "shadow": f"{user.name}:*:19000:0:99999:7:::",
        "group": f"{user.name}:x:{user.gid}:\nlab:x:{policy.lab_gid}:{user.name}",
    }.items():
        with (Path("/etc") / file).open("a") as table:
            table.write(f"{line}\n")
    rule = Path("/etc/sudoers.d/lab-server")
    rule.write_bytes((ROOT / "roles/commands/files/sudoers").read_bytes())
    rule.chmod(0o440)
    return caller


@contextmanager
def at_home(caller: Caller, lab: Lab) -> Iterator[None]:
    """Have the user's home, with the link to the workspace, and a project in it."""
    made = not caller.home.exists()
    if made:
        caller.home.mkdir()
    # In this process' mount namespace: a home of that name that is there already is not touched.
    run(["mount", "-t", "tmpfs", "tmpfs", str(caller.home)])
    try:
        workspace = Path("/home/.workspaces") / caller.name
        (caller.home / "workspace").symlink_to(workspace)
        folder = workspace / PROJECT
        folder.mkdir()
        (folder / "Dockerfile").write_text(f"FROM {BASE}\nCOPY word /word\n")
        (folder / "word").write_text("one\n")
        for number in range(lab.per_user):
            (workspace / lab.project(number)).mkdir()
        for path in (caller.home, *workspace.rglob("*")):
            os.chown(path, caller.uid, caller.uid)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(caller.home)], check=False)
        if made:
            caller.home.rmdir()


# What is measured


def same_options(found: Mapping[str, Any]) -> list[str]:
    """Return the words of ``docker run`` for a container like an inspected one."""
    config, host = found["Config"], found["HostConfig"]
    pairs: list[tuple[str, str]] = [
        ("--user", config["User"]),
        ("--workdir", config["WorkingDir"]),
        ("--hostname", config["Hostname"]),
        ("--entrypoint", config["Entrypoint"][0]),
        ("--stop-signal", config["StopSignal"]),
        ("--stop-timeout", str(config["StopTimeout"])),
        ("--network", host["NetworkMode"]),
        ("--cgroup-parent", host["CgroupParent"]),
        ("--cgroupns", host["CgroupnsMode"]),
        ("--ipc", host["IpcMode"]),
        ("--memory", str(host["Memory"])),
        ("--memory-swap", str(host["MemorySwap"])),
        ("--cpus", f"{host['NanoCpus'] / 1e9:g}"),
        ("--pids-limit", str(host["PidsLimit"])),
        ("--shm-size", str(host["ShmSize"])),
        ("--restart", host["RestartPolicy"]["Name"]),
        ("--log-driver", host["LogConfig"]["Type"]),
        *(("--log-opt", f"{key}={value}") for key, value in host["LogConfig"]["Config"].items()),
        *(("--tmpfs", f"{path}:{options}") for path, options in host["Tmpfs"].items()),
        *(("--ulimit", f"{one['Name']}={one['Soft']}:{one['Hard']}") for one in host["Ulimits"]),
        *(("--group-add", group) for group in host["GroupAdd"] or []),
        *(("--cap-drop", capability) for capability in host["CapDrop"]),
        *(("--security-opt", option) for option in host["SecurityOpt"]),
        *(("--env", entry) for entry in config["Env"]),
        *(("--label", f"{key}={value}") for key, value in config["Labels"].items()),
    ]
    for mount in host["Mounts"]:
        words = f"type={mount['Type']},source={mount['Source']},target={mount['Target']}"
        words += ",readonly" if mount.get("ReadOnly") else ""
        pairs.append(("--mount", f"{words},bind-propagation=rprivate,bind-nonrecursive=true"))
    said = [word for pair in pairs for word in pair]
    return [*said, "--init", "--no-healthcheck", found["Image"], *config["Entrypoint"][1:], *config["Cmd"]]


def launches(caller: Caller, url: str, report: Report, turns: int) -> None:
    """A launch of a built image against ``docker run -d`` of the same container, in turns."""
    import docker  # a third-party library, which only this needs here

    client = docker.APIClient(base_url=url, version="auto")
    name = f"{PROJECT}._.{caller.uid}"
    command = [engine.docker(), "--host", url, "run", "--detach", "--name", name]
    caller.run("project", "launch", PROJECT, "--detach")  # it builds
    options = same_options(client.inspect_container(name))
    client.remove_container(name, force=True)
    ours, plain = [], []
    for _turn in range(turns):
        took, said = caller.run("project", "launch", PROJECT, "--detach")
        if "new container" not in said:
            raise ToolError(f"It was no launch of a new container: {said}")
        ours.append(took)
        client.remove_container(name, force=True)
        started = time.perf_counter()
        run([*command, *options])
        plain.append(time.perf_counter() - started)
        client.remove_container(name, force=True)
    client.close()
    mine, theirs = median(ours), median(plain)
    report.add(f"`project launch --detach` of a built image, median of {turns}", shown(mine))
    report.add("`docker run -d` with the same options, in turns with it", shown(theirs))
    report.promises.append(Promise("a launch takes longer by", (mine - theirs) * 1000, 350, " ms"))
    report.promises.append(Promise("a launch: times `docker run -d`", mine / theirs, 2, ""))


def timed(
    caller: Caller, report: Report, what: str, limit: float, turns: int, *command: str, says: str = ""
) -> None:
    """Measure a command against its limit in seconds; ``says`` must be in its answer."""
    times = []
    for _turn in range(turns):
        took, said = caller.run(*command)
        if says not in said:
            raise ToolError(f"{' '.join(command)} did not say {says!r}: {said[-1000:]}")
        times.append(took)
    report.add(f"{what}, median of {turns}", shown(median(times)))
    report.promises.append(Promise(what, median(times) * 1000, limit * 1000, " ms"))


def completed(project: str) -> str:
    """Return a shell command that does what a TAB does after the name of a project was begun."""
    line = f"project launch {project}"
    return (
        ". /usr/local/share/bash-completion/completions/project; "
        f"COMP_LINE={line!r} COMP_POINT={len(line)}; _lab_server_project; echo ${{COMPREPLY[*]}}"
    )


def fill(workspace: Path, uid: int, files: int) -> None:
    """Put so many files into the workspace, as datasets have them."""
    for number in range(files):
        folder = workspace / "data" / f"{number // 100:04}"
        if number % 100 == 0:
            folder.mkdir(parents=True)
            os.chown(folder, uid, uid)
        (folder / f"{number:06}").touch()
    os.chown(workspace / "data", uid, uid)


def measured(lab: Lab, url: str, report: Report, given: argparse.Namespace) -> None:
    """Measure all of it."""
    caller, turns = install(lab), given.turns
    with at_home(caller, lab):
        launches(caller, url, report, turns)
        lab.make_images(given.containers)
        measure("reconcile", lab.first(FEW))
        what = f"the greeting, {USERS} users, {FEW} containers of one, quotactl(2) simulated"
        timed(caller, report, what, 0.1, turns, "lab-greeting", says="of 250M")
        measure("reconcile", lab.first(given.containers))
        last = lab.project(given.containers - 1)
        timed(
            *(caller, report, f"`container list`, {given.containers} containers of one user", 0.4, turns),
            *("container", "list"),
            says=f"{last}._.{caller.uid}",
        )
        what = f"the greeting, {USERS} users, {given.containers} containers of one, quotactl(2) simulated"
        timed(caller, report, what, 0.1, turns, "lab-greeting", says="of 250M")
        what = f"`workspace usage`, {given.files} files, quotactl(2) simulated"
        fill(Path("/home/.workspaces") / caller.name, caller.uid, given.files)
        timed(caller, report, what, 0.3, turns, "workspace", "usage", says="of 250M")
        what = f"a TAB in bash among {lab.per_user} projects, with the start of bash"
        timed(caller, report, what, 0.1, turns, "bash", "-c", completed(last[:-1]), says=last)


def check_needs() -> None:
    """Raise ToolError where something is missing that a server has."""
    needs: Sequence[tuple[list[str], str]] = (
        (["/usr/bin/sudo", "-n", "true"], "sudo"),
        ([PYTHON, "-I", "-c", "import docker"], "python3-docker"),
    )
    for command, package in needs:
        try:
            done = subprocess.run(command, capture_output=True, check=False).returncode
        except FileNotFoundError:
            done = 127
        if done != 0:
            raise ToolError(f"The commands need {package}: make packages, or apt-get install {package}.")


def load() -> str:
    """Return how much else the computer has to do, as proc(5) tells it."""
    return f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"


def main() -> int:
    """Run the command line; return the exit status: 0 when every promise is kept."""
    parser = argparse.ArgumentParser(description="Measure the commands of lab users on a real engine.")
    parser.add_argument("--turns", type=int, default=9, help="how often each is measured")
    parser.add_argument("--containers", type=int, default=200, help="of the user who lists them")
    parser.add_argument("--files", type=int, default=20_000, help="in the user's workspace")
    given = parser.parse_args()
    # A stop from outside still puts everything away: SystemExit passes through the blocks below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.path.insert(0, str(ROOT / ".ansible" / "collections"))
    os.environ["PYTHONPATH"] = sys.path[0]
    report = Report()
    try:
        check_needs()
        report.add("load of the computer before (one minute)", load())
        with staged(), covered(), running() as url, reachable():
            per_user = given.containers + 10
            lab = Lab(url, per_user * USERS, per_user=per_user)
            command = [engine.docker(), "--host", url, "import", "-", BASE]
            subprocess.run(command, input=root_file_system(), check=True, stdout=subprocess.DEVNULL)
            measured(lab, url, report, given)
        report.add("load of the computer afterwards", load())
    except ToolError as error:
        say(f"bench_commands.py: {error}")
        return 1
    finally:
        if report.rows:
            print(report.markdown())
    return 0 if all(promise.kept for promise in report.promises) else 1


if __name__ == "__main__":
    sys.exit(main())
