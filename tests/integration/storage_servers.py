"""Servers that keep files elsewhere, as real processes: S3 by moto, and sftp by Debian's own OpenSSH.

moto checks the signature of each request, and what the key's owner may do. sshd is unpacked, not installed,
so that no service comes with it: it runs where /usr is that of its release, with accounts of its own
(tools/engine.py). rclone's server of sftp will not do: it closes a connection without an exit status, and
restic 0.14 takes that for a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import boto3
from botocore.config import Config

TOOLS = Path(__file__).resolve().parents[2] / "tools"
#: Requests that make a key: a user, the key, and what it may do.
QUESTIONS_OF_A_KEY = 3
_PATIENCE = 60
_PACKAGES = ("openssh-server", "dash")
_SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
PasswordAuthentication no
PerSourcePenalties no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
ForceCommand internal-sftp
"""
_ACCOUNTS = {
    "passwd": "root:x:0:0::/root:/bin/sh\nsshd:x:2899:65534::/run/sshd:/usr/sbin/nologin\n"
    "store:x:2900:2900::{folder}/home:/bin/sh\n",
    "group": "root:x:0:\nnogroup:x:65534:\nstore:x:2900:\n",
    "shadow": "root:*:19000:0:99999:7:::\nsshd:*:19000:0:99999:7:::\nstore:*:19000:0:99999:7:::\n",
}
_START = """set -e
for name in passwd group shadow; do mount --bind "$1/$name" "/etc/$name"; done
mount -t tmpfs none /run
mkdir -m 755 /run/sshd
mount -o bind,ro "$2/usr" /usr
exec /usr/sbin/sshd -D -e -f "$1/sshd_config"
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.1)


# ---- S3 --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def s3_server(folder: Path, *options: str, setup: int = 0) -> Iterator[int]:
    """Serve S3 and yield the port; the first ``setup`` requests are answered whoever asks."""
    port, log = free_port(), folder / "moto.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port), *options],
            # Without PYTHONPATH, which may bring the libraries of another release.
            env={"PATH": "/usr/bin:/bin", "INITIAL_NO_AUTH_ACTION_COUNT": str(setup), "TMPDIR": str(folder)},
            stdout=output,
            stderr=output,
        )
    try:
        _wait(port, process, log)
        yield port
    finally:
        process.kill()
        process.wait()


def s3_client(service: str, port: int, access: str = "setup", secret: str = "setup-setup") -> Any:
    return boto3.client(
        service,
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        config=Config(proxies={}, retries={"total_max_attempts": 1}),
    )


def s3_key(port: int, user: str, *buckets: str, may: str | tuple[str, ...] = "s3:*") -> dict[str, str]:
    """Make a user and a key that reaches these buckets alone; return ``access_key`` and ``secret_key``."""
    iam = s3_client("iam", port)
    iam.create_user(UserName=user)
    key = iam.create_access_key(UserName=user)["AccessKey"]
    mine = [f"arn:aws:s3:::{name}{end}" for name in buckets for end in ("", "/*")]
    rule = {"Effect": "Allow", "Action": may, "Resource": mine}
    document = json.dumps({"Version": "2012-10-17", "Statement": [rule]})
    iam.put_user_policy(UserName=user, PolicyName="own", PolicyDocument=document)
    return {"access_key": key["AccessKeyId"], "secret_key": key["SecretAccessKey"]}


def self_signed(folder: Path) -> None:
    """Write a certificate for 127.0.0.1 that nobody else vouches for: ``cert`` and ``key``."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", f"{folder}/key", "-out", f"{folder}/cert"]
    subprocess.run(command, check=True, capture_output=True)


# ---- sftp ------------------------------------------------------------------------------------------------


@dataclass
class SftpServer:
    """A server of sftp: its port, and a folder with ``key`` (the client's), ``known_hosts`` and ``home``."""

    port: int
    folder: Path

    def line(self, port: int) -> str:
        """Return the line of known_hosts for this server, seen at a port."""
        kind, key = (self.folder / "host_key.pub").read_text().split()[:2]
        return f"[127.0.0.1]:{port} {kind} {key}\n"


def ssh_key(path: Path) -> Path:
    """Make a key without a passphrase; return the file of its public half."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return Path(f"{path}.pub")


@contextlib.contextmanager
def sftp_server(folder: Path) -> Iterator[SftpServer]:
    """Serve sftp to the user ``store``, whose home is ``folder/home``; ``folder`` is root's up to /."""
    made, log = SftpServer(free_port(), folder), folder / "sshd.log"
    program = f"from engine import programs; print(programs{('openssh-server', 'debian-13', _PACKAGES)})"
    tree = subprocess.run(
        [sys.executable, "-c", program], cwd=TOOLS, capture_output=True, text=True, check=True
    ).stdout.strip()
    ssh_key(folder / "host_key")
    (folder / "authorized_keys").write_text("restrict " + ssh_key(folder / "key").read_text())
    (folder / "known_hosts").write_text(made.line(made.port))
    (folder / "home").mkdir(mode=0o700)
    os.chown(folder / "home", 2900, 2900)
    (folder / "sshd_config").write_text(_SSHD.format(port=made.port, folder=folder))
    for name, text in _ACCOUNTS.items():
        (folder / name).write_text(text.format(folder=folder))
    with log.open("ab") as output:
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _START, "sh"]
        process = subprocess.Popen([*command, str(folder), tree], stdout=output, stderr=output)
    try:
        _wait(made.port, process, log)
        yield made
    finally:
        process.kill()
        process.wait()


# ---- what is between -------------------------------------------------------------------------------------


@dataclass
class Line:
    """What passes the bytes of connections on, and can fall silent; ``port`` is where it listens."""

    target: int
    most: int = -1
    passed: int = 0
    _listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def serve(self) -> None:
        """Accept connections; from ``most`` bytes on towards the target nothing passes any more (-1: all)."""
        with contextlib.suppress(OSError):
            while True:
                one, _address = self._listener.accept()
                other = socket.create_connection(("127.0.0.1", self.target))
                for pair in ((one, other, True), (other, one, False)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                self.passed += len(data) if counted else 0
                if 0 <= self.most < self.passed:
                    return  # and both ends stay open
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@contextlib.contextmanager
def line(target: int, most: int = -1) -> Iterator[Line]:
    """Yield a line to a port of this computer."""
    made = Line(target, most)
    threading.Thread(target=made.serve, daemon=True).start()
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """Yield a port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def elsewhere(function: Callable[[], Any], mounts: dict[str, str]) -> Callable[[], Any]:
    """Return what calls ``function`` where each file of ``mounts`` is mounted over another, for a child."""

    def call() -> Any:
        import ctypes

        # unshare(2), CLONE_NEWNS.
        assert ctypes.CDLL(None).unshare(0x00020000) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        for target, source in mounts.items():
            subprocess.run(["mount", "--bind", source, target], check=True)
        return function()

    return call
