# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Throw-away virtual machines that look like real lab servers: own kernel, systemd, and further disks.

    vm.py up NAME [--distro debian-12|debian-13] [--memory MIB] [--without home|data|docker]
    vm.py ssh NAME [--user USER] [-- COMMAND...]
    vm.py stop|down NAME, vm.py start NAME [--without ROLE], vm.py destroy NAME...
    vm.py plug NAME ROLE        gives a machine that was started without a disk that disk, while it runs
    vm.py twin NAME OTHER       shuts NAME down, copies it, boots both
    vm.py status [NAME], vm.py inventory NAME, vm.py build DISTRO [--force]

A machine is a folder in ``.vm`` of the checkout (LAB_VM_ROOT overrides it): an overlay over a cached base
image, the disks, a key, ``ssh_config`` and the log of the console. QEMU carries it: with KVM where that
works, else by emulation; LAB_VM_ACCEL=kvm|tcg decides it by hand.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cache import Entry, ToolError, as_root, folder, locked, run, say

ROOT = Path(__file__).resolve().parent.parent
RELEASES = {"debian-12": "bookworm", "debian-13": "trixie"}
DISKS = {"home": 4, "data": 4, "docker": 16, "spare": 4}
"""The further disks and their sizes in GiB, sparse; in the machine /dev/disk/by-id/virtio-lab-<role>. The one
that is spare has no use until the shared data move to it."""

PACKAGES = [
    *("systemd", "systemd-sysv", "systemd-resolved", "dbus", "udev", "kmod", "iproute2", "openssh-server"),
    *("python3", "sudo", "ca-certificates", "initramfs-tools", "linux-image-cloud-amd64", "e2fsprogs"),
]
ROOT_GIB = 10
# The machine boots with the kernel and initrd beside its disk. Others in it, made again for each package that
# asks for it, would be of no use and cost an emulated processor minutes: update-initramfs.conf(5).
NO_INITRD = "sed -i s/^update_initramfs=.*/update_initramfs=no/ $1/etc/initramfs-tools/update-initramfs.conf"
# By name, not by type: networkd would take the ends of containers out of their bridge otherwise.
NETWORK = "[Match]\nName=en*\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=ipv4\nIPv6AcceptRA=no\n"
FSTAB = "LABEL=lab-root / ext4 errors=remount-ro 0 1\n"
HOSTS = "127.0.0.1 localhost\n127.0.1.1 lab-server\n::1 localhost ip6-localhost ip6-loopback\n"

KVM_PATIENCE = 10
"""Seconds within which a guest under KVM must have started its first process; a healthy one needs two."""
SSH_PATIENCE = 300
"""Seconds within which a machine must answer; emulation on a busy computer is slow."""


# The base image


def base_image(distro: str) -> Entry:
    """Return the cache entry of a distribution: ``disk.img``, ``vmlinuz``, ``initrd``, ``host_keys``."""
    release = RELEASES[distro]
    recipe = {
        "version": 2,
        "release": release,
        "packages": PACKAGES,
        "files": [NETWORK, FSTAB, HOSTS],
        "size": ROOT_GIB,
    }
    return Entry(distro, recipe)


def make_base_image(distro: str, target: Path) -> None:
    """Make a bare Debian as its installer leaves it: no service but ssh, the package lists of today.

    The host keys of ssh are made here, once for all machines of this cache: making them takes half a minute
    of an emulated processor. They are worth nothing outside this computer.
    """
    tree = target / "tree"
    files = target / "files"
    for name, text in {
        "etc/systemd/network/20-wired.network": NETWORK,
        "etc/fstab": FSTAB,
        "etc/hosts": HOSTS,
        "etc/hostname": "lab-server\n",
    }.items():
        path = files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    try:
        run(
            as_root(
                "mmdebstrap",
                "--variant=minbase",
                "--format=directory",
                # A freshly installed Debian has its package lists; fetching them takes emulation a minute.
                "--skip=cleanup/apt/lists",
                f"--include={','.join(PACKAGES)}",
                f"--customize-hook=sync-in '{files}' /",
                '--customize-hook=chroot "$1" systemctl enable -q systemd-networkd systemd-resolved ssh',
                f"--customize-hook={NO_INITRD}",
                RELEASES[distro],
                str(tree),
            )
        )
        run(as_root("truncate", "-s", "0", str(tree / "etc/machine-id")))
        for pattern, name in {
            "boot/vmlinuz-*": "vmlinuz",
            "boot/initrd.img-*": "initrd",
            "etc/ssh/ssh_host_*_key.pub": "host_keys",
        }.items():
            (target / name).write_bytes(b"".join(path.read_bytes() for path in sorted(tree.glob(pattern))))
        disk = target / "disk.img"
        run(
            as_root(
                "mke2fs", "-q", "-t", "ext4", "-L", "lab-root", "-d", str(tree), str(disk), f"{ROOT_GIB}G"
            )
        )
        run(as_root("chown", f"{os.getuid()}:{os.getgid()}", str(disk)))
        disk.chmod(0o444)
    finally:
        run(as_root("rm", "-rf", "--one-file-system", str(tree), str(files)))


# The machine


class Machine:
    """One virtual machine and its folder."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,40}", name):
            raise ToolError(
                f"{name!r} cannot be the name of a machine: small letters, digits, '.' and '-' only."
            )
        self.name = name
        self.folder = Path(os.environ.get("LAB_VM_ROOT") or ROOT / ".vm") / name
        self.key = self.folder / "id_ed25519"
        self.console = self.folder / "console.log"
        self.pidfile = self.folder / "qemu.pid"
        self.ssh_config = self.folder / "ssh_config"

    @property
    def monitor(self) -> Path:
        """The socket at which QEMU takes orders; its path must be short (unix(7))."""
        digest = hashlib.sha256(os.fsencode(self.folder.absolute())).hexdigest()[:16]
        return _control_folder() / f"{digest}.qmp"

    @property
    def exists(self) -> bool:
        """Whether the machine was made and not destroyed."""
        return (self.folder / "machine.json").exists()

    def settings(self) -> dict[str, object]:
        """Return what the machine was made with; ToolError when there is none."""
        try:
            found: dict[str, object] = json.loads((self.folder / "machine.json").read_text())
        except FileNotFoundError:
            raise ToolError(
                f"There is no machine {self.name!r}. Make it with: tools/vm.py up {self.name}"
            ) from None
        return found

    def pid(self) -> int | None:
        """Return the process id of the running QEMU, or None.

        A pid may have been given to somebody else since: it counts only while that process was started with
        our own pid file among its arguments.
        """
        try:
            pid = int(self.pidfile.read_text())
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, ValueError):
            return None
        return pid if os.fsencode(self.pidfile) in arguments else None

    def create(self, distro: str, memory: int) -> None:
        """Make the folder: overlay, blank disks, key."""
        base = base_image(distro).get(lambda target: make_base_image(distro, target))
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        run(
            [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                f"throw-away-{self.name}",
                "-f",
                str(self.key),
            ]
        )
        _link(base / "disk.img", self.folder / "base.img")
        # The name is relative to the overlay's folder.
        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.img"]
        run([*overlay, str(self.folder / "root.qcow2")])
        for role, size in DISKS.items():
            with (self.folder / f"{role}.img").open("wb") as disk:
                disk.truncate(size << 30)
        for name in ("vmlinuz", "initrd", "host_keys"):
            shutil.copy(base / name, self.folder / name)
        settings = {"distro": distro, "memory": memory}
        (self.folder / "machine.json").write_text(json.dumps(settings, indent=1) + "\n")

    def copy_to(self, other: Machine) -> None:
        """Make ``other`` the same as this machine, which is off; what is there under that name is lost."""
        if self.pid() is not None:
            raise ToolError(f"{self.name} runs; its disks cannot be copied. Stop it first.")
        self.settings()
        other.destroy()
        other.folder.mkdir(parents=True)
        for path in sorted(self.folder.iterdir()):
            if path.name == "base.img":
                _link(path, other.folder / path.name)
            elif path.suffix in (".img", ".qcow2"):
                _copy_sparse(path, other.folder / path.name)
            elif path.name not in (self.pidfile.name, self.console.name, "machine.json"):
                shutil.copy(path, other.folder / path.name)
        # Last: a folder without it is no machine.
        shutil.copy(self.folder / "machine.json", other.folder / "machine.json")

    def start(self, without: Sequence[str] = ()) -> None:
        """Boot and wait until ssh answers. Nothing happens when it runs already."""
        self.boot(without)
        started = time.monotonic()
        self._wait_for_ssh()
        say(f"{self.name}: answers after {time.monotonic() - started:.0f} s")

    def boot(self, without: Sequence[str] = ()) -> None:
        """Boot, and do not wait for it. Nothing happens when it runs already."""
        settings = self.settings()
        if self.pid() is None:
            with locked(folder() / "port.lock"):
                port = _free_port()
                self._write_ssh_files(port)
                accelerator = self._boot(port, int(str(settings["memory"])), without)
            missing = f", without the disk {', '.join(without)}" if without else ""
            say(f"{self.name}: {settings['distro']} boots with {accelerator}{missing}; log: {self.console}")

    def _write_ssh_files(self, port: int) -> None:
        keys = [line.split()[:2] for line in (self.folder / "host_keys").read_text().splitlines()]
        known = "".join(f"lab-{self.name} {kind} {key}\n" for kind, key in keys)
        (self.folder / "known_hosts").write_text(known)
        self.ssh_config.write_text(
            f"# The throw-away machine {self.name}; written anew at each start.\n"
            f"Host server {self.name}\n"
            "  HostName 127.0.0.1\n"
            f"  Port {port}\n"
            "  User root\n"
            f"  HostKeyAlias lab-{self.name}\n"
            f'  UserKnownHostsFile "{self.folder / "known_hosts"}"\n'
            "  StrictHostKeyChecking yes\n"
            f'  IdentityFile "{self.key}"\n'
            "  IdentitiesOnly yes\n"
            "  ForwardAgent no\n"
            "  LogLevel ERROR\n"
            "  ConnectTimeout 30\n"
            "  ServerAliveInterval 15\n"
            "  ControlMaster auto\n"
            f"  ControlPath {_control_folder()}/%C\n"
            "  ControlPersist 60\n"
        )

    def _boot(self, port: int, memory: int, without: Sequence[str]) -> str:
        """Start QEMU; return the accelerator that works."""
        choice = os.environ.get("LAB_VM_ACCEL", "")
        if choice not in ("", "kvm", "tcg"):
            raise ToolError(f"LAB_VM_ACCEL={choice}: it is 'kvm', 'tcg' or not set.")
        if choice == "kvm" or (not choice and _kvm_may_work()):
            try:
                self._launch("kvm", port, memory, without)
                if choice or self._first_process_within(KVM_PATIENCE):
                    return "KVM"
            except ToolError:
                if choice:
                    raise
            say(f"{self.name}: KVM is there but no guest boots on it; emulation is used instead (slower)")
            self.power_off()
            _remember_that_kvm_fails()
        self._launch("tcg", port, memory, without)
        return "emulation"

    def _launch(self, accelerator: str, port: int, memory: int, without: Sequence[str]) -> None:
        key = base64.b64encode(self.key.with_suffix(".pub").read_bytes()).decode()
        processor = ["-accel", "kvm", "-cpu", "host", "-smp", str(min(2, os.cpu_count() or 1))]
        if accelerator == "tcg":
            # cx16 off: with it, kernel 6.12 panics under the emulation of QEMU 7. la57 off: page tables
            # of five levels make the start of a program cost 40 per cent more there. One processor: a kernel
            # that patches itself (static keys) while another one runs that code meets "Oops: int3" there.
            processor = ["-accel", "tcg", "-cpu", "max,-cx16,-la57", "-smp", "1"]
        command = [
            *(
                "qemu-system-x86_64",
                "-name",
                f"lab-{self.name}",
                "-nodefaults",
                "-no-user-config",
                *processor,
            ),
            *("-m", str(memory), "-display", "none"),
            *("-kernel", str(self.folder / "vmlinuz"), "-initrd", str(self.folder / "initrd")),
            *("-append", "root=LABEL=lab-root ro console=ttyS0 loglevel=5 systemd.show_status=yes"),
            # systemd of the guest puts the key of root in place from this credential.
            *("-smbios", f"type=11,value=io.systemd.credential.binary:ssh.authorized_keys.root={key}"),
            *("-chardev", f"file,id=console,append=on,path={self.console}", "-serial", "chardev:console"),
            *("-device", "virtio-rng-pci"),
            *("-netdev", f"user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:{port}-:22"),
            *("-device", "virtio-net-pci,netdev=net,romfile="),
            *_disk("root", self.folder / "root.qcow2", "qcow2"),
        ]
        for role in DISKS:
            disk = self.folder / f"{role}.img"
            # A machine that was made by an older version may lack one.
            if role not in without and disk.exists():
                command += _disk(role, disk, "raw")
        command += ["-qmp", f"unix:{self.monitor},server=on,wait=off"]
        self.pidfile.unlink(missing_ok=True)
        self.console.write_bytes(b"")
        run([*command, "-daemonize", "-pidfile", str(self.pidfile)])

    def _first_process_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if b"Loading, please wait" in self.console.read_bytes():
                return True
            time.sleep(0.5)
        return False

    def _wait_for_ssh(self) -> None:
        end = time.monotonic() + SSH_PATIENCE
        while time.monotonic() < end:
            if self.pid() is None:
                raise ToolError(f"{self.name}: the machine went off while it booted.\n{self._console_tail()}")
            # No shared connection here: a half-dead one of the time before a reboot would be believed.
            fresh = ("-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "BatchMode=yes")
            done = subprocess.run(
                [*self.ssh_command(options=fresh), "true"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode == 0:
                return
            time.sleep(1)
        raise ToolError(f"{self.name}: ssh does not answer after {SSH_PATIENCE} s.\n{self._console_tail()}")

    def wait_for_boot(self) -> None:
        """Wait until the machine has started all that it starts by itself, whether that went well or not."""
        # It ends with another status than 0 where a unit failed, which is for others to judge, and at once
        # where systemd does not answer yet: systemctl(1).
        settled = "for try in 1 2 3; do systemctl is-system-running --wait && break; sleep 2; done"
        command = f"timeout {SSH_PATIENCE} sh -c '{settled}' || true"
        run([*self.ssh_command(options=("-o", "BatchMode=yes")), command])

    def _console_tail(self) -> str:
        text = self.console.read_text(errors="replace") if self.console.exists() else ""
        return "The end of its console:\n" + "\n".join(text.splitlines()[-15:])

    def ssh_command(self, user: str = "", options: Sequence[str] = ()) -> list[str]:
        """Return the ssh command that logs in, without a command for the other side."""
        login = ["-l", user] if user else []
        return ["ssh", "-F", str(self.ssh_config), *options, *login, "server"]

    def stop(self, patience: float = 120) -> None:
        """Shut down in order, as ``systemctl poweroff`` does; ToolError when it does not go off."""
        if self.pid() is None:
            return
        subprocess.run(
            [*self.ssh_command(options=("-o", "BatchMode=yes")), "systemctl poweroff"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        end = time.monotonic() + patience
        while self.pid() is not None:
            if time.monotonic() > end:
                raise ToolError(
                    f"{self.name}: not off after {patience:.0f} s. Use: tools/vm.py down {self.name}"
                )
            time.sleep(0.5)
        self._forget_connection()

    def power_off(self) -> None:
        """Pull the plug: what the guest has not written is lost, what it has written is kept."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            while self.pid() is not None:
                time.sleep(0.1)
        self._forget_connection()

    def plug(self, role: str) -> None:
        """Give a machine that runs a disk that it was started without, as a slow controller would."""
        self.settings()
        if self.pid() is None:
            raise ToolError(f"{self.name} is off. Start it with: tools/vm.py start {self.name}")
        file = {"driver": "file", "filename": str((self.folder / f"{role}.img").absolute())}
        cache = {"no-flush": True}  # as of the disks that are there from the start
        self._order("blockdev-add", driver="raw", **{"node-name": role}, file=file, cache=cache)
        self._order("device_add", driver="virtio-blk-pci", id=role, drive=role, serial=f"lab-{role}")

    def _order(self, name: str, **arguments: object) -> None:
        """Give QEMU an order, and wait for its answer (QEMU's QMP)."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self.monitor))
            with connection.makefile("rw", encoding="utf-8") as stream:
                for order in ({"execute": "qmp_capabilities"}, {"execute": name, "arguments": arguments}):
                    stream.write(json.dumps(order) + "\n")
                    stream.flush()
                    # A greeting, and what happens meanwhile, come in between.
                    answer = next(one for one in map(json.loads, stream) if {"return", "error"} & set(one))
                    if "error" in answer:
                        raise ToolError(f"{self.name}: {name}: {answer['error'].get('desc')}")

    def _forget_connection(self) -> None:
        """Close the shared ssh connection, which would wait for a machine that is gone."""
        if self.ssh_config.exists():
            subprocess.run(
                self.ssh_command(options=("-O", "exit")),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )

    def destroy(self) -> None:
        """Remove the machine and everything of it."""
        self.power_off()
        shutil.rmtree(self.folder, ignore_errors=True)

    def status(self) -> str:
        """Return one line about the machine."""
        settings = self.settings()
        state = f"runs (pid {self.pid()})" if self.pid() else "is off"
        what = f"{settings['distro']}, {settings['memory']} MiB"
        return f"{self.name}: {what}, {state}, ssh -F {self.ssh_config} server"

    def inventory(self) -> dict[str, object]:
        """Return an Ansible inventory with this machine as the host ``server``."""
        self.settings()
        variables = {
            "ansible_host": self.name,
            "ansible_ssh_common_args": f'-F "{self.ssh_config}"',
            "ansible_python_interpreter": "/usr/bin/python3",
        }
        return {"lab_servers": {"hosts": ["server"]}, "_meta": {"hostvars": {"server": variables}}}


def _disk(role: str, path: Path, image_format: str) -> list[str]:
    # cache=unsafe: what the guest flushes reaches this computer's memory, which outlives the death of QEMU.
    # Only the death of this computer would lose it, and then the machine is made anew.
    drive = f"if=none,id={role},file={path},format={image_format},cache=unsafe,discard=unmap"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={role},serial=lab-{role}"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _control_folder() -> Path:
    """Return a private folder for the sockets of ssh, whose paths must be short."""
    path = Path(f"/tmp/lab-server-{os.getuid()}")  # noqa: S108 - owner and mode are checked below
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o170077 != 0o040000:
        raise ToolError(f"{path} is not a private folder of yours; remove it.")
    return path


def _kvm_may_work() -> bool:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    try:
        failed_in = (folder() / "kvm-fails").read_text()
    except FileNotFoundError:
        return True
    return failed_in != _boot_id()


def _remember_that_kvm_fails() -> None:
    """Remember it until this computer boots again, so that not every start waits for the same answer."""
    (folder() / "kvm-fails").write_text(_boot_id())


def _link(base: Path, target: Path) -> None:
    """Give the machine a base image of its own, which stays when the cache makes a new one."""
    try:
        os.link(base, target)
    except OSError:
        # Another file system, or one without links.
        _copy_sparse(base, target)


def _copy_sparse(source: Path, target: Path) -> None:
    """Copy the image of a disk and leave its holes out."""
    run(["cp", "--sparse=always", "--reflink=auto", str(source), str(target)])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()


# The command line


def _up(arguments: argparse.Namespace) -> None:
    machine = Machine(arguments.name)
    if not machine.exists:
        machine.create(arguments.distro or "debian-12", arguments.memory)
    elif arguments.distro and machine.settings()["distro"] != arguments.distro:
        there = machine.settings()["distro"]
        raise ToolError(f"{machine.name} is there already, with {there}. Destroy it first (make destroy).")
    machine.start(arguments.without)


def _twin(arguments: argparse.Namespace) -> None:
    machine, other = Machine(arguments.name), Machine(arguments.other)
    if machine.name == other.name:
        raise ToolError(f"{machine.name} cannot be its own twin. Give another name.")
    machine.stop()
    machine.copy_to(other)
    for one in (machine, other):
        one.boot()
    for one in (machine, other):
        one.start()
        one.wait_for_boot()


def _destroy(arguments: argparse.Namespace) -> None:
    for name in arguments.names:
        Machine(name).destroy()


def _ssh(arguments: argparse.Namespace) -> None:
    machine = Machine(arguments.name)
    machine.settings()
    if machine.pid() is None:
        raise ToolError(f"{machine.name} is off. Start it with: tools/vm.py start {machine.name}")
    tty = ("-t",) if arguments.command and sys.stdin.isatty() else ()
    line = [*machine.ssh_command(arguments.user, tty), *arguments.command]
    os.execvp(line[0], line)  # noqa: S606 - the program is 'ssh', its arguments are a list


def _status(arguments: argparse.Namespace) -> None:
    parent = Machine("any").folder.parent
    names = (
        [arguments.name]
        if arguments.name
        else sorted(path.parent.name for path in parent.glob("*/machine.json"))
    )
    for name in names:
        print(Machine(name).status())
    if not arguments.name:
        for distro in RELEASES:
            print(f"base image {distro}: {base_image(distro).state()}")


def _build(arguments: argparse.Namespace) -> None:
    distro: str = arguments.distro
    print(base_image(distro).get(lambda target: make_base_image(distro, target), force=arguments.force))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Throw-away virtual machines that look like real lab servers."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    build = verbs.add_parser("build", help="make the base image of a distribution, if it is missing or stale")
    build.add_argument("distro", choices=RELEASES)
    build.add_argument("--force", action="store_true", help="make it even if it is fresh")
    build.set_defaults(run=_build)
    up = verbs.add_parser("up", help="make a machine if there is none, boot it, wait for ssh")
    up.add_argument("--distro", choices=RELEASES)
    up.add_argument("--memory", type=int, default=3072, metavar="MIB")
    up.set_defaults(run=_up)
    start = verbs.add_parser("start", help="boot a machine that is off, with the disks it had")
    start.set_defaults(run=lambda arguments: Machine(arguments.name).start(arguments.without))
    stop = verbs.add_parser("stop", help="shut down in order")
    stop.set_defaults(run=lambda arguments: Machine(arguments.name).stop())
    down = verbs.add_parser("down", help="pull the plug")
    down.set_defaults(run=lambda arguments: Machine(arguments.name).power_off())
    plug = verbs.add_parser("plug", help="give a machine that runs a disk that it was started without")
    plug.set_defaults(run=lambda arguments: Machine(arguments.name).plug(arguments.role))
    destroy = verbs.add_parser("destroy", help="remove machines and their disks")
    destroy.add_argument("names", nargs="+", metavar="name")
    destroy.set_defaults(run=_destroy)
    twin = verbs.add_parser("twin", help="shut a machine down, copy it, boot both")
    twin.set_defaults(run=_twin)
    inventory = verbs.add_parser("inventory", help="print an Ansible inventory (JSON)")
    inventory.set_defaults(
        run=lambda arguments: print(json.dumps(Machine(arguments.name).inventory(), indent=1))
    )
    ssh = verbs.add_parser("ssh", help="log in, or run a command")
    ssh.set_defaults(run=_ssh)
    for verb in (up, start, stop, down, plug, twin, inventory, ssh):
        verb.add_argument("name")
    plug.add_argument("role", choices=DISKS)
    twin.add_argument("other")
    for verb in (up, start):
        verb.add_argument(
            "--without", action="append", default=[], choices=DISKS, help="boot with this disk missing"
        )
    ssh.add_argument("--user", default="")
    status = verbs.add_parser("status", help="say what there is")
    status.add_argument("name", nargs="?")
    status.set_defaults(run=_status)
    return parser


def main() -> int:
    """Run the command line; return the exit status."""
    words, separator, command = sys.argv[1:], "--", []
    if separator in words:
        words, command = words[: words.index(separator)], words[words.index(separator) + 1 :]
    arguments = _parser().parse_args(words, argparse.Namespace(command=command))
    try:
        arguments.run(arguments)
    except ToolError as error:
        say(f"vm.py: {error}")
        return 1
    except FileNotFoundError as error:
        say(f"vm.py: {error.filename} is missing; 'make packages' installs what is needed.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
