# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A picture of all of a server, and what two of them differ in beyond a user's own; run there, as root.

    snapshot.py take FILE [ROOT...]             of what is below the roots ("/" by default), and of all else;
                                                prints how much there is of each kind
    snapshot.py compare BEFORE AFTER UID NAME   prints a JSON list of differences that are not the user's own

A file is told by lstat(2). No user can set its ctime, which every change of its content, name, mode or owner
moves, so big files and those of /usr are not read; of others there is a checksum besides. What is left out or
looked at loosely is in the tables of this file, each with its reason, and nowhere else.
"""

from __future__ import annotations

import collections
import hashlib
import http.client
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

PLACE = "/run/lab-test-hostile"
HASHED = 256 << 10  # bytes of a file up to which it is read
PATIENCE = 90  # seconds until what a user began has ended

# What is not walked: it is asked for in another way below, or is not a file of this server.
NOT_WALKED = {
    "/proc": "the kernel's view of processes, which are compared by themselves",
    "/sys": "the kernel's view of devices; the limits in it are compared by themselves",
    "/dev/pts": "terminals of who is logged in",
    "/run/docker": "the engine's, which is asked for all that is in it",
    "/run/containerd": "the same",
    "/var/lib/containerd": "the same",
    PLACE: "where these pictures are",
}
# Places of which only kinds, modes and owners are compared: times and sizes in them move by themselves.
NO_TIMES = {
    "/dev": "a terminal or /dev/null has the time of who wrote to it last",
    "/run": "pids, sockets and counters of services",
    "/var/log": "logs of root's, which grow by what is logged",
    "/var/lib/lastlog": "who logged in when",
    "/var/lib/wtmpdb": "the same",
}
# Folders in which a user's own entries come and go, so that their own times and sizes say nothing.
SHARED_FOLDERS = (
    "/home/.tmp",
    "/tmp",
    "/var/tmp",
    "/dev/shm",
    "/dev/mqueue",
    "/var/lib/lab-server",
    "/var/lib/sudo/lectured",
)
# New entries that come with every login or call, all of them root's; they say nothing of what anybody typed.
COME_AND_GO = (
    r"/run/systemd/(sessions|users|inhibit|transient|journal/streams|units|propagate)(/.*)?",
    r"/run/(credentials|log/journal|sudo/ts|udev|netns)(/.*)?",
    r"/run/systemd/journal/.*",
    r"/run/lab-server/(calls|locks|builds)(/.*)?",
    r"/var/log/.*",
)
# Records of root's with entries of many users: what is not the user's own in them is compared.
RECORDS = ("lifecycle.json", "gpus/leases.json", "gpus/queue.json", "gpus/usage.json")
OWN_CLOCK = ("boot", "up", "at", "length")  # when such a record was written, in its own terms
STATE = "/var/lib/lab-server"
SYSTEM_SETTINGS = (
    *("kernel/core_pattern", "kernel/modprobe", "kernel/hostname", "kernel/yama/ptrace_scope"),
    *("fs/protected_hardlinks", "fs/protected_symlinks", "fs/protected_fifos", "fs/suid_dumpable"),
    *("net/ipv4/ip_forward", "user/max_user_namespaces", "kernel/unprivileged_userns_clone"),
)
LIMITS = ("memory.max", "memory.swap.max", "memory.high", "pids.max", "cpu.max", "io.max", "cpuset.cpus")

# ---- the picture -----------------------------------------------------------------------------------------


def _entry(path: str, seen: os.stat_result) -> list[Any]:
    """Return what is compared of a file: kind and mode, owners, sizes, times, and what is in it."""
    said = ""
    with suppress(OSError):
        if stat.S_ISLNK(seen.st_mode):
            said = os.readlink(path)
        elif stat.S_ISREG(seen.st_mode) and seen.st_size <= HASHED and not path.startswith("/usr/"):
            # A user cannot turn this path into a link: nothing that is a user's is read by it.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME)
            with os.fdopen(descriptor, "rb") as file:
                said = hashlib.sha256(file.read(HASHED)).hexdigest()
    times = [seen.st_size, seen.st_nlink, seen.st_mtime_ns, seen.st_ctime_ns]
    return [oct(seen.st_mode), seen.st_uid, seen.st_gid, seen.st_rdev, *times, said]


def _walk(roots: list[str], without: set[str]) -> dict[str, list[Any]]:
    """Return all that is below the roots, on all file systems, without following links."""
    found = {}
    waiting = list(roots)
    while waiting:
        path = waiting.pop()
        if path in without:
            continue
        try:
            seen = os.lstat(path)
            found[os.fsdecode(os.fsencode(path))] = _entry(path, seen)
            if stat.S_ISDIR(seen.st_mode):
                waiting += [os.path.join(path, name) for name in os.listdir(path)]
        except FileNotFoundError:
            continue  # it went while this was at work; where that matters, the other picture has it
    return found


class _Engine(http.client.HTTPConnection):
    """The engine's socket; its answers as they are."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/run/docker.sock")

    def ask(self, path: str) -> Any:
        self.request("GET", path, headers={"Host": "docker"})
        return json.loads(self.getresponse().read() or b"null")


def _docker() -> dict[str, Any]:
    """Return all containers, images, volumes and networks, with what containers changed in their files."""
    engine = _Engine("docker")
    containers, images = {}, {}
    for one in engine.ask("/containers/json?all=1"):
        known = engine.ask(f"/containers/{one['Id']}/json")
        known.pop("ExecIDs", None)  # commands that somebody runs in it
        # The engine gives both in any order.
        known["Mounts"] = sorted(known.get("Mounts") or [], key=lambda mount: str(mount.get("Destination")))
        changes = engine.ask(f"/containers/{one['Id']}/changes") or []
        changes.sort(key=lambda change: str(change["Path"]))
        containers[one["Id"]] = {"inspect": known, "changes": changes}
    for one in engine.ask("/images/json?all=1"):
        images[one["Id"]] = engine.ask(f"/images/{one['Id']}/json")
    networks = engine.ask("/networks")
    for network in networks:
        network.pop("Containers", None)  # those that run; they are above
    return {
        "containers": containers,
        "images": images,
        "volumes": engine.ask("/volumes")["Volumes"] or [],
        "networks": sorted(networks, key=lambda network: str(network["Id"])),
        "root": engine.ask("/info")["DockerRootDir"],
    }


def _layers(docker: dict[str, Any]) -> list[str]:
    """Return the folders of all layers that images and containers consist of."""
    found = set()
    things = [one["inspect"] for one in docker["containers"].values()] + list(docker["images"].values())
    for one in things:
        data = (one.get("GraphDriver") or {}).get("Data") or {}
        for key in ("UpperDir", "LowerDir"):
            found.update(path for path in str(data.get(key) or "").split(":") if path)
    return sorted(found)


def _processes() -> dict[str, int]:
    """Return the processes, but for the kernel's own: how many there are of each owner and command line."""
    found: collections.Counter[str] = collections.Counter()
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        with suppress(OSError):
            with open(f"/proc/{name}/status", encoding="utf-8", errors="replace") as file:
                told = dict(line.split(":\t", 1) for line in file.read().splitlines() if ":\t" in line)
            if "2" in (name, told["PPid"]):
                continue
            with open(f"/proc/{name}/cmdline", "rb") as stream:
                words = stream.read().replace(b"\0", b" ").decode("utf-8", "replace").strip()
            if PLACE not in words:  # those that take the picture
                found[f"{told['Uid'].split()} {words or told['Name']}"] += 1
    return dict(found)


def _settle() -> None:
    """Wait until nobody's call of the broker is at work, nor a builder's container."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and any(
        "lab-broker" in one or "docker build" in one for one in _processes()
    ):
        time.sleep(0.5)


def _lines(*command: str) -> list[str]:
    # A list that could not be made would be like any other that could not.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()


def _first_line(path: str) -> str:
    with suppress(OSError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()
    return ""


def _limits() -> dict[str, str]:
    """Return the limits of the control groups that users' sessions and containers are in."""
    found = {}
    for top in filter(os.path.isdir, ("/sys/fs/cgroup/lab.slice", "/sys/fs/cgroup/user.slice")):
        for folder in [top, *(f"{top}/{name}" for name in os.listdir(top) if name.endswith(".slice"))]:
            for name in LIMITS:
                found[f"{folder}/{name}"] = _first_line(f"{folder}/{name}")
    return found


def _mounts() -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        rows = [line.split() for line in file]
    # Root and mount point, options, then kind, source and options of the file system: proc(5).
    return sorted(" ".join([*row[3:6], *row[row.index("-") :]]) for row in rows)


def _firewall() -> list[str]:
    return [re.sub(r"\[[0-9:]+\]", "", one) for one in _lines("iptables-save") if not one.startswith("#")]


def _records() -> dict[str, Any]:
    found = {}
    for name in RECORDS:
        with suppress(OSError), open(f"{STATE}/{name}", encoding="utf-8") as file:
            text = file.read()
            try:
                found[name] = json.loads(text)
            except ValueError:
                found[name] = text
    return found


def take(roots: list[str]) -> dict[str, Any]:
    """Return a picture of the server when nobody's call is at work."""
    _settle()
    docker = _docker()
    files = _walk(roots, {*NOT_WALKED, docker["root"]})
    if "/" in roots:
        files.update(_walk(_layers(docker), set()))
    return {
        "files": files,
        "records": _records(),
        "docker": docker,
        "processes": _processes(),
        "limits": _limits(),
        "mounts": _mounts(),
        "firewall": _firewall(),
        "settings": {name: _first_line(f"/proc/sys/{name}") for name in SYSTEM_SETTINGS},
        "units": _lines("systemctl", "list-units", "--all", "--plain", "--full", "--no-legend", "--no-pager"),
        "listening": sorted(_lines("ss", "-H", "-lntu")),
        "quotas": _lines("repquota", "-anu") + _lines("repquota", "-anP"),
    }


# ---- the difference --------------------------------------------------------------------------------------

Told = list[str]


class Difference:
    """What is different in two pictures and not the own of one user."""

    def __init__(self, before: dict[str, Any], after: dict[str, Any], uid: int, name: str) -> None:
        self.before, self.after, self.uid, self.name = before, after, uid, name
        self._own_name = re.compile(rf"\._\.{uid}(?![0-9])")
        self._own_trees = (
            *(f"/home/{name}", f"/home/.workspaces/{name}", f"/run/user/{uid}"),
            *(f"/home/.tmp/tmp-{name}", f"/home/.tmp/var-tmp-{name}"),
        )
        own = {key: one for picture in (before, after) for key, one in self._own_containers(picture).items()}
        self._own_ids = set(own)

    # The user's own

    def _own_containers(self, picture: dict[str, Any]) -> dict[str, Any]:
        """Return the containers whose label, which only root writes, names the user."""
        return {
            key: one
            for key, one in picture["docker"]["containers"].items()
            if ((one["inspect"]["Config"].get("Labels") or {}).get("lab.server.owner")) == str(self.uid)
        }

    def _own_image(self, image: dict[str, Any], *, new: bool) -> bool:
        """Say whether an image has the user's names alone; without a name, whether it is ``new``."""
        tags = image.get("RepoTags") or []
        return all(tag.startswith(f"lab/{self.uid}/") for tag in tags) and (bool(tags) or new)

    def _own_state(self, path: str) -> bool:
        """Say whether a file of root's is a record of this user: its path has the uid, or a container's name.

        What was seen of images ("looks") has their digests for a name and is made for whoever comes first.
        """
        if not path.startswith(f"{STATE}/"):
            return False
        parts = path.split("/")[4:]
        shared = "/".join(parts) in RECORDS  # its content is compared by itself
        own = str(self.uid) in parts or bool(self._own_name.search(path))
        return shared or own or parts[0] in ("looks", "tmp")

    def _own_file(self, path: str, entries: list[list[Any]]) -> bool:
        if any(path == tree or path.startswith(f"{tree}/") for tree in self._own_trees):
            return True
        if path.startswith(("/tmp/", "/var/tmp/", "/dev/shm/", "/dev/mqueue/")):
            # Where everybody may write, what was and is the user's is the user's.
            return all(entry[1] == self.uid for entry in entries)
        return self._own_state(path) or path in (
            f"/run/lab-server-notices/{self.uid}",
            f"/var/lib/sudo/lectured/{self.name}",
            f"/var/lib/sudo/lectured/{self.uid}",
        )

    # What is compared

    def files(self) -> Iterator[str]:
        before, after = self.before["files"], self.after["files"]
        layers = tuple(_others_layers(self))
        root = self.before["docker"]["root"] + "/"
        for path in sorted({*before, *after}):
            if path.startswith(root) and not path.startswith(layers):
                continue  # a layer of the user's own image
            old, new = (self._seen(path, one.get(path)) for one in (before, after))
            if old == new or self._own_file(path, [one for one in (old, new) if one is not None]):
                continue
            root_folder = stat.S_ISDIR(int((new or old or ["0"])[0], 8)) and path.startswith(f"{STATE}/")
            if old is None and root_folder and new is not None and new[:3] == [oct(0o40700), 0, 0]:
                continue  # folders of records are made for whoever comes first
            comes_or_goes = any(re.fullmatch(pattern, path) for pattern in COME_AND_GO)
            if comes_or_goes and None in (old, new) and (new or old)[1] == 0:
                continue
            yield f"file {path}: {old} -> {new}"

    def _seen(self, path: str, entry: list[Any] | None) -> list[Any] | None:
        """Return what counts of a file."""
        if entry is None:
            return None
        folder = stat.S_ISDIR(int(entry[0], 8))
        loose = any(path == place or path.startswith(f"{place}/") for place in NO_TIMES)
        of_state = folder and path.startswith(f"{STATE}/")
        if loose or of_state or path in SHARED_FOLDERS:
            return entry[:4]
        return entry

    def records(self) -> Iterator[str]:
        before, after = (self._without_own(one["records"]) for one in (self.before, self.after))
        for name in RECORDS:
            if before.get(name) != after.get(name):
                yield f"record {name}: {before.get(name)} -> {after.get(name)}"

    def _without_own(self, value: Any) -> Any:
        """Return a record without the entries of the user, and without empty ones."""
        if isinstance(value, dict):
            kept = {key: self._without_own(one) for key, one in value.items() if not self._of_user(key, one)}
            return {key: one for key, one in kept.items() if one not in (None, {}, [])}
        if isinstance(value, list):
            return [self._without_own(one) for one in value if not self._of_user("", one)]
        return value

    def _of_user(self, key: str, value: Any) -> bool:
        uid = value.get("uid") if isinstance(value, dict) else None
        first = value[0] if isinstance(value, list) and value else None
        own = bool(self._own_name.search(key)) or key in self._own_ids or self.uid in (uid, first)
        return own or key in OWN_CLOCK

    def docker(self) -> Iterator[str]:
        before, after = self.before["docker"], self.after["docker"]
        for kind in ("containers", "images"):
            for key in sorted({*before[kind], *after[kind]}):
                old, new = before[kind].get(key), after[kind].get(key)
                if old != new and not self._own_thing(kind, key, old, new):
                    yield f"{kind} {key[:19]}: {_changed(old, new)}"
        for kind in ("volumes", "networks", "root"):
            if before[kind] != after[kind]:
                yield f"{kind}: {before[kind]} -> {after[kind]}"

    def _own_thing(self, kind: str, key: str, old: Any, new: Any) -> bool:
        if kind == "containers":
            return key in self._own_ids
        return all(self._own_image(one, new=old is None) for one in (old, new) if one is not None)

    def processes(self) -> Iterator[str]:
        before, after = self.before["processes"], self.after["processes"]
        uid = f"['{self.uid}', '{self.uid}', '{self.uid}', '{self.uid}']"
        for one in sorted({*before, *after}):
            own = one.startswith(uid) or any(key in one for key in self._own_ids)
            if before.get(one, 0) != after.get(one, 0) and not own and not _session(one, self.name):
                yield f"process {one}: {before.get(one, 0)} -> {after.get(one, 0)}"

    def listed(self, kind: str, loose: Callable[[str], bool]) -> Iterator[str]:
        """Compare lists of lines, without those that ``loose`` is true of."""
        before, after = (
            collections.Counter(one for one in picture[kind] if not loose(one)) for picture in self._both()
        )
        for one in sorted({*before, *after}):
            if before[one] != after[one]:
                yield f"{kind} {one}: {before[one]} -> {after[one]}"

    def _both(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.before, self.after

    def named(self, kind: str, loose: Callable[[str], bool]) -> Iterator[str]:
        """Compare values by their names, without those that ``loose`` is true of."""
        before, after = self.before[kind], self.after[kind]
        for one in sorted({*before, *after}):
            if before.get(one) != after.get(one) and not loose(one):
                yield f"{kind} {one}: {before.get(one)} -> {after.get(one)}"

    def all(self) -> Told:
        """Return all differences, one line each."""
        nobodys = re.compile(
            r"(session-|docker-|user@|user-|lab-[0-9]|run-user|user-runtime-dir@|run-docker|run-[ru][0-9]|"
            r"run-containerd|var-lib-docker|sys-|dev-)"
        )
        of_engine = re.compile(
            r"^\S+ (/var/lib/docker|/run/docker|/run/containerd|/run/user|/var/lib/containerd)\S*"
        )
        own_slice = re.compile(rf".*/(lab|user)-{self.uid}\.slice/.*")
        return [
            *self.files(),
            *self.records(),
            *self.docker(),
            *self.processes(),
            *self.named("limits", lambda one: bool(own_slice.match(one))),
            *self.named("settings", _nothing),
            # Sessions, containers and the mounts of both; what is others' of them is compared above.
            *self.listed("units", lambda one: bool(nobodys.match(one))),
            *self.listed("mounts", lambda one: bool(of_engine.match(one))),
            *self.listed("firewall", _nothing),
            *self.listed("listening", _nothing),
            *self.listed("quotas", self._no_quota),
        ]

    def _no_quota(self, line: str) -> bool:
        """Say whether a line of repquota(8) is no user's, or this one's."""
        found = re.match(r"#([0-9]+)\s", line)
        return not found or int(found[1]) < 1000 or int(found[1]) == self.uid


def _nothing(_line: str) -> bool:
    """Say that a line is to be compared."""
    return False


def _others_layers(difference: Difference) -> list[str]:
    """Return the folders of layers that were there before and are not the user's alone."""
    docker = difference.before["docker"]
    images = {key: one for key, one in docker["images"].items() if not difference._own_image(one, new=False)}
    containers = {key: one for key, one in docker["containers"].items() if key not in difference._own_ids}
    return [f"{path}/" for path in _layers({"images": images, "containers": containers})]


def _session(process: str, name: str) -> bool:
    """Say whether a process is the server's end of a login: the user's, or of who takes the pictures."""
    return bool(
        re.search(rf"\] sshd(-session|-auth)?: ({name}|root)\b", process)
        or re.search(r"\] (\(sd-pam\)|(/usr)?/lib/systemd/systemd --user)$", process)
        or "systemd-userwork" in process
        or "(udev-worker)" in process
    )


def _changed(old: Any, new: Any, where: str = "") -> str:
    """Return where two values of JSON differ, in short."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        return "; ".join(_changed(old.get(key), new.get(key), f"{where}.{key}") for key in keys)
    return f"{where or 'it'}: {str(old)[:200]} -> {str(new)[:200]}"


def main(words: list[str]) -> None:
    """Take a picture or compare two."""
    if words[0] == "take":
        picture = take(words[2:] or ["/"])
        with open(words[1], "w", encoding="ascii") as file:
            json.dump(picture, file)
        print(json.dumps({kind: len(found) for kind, found in picture.items()}))
        return
    pictures = []
    for path in words[1:3]:
        with open(path, encoding="ascii") as file:
            pictures.append(json.load(file))
    print(json.dumps(Difference(pictures[0], pictures[1], int(words[3]), words[4]).all()))


if __name__ == "__main__":
    main(sys.argv[1:])
