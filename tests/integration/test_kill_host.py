"""A module that changes the host, killed before a change of a file or a tool: the next run converges.

A child in a private root does the work of the module and ends by SIGKILL, as when the power goes or the
connection of ssh: it can tidy up nothing. Then the module runs again, and must leave what a run leaves that
nobody cut off, with nothing beside it. systemd is played by a script, as there is none in a private root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import slices
from private_root import PrivateRoot, run_module
from test_check_mode import HOME, QUOTA, _policy, _prepare_shares, _user, _users

_CHANGING = frozenset(
    {
        *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.removexattr", "os.rename"),
        *("os.rmdir", "os.setxattr", "os.symlink", "os.truncate", "shutil.chown", "subprocess.Popen"),
    }
)
"""What Python tells its audit hooks before it is done (PEP 578, the library's table of audit events)."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
POINTS = int(os.environ.get("LAB_TEST_KILL_POINTS", "8"))
"""At how many places of one work it is killed: the first, the last, and others evenly between."""
MOMENTS = (0.001, 0.003, 0.01)
"""So many seconds after the start of a tool it is killed as well."""
PLAYED = "/run/played"
# What systemd knows of unit files and limits, and what the service has read, is in files of its own.
SYSTEMCTL = f"""#!/bin/sh
cd {PLAYED} || exit 1
verb=$1; shift
case "$verb" in
daemon-reload) rm -rf known; cp -a /etc/systemd/system known ;;
set-property)
  unit=$2; shift 2
  for limit in "$@"; do
    key=${{limit%%=*}}; value=${{limit#*=}}; folder=/run/systemd/system.control/$unit.d
    mkdir -p "$folder"; printf '[Slice]\\n%s\\n' "$limit" > "$folder/50-$key.conf"
    case "$key" in
    MemoryMax) file=memory.max ;;
    MemorySwapMax) file=memory.swap.max ;;
    TasksMax) file=pids.max ;;
    CPUQuota) file=cpu.max; value="${{value%\\%}}000 100000" ;;
    esac
    for slice in cgroups/*/"$unit"; do [ ! -d "$slice" ] || echo "$value" > "$slice/$file"; done
  done ;;
show)
  shift
  for unit in "$@"; do
    number=$(cat "starts/$unit" 2>/dev/null || echo 1)
    printf 'LoadState=loaded\\nActiveState=active\\nInvocationID=%s\\n' "$number"
    printf 'InactiveExitTimestampMonotonic=1\\n\\n'
  done ;;
restart) echo x$$ > "starts/$1"; rm -rf read; cp -a /etc/app read ;;
reload) rm -rf read; cp -a /etc/app read ;;
esac
"""


@dataclass(frozen=True)
class Work:
    """What is done to a private root before, as by hand and by earlier runs, and the run that is killed."""

    module: str
    last: dict[str, Any]
    before: tuple[dict[str, Any], ...] = ()
    prepare: Callable[[PrivateRoot], None] = lambda _root: None


def _with_sessions(root: PrivateRoot) -> None:
    """Let the slices of alice run, by older limits."""
    for name in ("lab.slice/lab-2001.slice", "user.slice/user-2001.slice"):
        folder = root.path / f"{PLAYED[1:]}/cgroups" / name
        folder.mkdir(parents=True)
        old = {"memory.max": "1", "memory.swap.max": "0", "pids.max": "1", "cpu.max": "1000 100000"}
        for file, text in old.items():
            (folder / file).write_text(f"{text}\n")


def _app(root: PrivateRoot) -> None:
    (root.path / "etc/app").mkdir()
    (root.path / "etc/app/conf").write_text("new")


_APP = {"unit": "app.service", "files": ["/etc/app/conf", "/etc/systemd/system/app.service"]}
_NEW_LIMITS = _users(
    users=[_user(limits={"cpus": 2, "memory": "1g", "pids": 9}, ssh_keys=[], groups=["vision"])],
)
_STORAGE = {"lab_object_storage": [{"name": "campus", "url": "https://s3.example.org"}]}
_KEYS = {"campus": {"access_key": "AKCAMPUS", "secret_key": "not-to-be-shown-1"}}
WORKS = {
    "the users of a bare server": Work("users", _users()),
    "users that change while their slices run": Work("users", _NEW_LIMITS, (_users(),), _with_sessions),
    "users whose temporary files become their own": Work("users", _users(private_tmp=True), (_users(),)),
    "users that have them in common again": Work(
        "users", _users(private_tmp=False), (_users(private_tmp=True),)
    ),
    "users that leave": Work("users", _users(users=[]), (_users(),)),
    "the file systems of a bare server": Work(
        "filesystems", {"filesystems": [HOME]}, prepare=lambda root: root.add_disk(HOME["device"])
    ),
    "quotas": Work(
        "quotas",
        {"users": [{"name": "alice", "uid": 2001, "quota": QUOTA}], "grace_days": 3, "default": {}},
    ),
    "units, one of which is to read its files": Work(
        "units",
        {
            "units": {"app.service": "[Unit]\n", "app.service.d/a.conf": "[Unit]\n"},
            "current": [_APP],
        },
        ({"units": {"app.service": "[Unit]\nDescription=old\n"}},),
        _app,
    ),
    "a unit that is to be reloaded": Work("units", {"current": [{**_APP, "reload": True}]}, (), _app),
    "the library and the commands of a bare server": Work("commands", {"policy": _policy()}),
    "a policy that changes": Work(
        "commands", {"policy": _policy(lab_environment={"A": "b"})}, ({"policy": _policy()},)
    ),
    "the settings of the engine": Work(
        "daemon_config", {"settings": {"icc": False}}, ({"settings": {"debug": True}},)
    ),
    "shares": Work(
        "shares",
        {
            "shares": [
                {"name": "vision", "access": "group", "group": "researchers"},
                {"name": "datasets", "access": "read-only"},
            ]
        },
        prepare=_prepare_shares,
    ),
    "keys of object storage": Work(
        "object_storage",
        {"policy": _policy(**_STORAGE), "credentials": {"alice": _KEYS, "bob": _KEYS}},
    ),
}


@pytest.fixture
def new_root(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], PrivateRoot]]:
    """Return a function that makes a private root with a systemd that is played; the one before it goes."""
    made: list[PrivateRoot] = []

    def make() -> PrivateRoot:
        while made:
            made.pop().close()
        root = PrivateRoot(url)
        made.append(root)
        monkeypatch.setattr(
            "ansible_collections.lab.server.plugins.module_utils._core.quota._quotactl", root.kernel.quotactl
        )
        for folder in ("systemd/system", "played/cgroups", "played/starts"):
            (root.path / "run" / folder).mkdir(parents=True)
        program = root.path / "usr/bin/systemctl"
        program.unlink(missing_ok=True)
        program.write_text(SYSTEMCTL)
        program.chmod(0o755)
        return root

    monkeypatch.setattr(slices, "CGROUPS", f"{PLAYED}/cgroups")
    yield make
    while made:
        made.pop().close()


def _prepared(root: PrivateRoot, work: Work) -> PrivateRoot:
    work.prepare(root)
    for arguments in work.before:
        assert not run_module(work.module, arguments, check=False, call=root.call).get("failed")
    return root


def _killed(root: PrivateRoot, work: Work, number: int, seconds: float = 0.0) -> tuple[bool, int]:
    """Run the module, killed before its change ``number``, counted from 1; 0: never.

    With ``seconds`` tools alone are counted, and it is killed so long after the start of one, together with
    that. Return whether it was killed, and how many changes, or tools, it came to.
    """

    def run() -> list[int]:
        counter = os.memfd_create("changes")
        ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
        child = os.fork()
        if child == 0:
            sys.dont_write_bytecode = True
            os.setsid()
            count = 0

            def hook(event: str, arguments: tuple[Any, ...]) -> None:
                nonlocal count
                if event == "subprocess.Popen" or (not seconds and _changes(event, arguments)):
                    count += 1
                    os.pwrite(counter, b"x", count - 1)
                    if count == number and seconds:
                        threading.Timer(seconds, os.killpg, (os.getpid(), signal.SIGKILL)).start()
                    elif count == number:
                        os.kill(os.getpid(), signal.SIGKILL)
                        time.sleep(60)

            sys.addaudithook(hook)
            try:
                run_module(work.module, work.last, check=False, call=lambda function: function())
            finally:
                os._exit(0)
        status = os.waitpid(child, 0)[1]
        # As init would, for the tools of whoever was killed.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-1, 0)
        return [int(os.WIFSIGNALED(status)), os.fstat(counter).st_size]

    killed, changes = root.call(run)
    return bool(killed), int(changes)


def _changes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event != "open":
        return event in _CHANGING
    path, _mode, flags = arguments
    return isinstance(flags, int) and bool(flags & _WRITING) and not str(path).startswith(("/dev/", "/proc/"))


def _look(root: PrivateRoot) -> dict[str, Any]:
    """Return all that is in the private root, but for what tells how often something was done."""
    found = {}
    for key, value in root.content().items():
        backup = re.fullmatch(r"/\.upper/etc/(?:passwd|shadow|group|gshadow|subuid|subgid)-", key)
        if key in ("/.upper/etc/shadow", "/.upper/etc/gshadow"):
            # What is completed later stands further down, and grpconv(8) writes 'x' for no password.
            lines = (root.path / key.removeprefix("/.upper/")).read_text().splitlines()
            value = value.rsplit(" ", 1)[0] + str(
                sorted(re.sub("^(alice):x:", r"\1:!:", line) for line in lines)
            )
        # mount(8) is told of its own options by /run/mount, of which nothing hangs here.
        counted = key.startswith(
            (f"{PLAYED}/starts/", "/run/lab-server/loaded/", "/.upper/tmp/", "/run/mount")
        )
        if not backup and not counted and key not in root.loops and "/__pycache__/" not in key:
            found[key] = value
    own = {str(root.base): "base", **{loop: f"disk {number}" for number, loop in enumerate(root.loops)}}
    for name, told in own.items():
        found["mounts"] = [line.replace(name, told) for line in found["mounts"]]
    return found


@pytest.mark.parametrize("name", WORKS)
def test_the_next_run_converges(new_root: Callable[[], PrivateRoot], name: str) -> None:
    work = WORKS[name]
    root = _prepared(new_root(), work)
    killed, changes = _killed(root, work, 0)
    assert not killed and changes > 0
    whole = _look(root)
    numbers = sorted({1 + round(n * (changes - 1) / max(1, POINTS - 1)) for n in range(POINTS)})
    for number in numbers:
        root = _prepared(new_root(), work)
        assert _killed(root, work, number)[0], f"change {number} of {changes} is not come to"
        _converges(root, work, whole, f"killed before change {number} of {changes}")


@pytest.mark.parametrize(
    "name", [name for name, work in WORKS.items() if work.module in ("users", "filesystems", "units")]
)
def test_the_next_run_converges_though_a_tool_was_killed(
    new_root: Callable[[], PrivateRoot], name: str
) -> None:
    work = WORKS[name]
    root = _prepared(new_root(), work)
    _never, tools = _killed(root, work, 0, 1.0)
    whole = _look(root)
    points = [(number, seconds) for number in range(1, tools + 1) for seconds in MOMENTS]
    for number, seconds in points[:: max(1, len(points) // POINTS)]:
        root = _prepared(new_root(), work)
        _killed(root, work, number, seconds)
        _converges(root, work, whole, f"killed {seconds} s after the start of tool {number} of {tools}")


def test_account_files_that_a_killed_tool_left_are_completed(new_root: Callable[[], PrivateRoot]) -> None:
    """The states between two renames of useradd and gpasswd, which a kill hits by luck alone."""
    work = Work("users", _users())
    root = _prepared(new_root(), work)
    run_module("users", work.last, check=False, call=root.call)
    whole = _look(root)
    files = {name: (root.path / "etc" / name).read_text() for name in ("shadow", "gshadow")}
    assert "alice:*:" in files["shadow"] and "students:!::alice\n" in files["gshadow"]

    def torn(name: str, old: str, new: str) -> None:
        (root.path / "etc" / name).write_text(re.sub(old, new, files[name]))

    def locked() -> None:
        # By the number of a process that lives, though it is another one; so no tool can do anything.
        for name in ("shadow", "group"):
            (root.path / f"etc/{name}.lock").write_text(f"{os.getpid()}\0")
        torn("shadow", "alice.*\n", "")

    for tear in (
        lambda: torn("shadow", "alice.*\n", ""),
        lambda: torn("gshadow", "alice:.*\n", ""),
        lambda: torn("gshadow", "(lab|students):!::alice", r"\1:!::"),
        lambda: torn("gshadow", "docker:(.*):", r"docker:\1:mallory"),
        lambda: (root.path / "etc/passwd+").write_text("root"),
        locked,
    ):
        tear()
        assert _look(root) != whole
        _converges(root, work, whole, "completed")


def _converges(root: PrivateRoot, work: Work, whole: dict[str, Any], what: str) -> None:
    """Assert that the next run does what it promises, leaves what is wanted, and the one after it nothing."""
    promised = run_module(work.module, work.last, check=True, call=root.call)
    done = run_module(work.module, work.last, check=False, call=root.call)
    assert not done.get("failed"), (what, done["msg"])
    assert done["changed"] == promised["changed"], what
    found = _look(root)
    wrong = {
        key: (whole.get(key), found.get(key)) for key in {*whole, *found} if whole.get(key) != found.get(key)
    }
    assert wrong == {}, what
    again = run_module(work.module, work.last, check=False, call=root.call)
    assert not again["changed"], (what, again)
