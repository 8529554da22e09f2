# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Measure the library on a real engine, and print a table for docs/performance.md.

Side by side in one run, on the same engine: containers that are as declared, ours against a loop of
community.docker's docker_container and against the bare calls; containers made and started; an image that
did not change; memory; small files into a workspace. It needs root, and works in a mount namespace of its
own, where the folders of a server are there and empty; the engine is the tests' own (engine.py).
"""

from __future__ import annotations

import argparse
import ctypes
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import engine
from cache import ToolError, run, say

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "tests" / "benchmarks"
PLACE = ROOT / ".vm" / "bench"
FOLDERS = ("/home/.workspaces", "/var/lib/lab-server", "/run/lab-server")
BASE = "lab-bench/tiny"
CLONE_NEWNS = 0x00020000
"""unshare(2): a mount namespace of its own."""
PROJECTS_OF_USER = 10
FIRST_UID = 5000
MEMORY, PIDS, SHM = 64 << 20, 64, 1 << 20
LIMITS = {"cpus": 1, "memory": MEMORY, "pids": PIDS, "shm": SHM, "gpus": 0}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
FINGERPRINT = "b" * 64
TURNS = 3
MANY = 500
"""Containers for which the comparison with the loop is promised."""


@dataclass(frozen=True)
class Promise:
    """What is promised, what was measured, and whether the one holds for the other."""

    text: str
    measured: float
    allowed: float
    unit: str
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the promise is kept."""
        return self.measured >= self.allowed if self.at_least else self.measured <= self.allowed

    def row(self) -> str:
        """Return a row of a Markdown table."""
        bound = f"{'at least' if self.at_least else 'at most'} {self.allowed:g}{self.unit}"
        return (
            f"| {self.text} | {self.measured:.3g}{self.unit} | {bound} | {'yes' if self.kept else '**no**'} |"
        )


@dataclass
class Report:
    """The rows of the table of measurements, and the promises."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    promises: list[Promise] = field(default_factory=list)

    def add(self, what: str, measured: str) -> None:
        """Add a row, and tell it at once."""
        self.rows.append((what, measured))
        say(f"{what}: {measured}")

    def markdown(self) -> str:
        """Return both tables."""
        lines = ["| what | measured |", "|---|---|"]
        lines += [f"| {what} | {measured} |" for what, measured in self.rows]
        lines += ["", "| promise | measured | promised | kept |", "|---|---|---|---|"]
        return "\n".join([*lines, *(promise.row() for promise in self.promises)])


def seconds(value: float) -> str:
    """Return a time for people."""
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def size(value: float) -> str:
    """Return a number of bytes for people."""
    return f"{value / (1 << 20):.1f} MiB"


# The server


@contextmanager
def staged() -> Iterator[None]:
    """Have the folders of a server, empty, for this process and its children alone."""
    if os.geteuid() != 0:
        raise ToolError("An engine needs root: run it by sudo.")
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise ToolError(f"No mount namespace of its own: {os.strerror(ctypes.get_errno())}.")
    run(["mount", "--make-rprivate", "/"])
    shutil.rmtree(PLACE, ignore_errors=True)
    made = []
    mounted = []
    try:
        for number, folder in enumerate(FOLDERS):
            source = PLACE / str(number)
            source.mkdir(parents=True, mode=0o711)
            if not os.path.isdir(folder):
                os.makedirs(folder)
                made.append(folder)
            run(["mount", "--bind", str(source), folder])
            mounted.append(folder)
        yield
    finally:
        for folder in mounted:
            subprocess.run(["umount", "--lazy", folder], check=False)
        for folder in made:
            os.rmdir(folder)
        shutil.rmtree(PLACE, ignore_errors=True)


@contextmanager
def running() -> Iterator[str]:
    """Have an engine; its networks have room for more than 253 containers."""
    engine.POOL = "base=172.30.0.0/17,size=20"
    with engine.alone():
        try:
            yield engine.start()
        finally:
            engine.stop()


def root_file_system() -> bytes:
    """Return the tar of a root file system with nothing but busybox."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, link in (("bin/busybox", ""), ("bin/sh", "busybox"), ("bin/sleep", "busybox")):
            member = tarfile.TarInfo(name)
            content = b"" if link else Path("/bin/busybox").read_bytes()
            member.mode, member.size, member.linkname = 0o755, len(content), link
            member.type = tarfile.SYMTYPE if link else tarfile.REGTYPE
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Lab:
    """A server with users and projects, and what the measurements are told of it."""

    url: str
    projects: int
    per_user: int = PROJECTS_OF_USER
    policy: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The library is the collection's; the path to it is set in main().
        from ansible_collections.lab.server.plugins.module_utils._core import policy

        users = [
            {"name": self.user(number), "uid": self.uid(number), "group": "students"}
            for number in range(0, self.projects, self.per_user)
        ]
        limits = {**LIMITS, "containers": self.per_user}
        (PLACE / "data").mkdir()
        made, _keys = policy.from_inventory(
            {
                "lab_data_root": str(PLACE / "data"),
                "lab_groups": [{"name": "students", "gid": 3101, "limits": limits, "quota": QUOTA}],
                "lab_users": users,
                "lab_base_images": [{"name": BASE, "image": BASE}],
            }
        )
        self.policy = policy.dump(made)
        for user in made.users:
            workspace = Path(made.workspace(user))
            workspace.mkdir(mode=0o700)
            os.chown(workspace, user.uid, user.gid)

    def uid(self, number: int) -> int:
        """Return the uid of the owner of a project by its number."""
        return FIRST_UID + number // self.per_user

    def user(self, number: int) -> str:
        """Return the name of the owner of a project by its number."""
        return f"user{number // self.per_user:03}"

    @staticmethod
    def project(number: int) -> str:
        """Return the name of a project by its number."""
        return f"project{number:03}"

    def first(self, number: int) -> dict[str, Any]:
        """Return what a measurement with so many projects is told."""
        projects = [[self.user(each), self.project(each)] for each in range(number)]
        return {"url": self.url, "policy": self.policy, "projects": projects}

    def make_images(self, number: int) -> None:
        """Make the images of so many projects, as a build makes them, but all at once."""
        import docker  # a third-party library, which only this needs here

        client = docker.APIClient(base_url=self.url, version="auto", timeout=600)

        def make(each: int) -> None:
            labels = {
                "lab.server.owner": str(self.uid(each)),
                "lab.server.project": self.project(each),
                "lab.server.fingerprint": FINGERPRINT,
                "lab.server.kind": "project",
            }
            repository = f"lab/{self.uid(each)}/{self.project(each)}"
            text = io.BytesIO(f"FROM {BASE}\n".encode())
            for event in client.build(
                fileobj=text, labels=labels, tag=f"{repository}:latest", rm=True, decode=True
            ):
                if "error" in event:
                    raise ToolError(f"No image: {event['error']}")
            client.tag(f"{repository}:latest", repository, FINGERPRINT[:12], force=True)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(make, range(number)))
        client.close()


def measure(verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Make one measurement in a process of its own; ToolError when it fails."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "measure.py"), verb],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ToolError(f"{verb} failed.\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    if answer.get("failed"):
        raise ToolError(f"{verb} failed: {answer['failed'][0]}")
    return answer


def middle(verb: str, given: Mapping[str, Any], key: str = "calls") -> float:
    """Measure some times; return the median. What is called unchanged must be so."""
    answers = [measure(verb, given) for _turn in range(TURNS)]
    if any(answer.get("changed") for answer in answers):
        raise ToolError(f"{verb} changed something where nothing was to be changed.")
    return median(float(answer[key]) for answer in answers)


def play(playbook: str, variables: Mapping[str, object]) -> tuple[float, float]:
    """Run a playbook that changes nothing; return the seconds of its task, and of all."""
    extra = PLACE / "variables.json"
    extra.write_text(json.dumps(variables))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", "-c", "local"]
    command += ["-e", f"@{extra}", "-e", f"ansible_python_interpreter={sys.executable}"]
    environment = {**os.environ, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json", "ANSIBLE_DIFF_ALWAYS": "1"}
    started = time.perf_counter()
    done = subprocess.run(
        [*command, str(BENCHMARKS / playbook)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    whole = time.perf_counter() - started
    if done.returncode != 0:
        said = {line.strip() for line in done.stdout.splitlines() if '"msg"' in line}
        raise ToolError(f"{playbook} failed: {' '.join(said)[:1000] or done.stderr[-1000:]}")
    task = json.loads(done.stdout[done.stdout.index("{") :])["plays"][0]["tasks"][0]
    result = task["hosts"]["localhost"]
    if result.get("changed"):
        differences = [item.get("diff") for item in result["results"]]
        raise ToolError(f"{playbook} changed what was not to be changed: {str(differences)[:1000]}")
    begin, end = (
        datetime.fromisoformat(task["task"]["duration"][key].rstrip("Z")) for key in ("start", "end")
    )
    return (end - begin).total_seconds(), whole


# What is measured


def unchanged(lab: Lab, report: Report, sizes: Sequence[int], loops: Sequence[int]) -> None:
    """Containers that are as declared: ours against the loop and against the bare calls."""
    ours: dict[int, float] = {}
    plays: dict[int, float] = {}
    bare: dict[int, float] = {}
    each = 0.0
    for number in sorted({*sizes, *loops}):
        started = time.perf_counter()
        measure("reconcile", lab.first(number))
        say(f"(there are {number} containers, after {time.perf_counter() - started:.0f} s)")
        given = lab.first(number)
        if number in sizes:
            ours[number] = middle("reconcile", given)
            bare[number] = middle("listings", given)
            report.add(f"{number} unchanged, the library", seconds(ours[number]))
            report.add(f"{number} unchanged, the two listings alone", seconds(bare[number]))
            report.add(
                f"{number} unchanged, a listing and an inspection of each",
                seconds(middle("inspections", given)),
            )
            report.add(
                f"{number} unchanged, the library, whole process",
                seconds(middle("reconcile", given, "process")),
            )
            plays[number], whole = ours_in_ansible(lab, number)
            report.add(f"{number} unchanged, `project_containers`, the task", seconds(plays[number]))
            report.add(f"{number} unchanged, `project_containers`, all of ansible-playbook", seconds(whole))
        if number in loops:
            task, whole = loop_in_ansible(lab, number)
            each = task / number
            report.add(f"{number} unchanged, loop of `docker_container`, the task", seconds(task))
            report.add(
                f"{number} unchanged, loop of `docker_container`, all of ansible-playbook", seconds(whole)
            )
    most, fewest = max(sizes), min(sizes)
    if each:
        report.add(f"{most} unchanged, loop of `docker_container`, **extrapolated**", seconds(each * most))
        ratio = each * most / plays[most]
        text = f"{most} unchanged: times faster than the loop, task against task"
        # What is promised holds for many: for few, starting the one module is most of it.
        if most >= MANY:
            report.promises.append(Promise(text, ratio, 200, "", at_least=True))
        else:
            report.add(text, f"{ratio:.1f}")
    text = f"{most} unchanged: times the bare listings"
    report.promises.append(Promise(text, ours[most] / bare[most], 3, ""))
    if most > fewest:
        further = (ours[most] - ours[fewest]) / (most - fewest) * 1000
        report.promises.append(Promise("each further unchanged container", further, 2, " ms"))
    memory(lab, report, most)


def ours_in_ansible(lab: Lab, number: int) -> tuple[float, float]:
    """Return what our module takes in Ansible: the seconds of the task, and of the playbook."""
    told = lab.first(number)
    projects = [{"user": user, "name": project} for user, project in told["projects"]]
    variables = {"bench_url": lab.url, "bench_policy": lab.policy, "bench_projects": projects}
    runs = [play("ours.yml", variables) for _turn in range(TURNS)]
    return median(task for task, _whole in runs), median(whole for _task, whole in runs)


def loop_in_ansible(lab: Lab, number: int) -> tuple[float, float]:
    """Return what the loop takes: the seconds of the task, and of the playbook. It runs once."""
    import docker  # a third-party library, which only this needs here

    client = docker.APIClient(base_url=lab.url, version="auto", timeout=600)

    def environment(container: str) -> dict[str, str]:
        given = client.inspect_container(container)["Config"]["Env"]
        return {name: value for name, _equals, value in (entry.partition("=") for entry in given)}

    listed = [
        {
            "container": f"{lab.project(each)}._.{lab.uid(each)}",
            "project": lab.project(each),
            "image": f"lab/{lab.uid(each)}/{lab.project(each)}:{FINGERPRINT[:12]}",
            "user": f"{lab.uid(each)}:{lab.uid(each)}",
            "memory": str(MEMORY),
            "pids": PIDS,
            "shm": str(SHM),
            "env": environment(f"{lab.project(each)}._.{lab.uid(each)}"),
        }
        for each in range(number)
    ]
    return play("loop.yml", {"bench_url": lab.url, "bench_containers": listed})


def memory(lab: Lab, report: Report, number: int) -> None:
    """The memory of the module's process."""
    told = lab.first(number)
    projects = [{"user": user, "name": project} for user, project in told["projects"]]
    arguments = {"docker_host": lab.url, "policy": lab.policy, "projects": projects}
    used = measure("module", {"arguments": arguments})["memory"]
    library = measure("reconcile", told)["memory"]
    report.add(f"{number} unchanged, most memory of the library", size(library))
    report.add(f"{number} unchanged, most memory of the module", size(used))
    report.promises.append(Promise(f"memory of the module at {number} projects", used / 1e6, 120, " MB"))


def made(lab: Lab, report: Report, number: int) -> None:
    """Containers made and started: ours against the same calls, and against the least."""
    answer = measure("create", {**lab.first(number), "turns": TURNS})
    times = {
        name: median(float(answer[f"{name} {turn}"]) for turn in range(TURNS))
        for name in ("library", "same", "least")
    }
    requests = f"{answer['requests'] / number:.1f} requests each, {answer['threads']} at once"
    report.add(f"{number} made and started, the library", f"{seconds(times['library'])} ({requests})")
    report.add(f"{number} made and started, the same requests without the library", seconds(times["same"]))
    report.add(f"{number} made and started, nothing but create, put and start", seconds(times["least"]))
    text = f"{number} made and started: times the same requests"
    report.promises.append(Promise(text, times["library"] / times["same"], 1.3, ""))


def image(lab: Lab, report: Report, files: int, megabytes: int) -> None:
    """An image of which nothing changed."""
    user = lab.policy["users"][0]
    folder = Path("/home/.workspaces") / user["name"] / "large"
    write_context(folder, files, megabytes * 1_000_000)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user["uid"], user["uid"])
    # What was written within two seconds before a look could still change in the same tick of the clock.
    time.sleep(3)
    title = f"context of {files} files, {megabytes} MB"
    given = {**lab.first(0), "user": user["name"], "project": "large", "folder": str(folder)}
    report.add(f"{title}, built", seconds(measure("image", given)["process"]))
    forget(folder)
    cold = measure("image", given)
    if cold["changed"]:
        raise ToolError("An image was built again though nothing changed.")
    report.add(f"{title}, unchanged, with nothing of it in memory", seconds(cold["calls"]))
    report.add(f"{title}, unchanged, read from the disk meanwhile", size(cold["read"]))
    warm = middle("image", given)
    hashed = middle("hashing", given)
    report.add(f"{title}, unchanged", seconds(warm))
    report.add(f"{title}, hashed and nothing else", seconds(hashed))
    report.promises.append(Promise(f"{title}, unchanged: beyond hashing", (warm - hashed) * 1000, 50, " ms"))
    share = cold["read"] / (megabytes * 1_000_000) * 100
    report.promises.append(Promise(f"{title}, unchanged: part of it that is read", share, 5, " %"))
    shutil.rmtree(folder)


def write_context(folder: Path, files: int, total: int) -> None:
    """Write a project's folder with so many files, all different, and bytes."""
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {BASE}\nCOPY Dockerfile /made-of\n")
    each = max(1, total // max(1, files - 1))
    chunk = os.urandom(each)
    for number in range(files - 1):
        below = folder / f"data{number // 1000:03}"
        below.mkdir(exist_ok=True)
        (below / f"{number:06}").write_bytes(number.to_bytes(8, "big") + chunk[8:])


def forget(folder: Path) -> None:
    """Let the kernel drop what it keeps in memory of the files (posix_fadvise(2))."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def small_files(lab: Lab, report: Report, number: int) -> None:
    """Small files into the workspace: in a container, against the same folder on the host."""
    import docker  # a third-party library, which only this needs here

    user = lab.policy["users"][0]
    folder = Path("/home/.workspaces") / user["name"] / "small"
    identity = f"{user['uid']}:{user['uid']}"
    client = docker.APIClient(base_url=lab.url, version="auto", timeout=600)
    # As a launch mounts it: the whole workspace, for its user, under the default filter of system calls.
    host = client.create_host_config(binds=[f"{folder.parent}:/workspace"], cap_drop=["ALL"])
    made = client.create_container(BASE, ["/bin/sleep", "3600"], user=identity, host_config=host)["Id"]

    def written(files: int, *, inside: bool) -> float:
        """Write so many files by the same program on either side; return the seconds."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        os.chown(folder, user["uid"], user["uid"])
        os.sync()
        place = "/workspace/small" if inside else str(folder)
        loop = f"n=0; while [ $n -lt {files} ]; do echo 0123456789 > {place}/$n; n=$((n+1)); done"
        started = time.perf_counter()
        if inside:
            execution = client.exec_create(made, ["/bin/busybox", "sh", "-c", loop], user=identity)["Id"]
            client.exec_start(execution)
        else:
            command = ["/bin/busybox", "sh", "-c", loop]
            subprocess.run(command, check=True, user=user["uid"], group=user["uid"], extra_groups=[])
        took = time.perf_counter() - started
        there = len(os.listdir(folder))
        if there != files:
            raise ToolError(f"Only {there} of {files} files were written.")
        return took

    def middle_of(files: int) -> tuple[float, float]:
        """Return the medians in the container and on the host, by turns."""
        times = [(written(files, inside=True), written(files, inside=False)) for _turn in range(2 * TURNS)]
        return median(one for one, _other in times), median(other for _one, other in times)

    try:
        client.start(made)
        started_inside, started_outside = middle_of(0)
        inside, outside = middle_of(number)
    finally:
        client.remove_container(made, force=True)
        client.close()
        shutil.rmtree(folder, ignore_errors=True)
    # What it takes to start the program is the engine's, and not that of files.
    inside, outside = inside - started_inside, outside - started_outside
    report.add(f"{number} small files into the workspace, in a container", seconds(inside))
    report.add(f"{number} small files into the workspace, on the host", seconds(outside))
    text = f"{number} small files into the workspace: in a container against the host"
    report.promises.append(Promise(text, inside / outside, 1.15, ""))


def numbers(text: str) -> list[int]:
    """Return the numbers of a list such as 10,100,500."""
    return [int(part) for part in text.split(",") if part]


def main() -> int:
    """Run the command line; return the exit status: 0 when every promise is kept."""
    parser = argparse.ArgumentParser(description="Measure the library on a real engine.")
    parser.add_argument("--sizes", type=numbers, default=[10, 100, 500], help="containers that are unchanged")
    parser.add_argument("--loop", type=numbers, default=[10, 50], help="of these, for the loop")
    parser.add_argument("--create", type=int, default=50, help="containers that are made; 0: none")
    parser.add_argument("--files", type=int, default=10_000, help="of the context; 0: no image")
    parser.add_argument("--small", type=int, default=10_000, help="small files into a workspace; 0: none")
    parser.add_argument("--megabytes", type=int, default=1000, help="of the context")
    given = parser.parse_args()
    # A stop from outside still puts everything away: SystemExit passes through the blocks below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.path.insert(0, str(ROOT / ".ansible" / "collections"))
    os.environ["PYTHONPATH"] = sys.path[0]
    most = max([*given.sizes, *given.loop, given.create, 1])
    report = Report()
    try:
        with staged(), running() as url:
            lab = Lab(url, most)
            command = [engine.docker(), "--host", url, "import", "-", BASE]
            subprocess.run(command, input=root_file_system(), check=True, stdout=subprocess.DEVNULL)
            if given.small:
                small_files(lab, report, given.small)
            if given.files:
                image(lab, report, 20, 1)
                image(lab, report, given.files, given.megabytes)
            lab.make_images(most)
            if given.create:
                made(lab, report, given.create)
            if given.sizes:
                unchanged(lab, report, given.sizes, given.loop)
    except ToolError as error:
        say(f"bench_engine.py: {error}")
        return 1
    finally:
        if report.rows:
            print(report.markdown())
    return 0 if all(promise.kept for promise in report.promises) else 1


if __name__ == "__main__":
    sys.exit(main())
