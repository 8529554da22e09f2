"""A root file system of its own for modules that change the host, and a way to run a module's main().

The private root is the computer's own, seen through an overlay (overlayfs in the kernel's documentation) in a
mount namespace of its own: what a module writes lands in the overlay's upper folder, where the tests can see
all of it, and is gone afterwards. Disks are files behind loop devices. The kernel of a test computer need
not have disk quotas, so their system call is played by ``Kernel``; a virtual machine of molecule has them.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, Callable

from ansible.module_utils.testing import patch_module_args

CHECKOUT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (CHECKOUT / "plugins/modules").glob("*.py"))
PACKAGE = "ansible_collections.lab.server.plugins.modules"

_CLONE_NEWNS = 0x00020000
# Folders of the computer that the private root has empty: what is in them must not decide over a test.
_EMPTY = (
    *("home", "srv", "usr/local/bin", "usr/local/sbin", "usr/local/lib/lab-server", "etc/docker"),
    *("etc/lab-server", "etc/ssh/lab_authorized_keys", "etc/systemd/system", "etc/apt/sources.list.d"),
    *("var/lib/lab-server", "usr/local/share/ca-certificates", "var/lib/apt/lists", "var/lib/dpkg"),
)
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/bash\n_apt:x:100:65534::/nonexistent:/usr/sbin/nologin\n",
    "etc/shadow": "root:*:19000:0:99999:7:::\n_apt:*:19000:0:99999:7:::\n",
    "etc/group": "root:x:0:\nshadow:x:42:\ndocker:x:110:mallory\nnogroup:x:65534:\n",
    "etc/gshadow": "root:*::\nshadow:*::\ndocker:*::mallory\nnogroup:*::\n",
    "etc/subuid": "",
    "etc/subgid": "",
    "etc/fstab": "# the system's own lines\nproc /proc proc defaults 0 0\n",
    "etc/apt/sources.list": "deb [trusted=yes] file:/srv/packages ./\n",
    "var/lib/dpkg/status": "",
    "var/lib/dpkg/available": "",
}
_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
# A kernel without quotas mounts a file system that has them read-only, which is all that is needed here.
_MOUNT = '#!/bin/sh\nexec /usr/bin/mount.real -o ro "$@"\n'


def call_in_child(function: Callable[[], Any]) -> Any:
    """Call ``function`` in a forked child and return its result, which crosses as JSON.

    The child has what the test has patched, and takes with it whatever it breaks of itself.
    """
    with tempfile.TemporaryFile("w+") as answer:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                json.dump(function(), answer)
                answer.flush()
                code = 0
            except BaseException:  # noqa: BLE001  # a forked child that unwinds would run its parent's tests
                answer.seek(0)
                answer.truncate()
                answer.write(traceback.format_exc())
                answer.flush()
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        answer.seek(0)
        text = answer.read()
        assert status == 0, text
        return json.loads(text)


def run_module(
    name: str,
    arguments: dict[str, Any],
    *,
    check: bool,
    call: Callable[[Callable[[], Any]], Any] = call_in_child,
) -> dict[str, Any]:
    """Run the main() of a module with diff mode on, as Ansible would, and return what it hands back."""
    main = import_module(f"{PACKAGE}.{name}").main
    options = {**arguments, "_ansible_check_mode": check, "_ansible_diff": True, "_ansible_module_name": name}

    def run() -> Any:
        output = io.StringIO()
        with patch_module_args(options), redirect_stdout(output):
            try:
                main()
            except SystemExit:
                return json.loads(output.getvalue())
        raise AssertionError(f"{name} ended without an answer")

    answer: dict[str, Any] = call(run)
    answer.pop("invocation", None)
    return answer


def next_second() -> None:
    """Wait until the clock shows another second: Docker dates images by whole ones, and so orders them."""
    time.sleep(1.05 - time.time() % 1)


class Kernel:
    """Plays quotactl(2) of one file system; what it is told is in files, one for each user or project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def quotactl(self, command: int, kind: int, _device: str, number: int, buffer: Any) -> None:
        """Answer as the kernel does for a file system that enforces user and project quotas."""
        record = self.folder / f"{kind}-{number}"
        if command == 0x800008:  # Q_SETQUOTA
            record.write_bytes(buffer.raw)
        elif command == 0x800007:  # Q_GETQUOTA
            known = record.read_bytes() if record.exists() else b""
            buffer.raw = known.ljust(len(buffer.raw), b"\0")
        elif command == 0x800006:  # Q_SETINFO
            (self.folder / "grace").write_bytes(buffer.raw)
        elif command == 0x800005:  # Q_GETINFO: seven days each, to begin with
            grace = self.folder / "grace"
            week = struct.pack("=2Q2I", 604800, 604800, 0, 0)
            buffer.raw = grace.read_bytes() if grace.exists() else week
        elif command == 0x5805:  # Q_XGETQSTAT: user and project quotas are counted and enforced
            struct.pack_into("=bxH", buffer, 0, 1, 0b110011)
        else:
            raise AssertionError(f"quotactl {command:#x} is not expected")

    def limits(self) -> dict[str, str]:
        """Return all records, by kind and number."""
        return {path.name: path.read_bytes().hex() for path in sorted(self.folder.iterdir())}


class PrivateRoot:
    """A private root, held by a process that does nothing else."""

    def __init__(self, docker: str = "") -> None:
        self.base = Path(tempfile.mkdtemp(prefix="lab-server-root-"))
        self.loops: list[str] = []
        self._docker = docker.removeprefix("unix://")
        self.kernel = Kernel(self.base / "kernel")
        ready_in, ready_out = os.pipe()
        self._keeper = os.fork()
        if self._keeper == 0:
            try:
                # prctl(2), PR_SET_PDEATHSIG: it must not outlive the tests, however they end.
                ctypes.CDLL(None).prctl(1, signal.SIGKILL)
                self._set_up()
                os.write(ready_out, b"y")
                signal.pause()
            except BaseException:  # noqa: BLE001  # as in call_in_child
                os.write(ready_out, traceback.format_exc().encode())
            finally:
                os._exit(1)
        os.close(ready_out)
        with os.fdopen(ready_in, "rb") as ready:
            said = ready.read(1) or b"it ended"
            if said != b"y":
                said += ready.read()
                self.close()
                raise AssertionError(f"The private root could not be made: {said.decode()}")

    @property
    def path(self) -> Path:
        """The private root as the test sees it (proc(5): /proc/PID/root)."""
        return Path(f"/proc/{self._keeper}/root")

    @property
    def keeper(self) -> int:
        """The process that holds the private root."""
        return self._keeper

    def show(self, folder: Path) -> None:
        """Have a folder of the computer in the private root, at the same path."""

        def mount() -> None:
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/proc/{self._keeper}/ns/mnt") as namespace:
                if libc.setns(namespace.fileno(), _CLONE_NEWNS) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            inside = self.base / "root" / str(folder).lstrip("/")
            inside.mkdir(parents=True, exist_ok=True)
            _mount("--bind", str(folder), str(inside))

        call_in_child(mount)

    def close(self) -> None:
        """End the holder, with which the namespace and all that was mounted in it goes."""
        os.kill(self._keeper, signal.SIGKILL)
        os.waitpid(self._keeper, 0)
        for loop in self.loops:
            subprocess.run(["losetup", "-d", loop], check=True)
        shutil.rmtree(self.base)

    def call(self, function: Callable[[], Any]) -> Any:
        """Call ``function`` in a child that lives in the private root."""
        libc = ctypes.CDLL(None, use_errno=True)

        def enter() -> Any:
            root = os.open(self.path, os.O_RDONLY)
            with open(f"/proc/{self._keeper}/ns/mnt") as namespace:
                if libc.setns(namespace.fileno(), _CLONE_NEWNS) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            os.fchdir(root)
            os.chroot(".")
            os.chdir("/")
            return function()

        return call_in_child(enter)

    def run(self, *command: str) -> str:
        """Run a command in the private root; return its output."""

        def run() -> str:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        shown: str = self.call(run)
        return shown

    def add_disk(self, link: str) -> None:
        """Add a blank disk of 32 MiB to the private root, known by ``link`` below /dev."""
        image = self.base / f"disk{len(self.loops)}"
        with image.open("wb") as file:
            file.truncate(32 << 20)
        loop = subprocess.run(
            ["losetup", "--find", "--show", str(image)], capture_output=True, text=True, check=True
        ).stdout.strip()
        self.loops.append(loop)
        device, known = self.path / loop.lstrip("/"), self.path / link.lstrip("/")
        os.mknod(device, 0o660 | stat.S_IFBLK, os.stat(loop).st_rdev)
        known.parent.mkdir(parents=True, exist_ok=True)
        known.symlink_to(loop)

    def mount_writable(self) -> None:
        """Let mount(8) be what it is: for file systems without quotas, which this kernel can write."""
        shutil.copy2(self.path / "usr/bin/mount.real", self.path / "usr/bin/mount")

    def add_packages(self, *names: str) -> None:
        """Put packages with nothing in them into the only repository that apt knows in the private root.

        Each as name, or name=version.
        """
        folder = self.path / "srv/packages"
        folder.mkdir()
        index = ""
        for word in names:
            name, _equals, version = word.partition("=")
            control = (
                f"Package: {name}\nVersion: {version or 1}\nArchitecture: all\nMaintainer: nobody\n"
                "Description: a test\n"
            )
            tree = self.base / word
            (tree / "DEBIAN").mkdir(parents=True)
            (tree / "DEBIAN/control").write_text(control)
            made = self.base / f"{word}.deb"
            subprocess.run(["dpkg-deb", "--build", str(tree), str(made)], capture_output=True, check=True)
            data = made.read_bytes()
            (folder / made.name).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            index += f"{control}Filename: ./{made.name}\nSize: {len(data)}\nSHA256: {digest}\n\n"
        (folder / "Packages").write_text(index)

    def content(self) -> dict[str, Any]:
        """Return all that was ever written in the private root: files, limits, mounts, disks."""

        def mounted() -> list[str]:
            return sorted(line.split(" ", 4)[4] for line in Path("/proc/self/mountinfo").open())

        found = self.call(lambda: {**tree("/.upper"), **tree("/run"), "mounts": mounted()})
        found["limits"] = self.kernel.limits()
        for loop in self.loops:
            with open(loop, "rb") as disk:
                found[loop] = hashlib.sha256(disk.read()).hexdigest()
        return dict(found)

    def _set_up(self) -> None:
        """Become the holder of the private root."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNS) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        _mount("--make-rprivate", "/")
        layers, root = self.base / "layers", self.base / "root"
        for folder in (layers, root):
            folder.mkdir()
        _mount("-t", "tmpfs", "tmpfs", str(layers))
        upper, work = layers / "upper", layers / "work"
        for folder in (upper, work):
            folder.mkdir()
        for name in _EMPTY:
            (upper / name).mkdir(parents=True)
            os.setxattr(upper / name, "trusted.overlay.opaque", b"y")
        # Temporary files come and go; were it made by the first, the folder would look like a change.
        (upper / "tmp").mkdir()
        (upper / "tmp").chmod(0o1777)
        for name, text in _FILES.items():
            (upper / name).write_text(text)
        (upper / "etc/shadow").chmod(0o640)
        for name in ("info", "updates"):
            (upper / "var/lib/dpkg" / name).mkdir()
        _mount(*("-t", "overlay", "overlay", "-o"), f"lowerdir=/,upperdir={upper},workdir={work}", str(root))
        # The overlay shows what is on the root's own file system; the checkout may be on another.
        for folder in (CHECKOUT, Path(sys.prefix)):
            inside = root / str(folder).lstrip("/")
            inside.mkdir(parents=True, exist_ok=True)
            _mount("--bind", str(folder), str(inside))
            _mount("-o", "remount,bind,ro", str(inside))
        (root / ".upper").mkdir()
        _mount("--bind", str(upper), str(root / ".upper"))
        _mount("--rbind", "/proc", str(root / "proc"))
        _mount("--rbind", "/sys", str(root / "sys"))
        for name in ("dev", "run", "var/tmp"):
            _mount("-t", "tmpfs", "tmpfs", str(root / name))
        for name, numbers in _DEVICES.items():
            os.mknod(root / "dev" / name, 0o666 | stat.S_IFCHR, os.makedev(*numbers))
            (root / "dev" / name).chmod(0o666)
        (root / "dev/fd").symlink_to("/proc/self/fd")
        (root / "run/lock").mkdir()
        if self._docker:
            (root / "run/docker.sock").touch()
            _mount("--bind", self._docker, str(root / "run/docker.sock"))
        program = root / "usr/bin/mount"
        shutil.copy2(program, root / "usr/bin/mount.real")
        program.unlink()
        program.write_text(_MOUNT)
        program.chmod(0o755)
        os.chroot(root)
        os.chdir("/")


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def tree(top: str, but: str = "") -> dict[str, str]:
    """Return what is in a folder: kind, owner, mode, default ACL, and content or target, by path.

    What is in the folder ``but`` is left out.
    """
    found = {}
    for folder, folders, files in os.walk(top):
        if folder == but:
            folders.clear()
            continue
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            shown = f"{status.st_mode:o} {status.st_uid}:{status.st_gid} "
            if stat.S_ISREG(status.st_mode):
                shown += hashlib.sha256(Path(path).read_bytes()).hexdigest()
            elif stat.S_ISLNK(status.st_mode):
                shown += os.readlink(path)
            elif "system.posix_acl_default" in os.listxattr(path, follow_symlinks=False):
                shown += os.getxattr(path, "system.posix_acl_default").hex()
            found[path] = shown
    return found
