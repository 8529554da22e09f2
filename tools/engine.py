# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A Docker Engine of the tests' own, beside one that may run on this computer, and gone after the tests.

    engine.py run COMMAND...    starts it, runs the command with LAB_TEST_DOCKER_HOST set, stops it
    engine.py start|stop        for work by hand; start prints the address

It has its own socket, data, network bridge and containerd, and starts empty. It needs root.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from cache import ToolError, run, say

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".vm" / "engine"
# A short path of its own: the sockets of containerd have long names in it.
RUN = Path("/run/lab-test-engine")
SOCKET = RUN / "docker.sock"
PIDFILE = RUN / "docker.pid"
LOG = ROOT / ".vm" / "engine.log"
BRIDGE = "labtest0"
ADDRESS = "172.30.250.1/24"
POOL = "base=172.30.0.0/17,size=24"
PATIENCE = 60


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


def start() -> str:
    """Start the engine and return its address; ToolError with the end of its log when it does not answer."""
    if os.geteuid() != 0:
        raise ToolError("An engine needs root: run it by sudo.")
    stop()
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir(parents=True)
    RUN.mkdir(mode=0o700, exist_ok=True)
    subprocess.run(["ip", "link", "add", BRIDGE, "type", "bridge"], capture_output=True, check=False)
    run(["ip", "address", "replace", ADDRESS, "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    with LOG.open("w") as log:
        subprocess.Popen(
            [
                "/usr/sbin/dockerd",
                *("--host", f"unix://{SOCKET}", "--pidfile", str(PIDFILE), "--data-root", str(DATA)),
                *("--exec-root", str(RUN / "exec"), "--bridge", BRIDGE, "--default-address-pool", POOL),
                # Where the distribution's containerd runs already, it is shared, by names of our own.
                *("--containerd-namespace", "labtest", "--containerd-plugins-namespace", "labtest-plugins"),
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
        shutil.rmtree(path, ignore_errors=True)


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
    parser.add_argument("verb", choices=["run", "start", "stop"])
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    # A stop from outside still ends the engine: SystemExit passes through the finally below.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if arguments.verb == "stop":
            stop()
            return 0
        if arguments.verb == "start":
            print(start())
            return 0
        try:
            address = start()
            return subprocess.run(
                arguments.command, env={**os.environ, "LAB_TEST_DOCKER_HOST": address}, check=False
            ).returncode
        finally:
            stop()
    except ToolError as error:
        say(f"engine.py: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
