# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A Docker Engine of the tests' own, beside one that may run on this computer, and gone after the tests.

    engine.py run COMMAND...    starts it, runs the command, stops it
    engine.py start|stop        for work by hand; start prints the address and the docker command

It has its own socket, data, network bridge and containerd, and starts empty. It needs root. One runs at a
time: a second call waits for the first. What was started by hand gives way.

--engine debian-13 takes the engine of that release instead of the one that is installed: its programs are
kept in the cache and run in a mount namespace of their own, where /usr is theirs and all else is the same.
--sdk debian-12 lets the command import that release's Docker SDK for Python. The command is told where the
engine is by LAB_TEST_DOCKER_HOST and LAB_TEST_DOCKER_BINARY, and its program by LAB_TEST_DOCKER_DAEMON.

An engine that knows the Container Device Interface (Docker 25 and later) has simulated GPUs, by a
specification in the folder that ``docker info`` names: of each a device file and a variable, no hardware.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache import Entry, ToolError, locked, run, say
from vm import RELEASES

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".vm" / "engine"
# A short path of its own: the sockets of containerd have long names in it.
RUN = Path("/run/lab-test-engine")
SOCKET = RUN / "docker.sock"
PIDFILE = RUN / "docker.pid"
LOG = ROOT / ".vm" / "engine.log"
# Beside the folder, which comes and goes.
LOCK = RUN.with_name(f"{RUN.name}.lock")
NAMESPACE = RUN / "namespace" / "mnt"
INSTALLED = "distribution"
OTHERS = {
    # What its engine, its client and their helpers need; the releases before 13 have no docker-cli.
    "debian-13": (
        *("docker.io", "docker-cli", "docker-buildx", "iptables", "apparmor"),
        *("base-files", "dash", "kmod", "pigz", "procps", "xz-utils"),
    )
}
"""The engines beside the one that is installed: the release, and its packages."""
SDKS = {"debian-12": ("python3-docker",)}
BRIDGE = "labtest0"
ADDRESS = "172.30.250.1/24"
POOL = "base=172.30.0.0/17,size=24"
PATIENCE = 60
CDI_SINCE = 25
"""The first version of Docker Engine that knows the Container Device Interface."""
GPUS = 8


def _pid() -> int | None:
    """Return the process id of our daemon, or None; a pid that belongs to another program does not count."""
    try:
        pid = int(PIDFILE.read_text())
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, ValueError):
        return None
    return pid if os.fsencode(PIDFILE) in arguments else None


def _answers() -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(SOCKET))
            connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False


@contextmanager
def alone() -> Iterator[None]:
    """Be the only one who has an engine for tests on this computer, as long as the block runs."""
    if os.geteuid() != 0:
        raise ToolError("An engine needs root: run it by sudo.")
    with locked(LOCK, "Another call has the engine for tests; this one waits for its end ..."):
        yield


def programs(name: str, release: str, packages: tuple[str, ...]) -> Path:
    """Return a folder with packages of a release and what they depend on, unpacked and not installed."""

    def make(target: Path) -> None:
        tree = target / "tree"
        options = ["--variant=extract", "--format=directory", f"--include={','.join(packages)}"]
        run(["mmdebstrap", *options, RELEASES[release], str(tree)])
        for table in ("iptables", "ip6tables"):
            if (tree / f"usr/sbin/{table}-nft").exists():
                # The link that installing the package makes, by way of /etc/alternatives.
                (tree / "usr/sbin" / table).symlink_to(f"{table}-nft")

    return Entry(name, {"release": release, "packages": packages}).get(make) / "tree"


def docker(engine: str = INSTALLED) -> str:
    """Return the docker command of an engine that runs."""
    return "/usr/bin/docker" if engine == INSTALLED else str(RUN / "docker")


def daemon(engine: str = INSTALLED) -> str:
    """Return the program of an engine that runs, to start another one of that kind beside it."""
    return "/usr/sbin/dockerd" if engine == INSTALLED else str(RUN / "dockerd")


def start(engine: str = INSTALLED) -> str:
    """Start the engine and return its address; ToolError with the end of its log when it does not answer."""
    stop()
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    RUN.mkdir(mode=0o700, exist_ok=True)
    enter = _namespace(programs(f"engine-{engine}", engine, OTHERS[engine])) if engine != INSTALLED else []
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], capture_output=True, check=False)
    run(["ip", "address", "replace", ADDRESS, "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    with LOG.open("w") as log:
        subprocess.Popen(
            [
                *(*enter, "/usr/sbin/dockerd"),
                *("--host", f"unix://{SOCKET}", "--pidfile", str(PIDFILE), "--data-root", str(DATA)),
                *("--exec-root", str(RUN / "exec"), "--bridge", BRIDGE, "--default-address-pool", POOL),
                # Where the distribution's containerd runs already, it is shared, by names of our own.
                *("--containerd-namespace", "labtest", "--containerd-plugins-namespace", "labtest-plugins"),
                *(_with_gpus() if _major(enter) >= CDI_SINCE else ()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    end = time.monotonic() + PATIENCE
    while not _answers():
        if time.monotonic() > end:
            tail = "\n".join(LOG.read_text(errors="replace").splitlines()[-15:])
            stop()
            raise ToolError(f"dockerd does not answer after {PATIENCE} s; the end of {LOG}:\n{tail}")
        time.sleep(0.3)
    return f"unix://{SOCKET}"


def _major(enter: list[str]) -> int:
    """Return the first number of the version of the engine; 0 when it does not tell one."""
    done = subprocess.run(
        [*enter, "/usr/sbin/dockerd", "--version"], capture_output=True, text=True, check=False
    )
    found = re.search(r"version (\d+)\.", done.stdout)
    return int(found[1]) if found else 0


def simulated_gpus() -> dict[str, object]:
    """Return a CDI specification of GPUs that are not there, as NVIDIA's toolkit names them: by their uuids.

    https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md, version 0.5.0.
    """
    devices = []
    for number in range(GPUS):
        uuid = f"GPU-{number:08x}-51d0-4000-8000-000000000000"
        node = {"path": f"/dev/simulated-gpu{number}", "hostPath": "/dev/null", "permissions": "rw"}
        edits = {"env": [f"SIMULATED_GPU_{number}={uuid}"], "deviceNodes": [node]}
        devices.append({"name": uuid, "containerEdits": edits})
    return {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices}


def _with_gpus() -> list[str]:
    """Return the words for a daemon that has the simulated GPUs."""
    folder, config = RUN / "cdi", RUN / "daemon.json"
    folder.mkdir()
    (folder / "simulated.json").write_text(json.dumps(simulated_gpus()))
    config.write_text(json.dumps({"features": {"cdi": True}, "cdi-spec-dirs": [str(folder)]}))
    return ["--config-file", str(config)]


def _namespace(tree: Path) -> list[str]:
    """Make a mount namespace where /usr is that of ``tree``, and a docker command that runs in it.

    Return the words that run a command in it. It is kept by a file, which can only be where mounts do not
    propagate (unshare(1)), and outlives a daemon that is killed.
    """
    folder = NAMESPACE.parent
    folder.mkdir()
    run(["mount", "--bind", str(folder), str(folder)])
    run(["mount", "--make-private", str(folder)])
    NAMESPACE.touch()
    # A containerd of the distribution's, where one runs, would not see what is mounted in here: its socket is
    # hidden. /bin, /sbin, /lib and /lib64 lead into /usr, in every release since Debian 12.
    hide = "mkdir -p /run/containerd && mount -t tmpfs none /run/containerd"
    usr = f'{hide} && exec mount -o bind,ro "$1" /usr'
    unshare = ["unshare", f"--mount={NAMESPACE}", "--propagation", "slave"]
    run([*unshare, "sh", "-c", usr, "sh", str(tree / "usr")])
    enter = ["nsenter", f"--mount={NAMESPACE}"]
    for name, path in (("docker", "/usr/bin/docker"), ("dockerd", "/usr/sbin/dockerd")):
        command = RUN / name
        command.write_text(f'#!/bin/sh\nexec {" ".join(enter)} {path} "$@"\n')
        command.chmod(0o755)
    return enter


def _sweep() -> None:
    """End what a killed daemon leaves: its containerd and the shims of containers, and what is mounted."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if os.fsencode(RUN) in entry.read_bytes():
                os.kill(int(entry.parent.name), signal.SIGKILL)
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):
        if point.startswith((f"{DATA}/", f"{RUN}/")):
            subprocess.run(["umount", point], capture_output=True, check=False)


def stop() -> None:
    """Stop the engine with its containers and remove what it kept. Nothing happens when there is none."""
    pid = _pid()
    if pid is not None:
        containers = subprocess.run(
            ["/usr/bin/docker", "--host", f"unix://{SOCKET}", "ps", "-q"],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.split()
        if containers:
            subprocess.run(
                ["/usr/bin/docker", "--host", f"unix://{SOCKET}", "kill", *containers],
                stdout=subprocess.DEVNULL,
                check=False,
            )
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + 30
        while _pid() is not None:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)
    _delete_bridges()
    for namespace in (RUN / "exec" / "netns").glob("*"):
        subprocess.run(["umount", str(namespace)], capture_output=True, check=False)
    _sweep()
    # A daemon mounts its data on itself; where one was killed, the mount of before stays.
    while (
        subprocess.run(["umount", "--recursive", str(DATA)], capture_output=True, check=False).returncode == 0
    ):
        pass
    for path in (DATA, RUN):
        shutil.rmtree(path, ignore_errors=True)  # what is mounted by somebody else stays


def _delete_bridges() -> None:
    """Delete the bridges of networks: the engine forgets them with its data, but their addresses stay."""
    pool = ipaddress.ip_network(POOL.partition("=")[2].partition(",")[0])
    listed = subprocess.run(
        ["ip", "-json", "-4", "address", "show", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    for link in json.loads(listed.stdout or "[]"):
        if any(ipaddress.ip_address(a["local"]) in pool for a in link.get("addr_info", [])):
            subprocess.run(["ip", "link", "delete", link["ifname"]], capture_output=True, check=False)


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="A Docker Engine of the tests' own.")
    parser.add_argument("--engine", choices=[INSTALLED, *OTHERS], default=INSTALLED)
    parser.add_argument("--sdk", choices=SDKS, help="the release whose Docker SDK the command imports")
    parser.add_argument("verb", choices=["run", "start", "stop"])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    # A stop from outside still ends the engine: SystemExit passes through the finally below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with alone():
            if arguments.verb == "stop":
                stop()
                return 0
            if arguments.verb == "start":
                print(start(arguments.engine), docker(arguments.engine))
                return 0
            try:
                return _run(arguments.command, arguments.engine, arguments.sdk)
            finally:
                stop()
    except ToolError as error:
        say(f"engine.py: {error}")
        return 1


def _run(command: list[str], engine: str, sdk: str | None) -> int:
    """Run a command that has an engine; return its exit status."""
    environment = dict(os.environ)
    if sdk is not None:
        tree = programs(f"docker-sdk-{sdk}", sdk, SDKS[sdk])
        known = [str(tree / "usr/lib/python3/dist-packages"), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, known))
    environment["LAB_TEST_DOCKER_HOST"] = start(engine)
    environment["LAB_TEST_DOCKER_BINARY"] = docker(engine)
    environment["LAB_TEST_DOCKER_DAEMON"] = daemon(engine)
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
