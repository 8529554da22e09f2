"""The process killed at every call of the engine, the engine killed in the middle: the next run converges.

A child process does the work and ends by SIGKILL, as by ``kill -9`` or a power loss: it can tidy up nothing.
The same work is then done again, and must lead where it would have led, with nothing beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import itertools
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    containers,
    images,
    locks,
    retired,
)
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core.containers import Wanted
from ansible_collections.lab.server.plugins.module_utils._core.engine import Engine
from ansible_collections.lab.server.plugins.module_utils._core.errors import LabError

ENDED, FAILED, BROKEN = 0, 3, 4
"""How a child ends that was not killed: its work done, its work failed with a sentence, or with a trace."""
MOST = 200
"""More calls than any of the works has; a loop that never ends is a bug of the test."""
CHANGING = frozenset({"create", "start", "stop", "remove", "rename", "put", "tag", "remove_image", "build"})
"""The calls in the middle of which the process is killed as well."""
NAME = "thesis._.2001"

Work = Callable[[Engine], object]
Hook = Callable[[str], None]


# The child


def watched(engine: Engine, hook: Hook) -> None:
    """Let ``hook`` be called with the name of every call of the engine, before it."""

    def wrapped(name: str, method: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(method)
        def call(*arguments: object, **named: object) -> object:
            hook(name)
            return method(*arguments, **named)

        return call

    for name, kind in vars(Engine).items():
        if not name.startswith("_") and callable(kind) and name != "close":
            setattr(engine, name, wrapped(name, getattr(engine, name)))


def in_child(url: str, hook: Hook, work: Work) -> int:
    """Do the work in a child process under the hook; return its status as waitpid(2) gave it."""
    child = os.fork()
    if child == 0:
        code = BROKEN
        try:
            os.setsid()
            engine = Engine.connect(url)
            watched(engine, hook)
            work(engine)
            code = ENDED
        except LabError:
            code = FAILED
        except BaseException:  # noqa: BLE001  # a forked child that unwinds would run the tests of its parent
            traceback.print_exc()
        finally:
            # A hook that is to kill it still does so.
            for thread in threading.enumerate():
                if isinstance(thread, threading.Timer):
                    thread.join()
            os._exit(code)
    return os.waitpid(child, 0)[1]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def strikes_at(number: int, seconds: float, strike: Callable[[], None]) -> Hook:
    """Return a hook that kills, by ``strike``, before call ``number``, counted from 1.

    With ``seconds`` it counts the calls that change something, and kills so long after the beginning of one:
    in the middle of a slow call, or shortly after a quick one.
    """
    counted = itertools.count(1)

    def hook(name: str) -> None:
        if (not seconds or name in CHANGING) and next(counted) == number:
            if not seconds:
                strike()
            else:
                threading.Timer(seconds, strike).start()

    return hook


# What must be so afterwards


@dataclass(frozen=True)
class Left:
    """What a work could leave behind: containers not of projects, nameless images, temporary files."""

    others: frozenset[str]
    nameless: frozenset[str]
    files: frozenset[str]


@pytest.fixture
def left(docker, root, monkeypatch) -> Callable[[], Left]:
    """Return a function that looks for what is left over, anywhere."""
    (root / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(root / "tmp"))

    def look() -> Left:
        listed = docker("ps", "-a", "--no-trunc", "--format", "{{.Names}}").split()
        return Left(
            frozenset(name for name in listed if "._." not in name),
            frozenset(docker("images", "-q", "--no-trunc", "-f", "dangling=true").split()),
            frozenset(str(path) for folder in ("tmp", "state/tmp") for path in (root / folder).glob("*")),
        )

    return look


def held_locks() -> list[str]:
    """Return the names of the locks that somebody holds, after the children of the dead have had a moment."""
    end = time.monotonic() + 3
    while True:
        held = []
        for path in Path(locks.RUN_DIRECTORY).glob("locks/*"):
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(path.name)
        if not held or time.monotonic() > end:
            return held
        time.sleep(0.02)


@pytest.fixture
def settled(engine, policy, alice):
    """Return a function that asserts how alice's containers are, and returns the id of the one that runs.

    As ``wanted``: there once, running, as decided and of the current image; None: there is none. Beside it
    there are ``kept`` retired ones, and nothing else.
    """

    def check(wanted: Wanted | None, what: str, *, kept: int = 0) -> str:
        listed = {item["Names"][0].lstrip("/"): item for item in engine.containers()}
        own = {name: item for name, item in listed.items() if name.startswith(NAME)}
        retired = [name for name in own if name.startswith(f"{NAME}.retired-")]
        assert len(retired) == kept, what
        assert {own.pop(name)["State"] for name in retired} <= {"exited"}, what
        if wanted is None:
            assert not own, what
            return ""
        assert list(own) == [NAME], what
        assert own[NAME]["State"] == "running", what
        decided = specs.decide(policy, alice, "thesis", wanted.wishes)
        assert own[NAME]["Labels"][specs.LABEL_DIGEST] == decided.digest(), what
        assert own[NAME]["ImageID"] == images.project_images(engine)[2001, "thesis"].id, what
        return own[NAME]["Id"]

    return check


def reconciled(engine: Engine, policy, wanted: Wanted) -> None:
    """Carry a wish out; raise LabError when it fails, as a command does."""
    result = containers.reconcile(engine, policy, [wanted], check=False)[0]
    if result.failed:
        raise LabError(result.message)


# The process is killed


@dataclass
class Killed:
    """Works that are killed at one call after the other, and then done to their end."""

    url: str
    engine: Engine
    calls: int = 0

    def once(self, number: int, seconds: float, work: Work, what: str) -> bool:
        """Kill the work at that call, look at the locks, and do it again; say whether it was killed."""
        status = in_child(self.url, strikes_at(number, seconds, die), work)
        assert held_locks() == [], what
        assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == ENDED, what
        work(self.engine)
        killed = os.WIFSIGNALED(status)
        self.calls += killed
        return killed


@pytest.fixture
def killed(url, engine) -> Killed:
    return Killed(url, engine)


@pytest.fixture
def launched(engine, policy, alice, thesis):
    """Let alice's container run."""
    containers.launch(engine, policy, alice, "thesis")


def in_turns(killed: Killed, seconds: float, *works: tuple[str, Work, Callable[[str], object]]) -> None:
    """Kill each work at its first call, then each at its second, and so on, until none has so many.

    Each begins where the one before ended. What must be so after each is checked by its last part.
    """
    more = {name: True for name, _work, _check in works}
    for number in range(1, MOST):
        for name, work, check in works:
            what = f"{name} killed in call {number} after {seconds} s"
            if more[name]:
                more[name] = killed.once(number, seconds, work, what)
            else:
                work(killed.engine)
            check(what)
        if not any(more.values()):
            return
    raise AssertionError(f"There is no end of calls: {works}.")


def made_and_removed(policy, alice, settled):
    """Return the removal of alice's container and its launch, as ``in_turns`` takes them."""
    made = Wanted("alice", "thesis")
    return (
        (
            "remove",
            lambda engine: reconciled(engine, policy, replace(made, state="absent")),
            lambda what: settled(None, what),
        ),
        (
            "launch",
            lambda engine: containers.launch(engine, policy, alice, "thesis"),
            lambda what: settled(made, what),
        ),
    )


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [0, 0.01])
def test_killed_while_it_is_made_and_while_it_is_removed(
    engine, policy, alice, launched, killed, settled, left, seconds
):
    before = left()
    in_turns(killed, seconds, *made_and_removed(policy, alice, settled))
    assert left() == before
    assert killed.calls >= 3


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [0, 0.01])
def test_killed_while_it_is_retired_and_while_it_is_restored(
    engine, policy, alice, launched, killed, settled, left, inside, seconds
):
    """It is the very container that comes back."""
    before = left()
    inside(alice, "thesis", "touch /tmp/work")
    made = Wanted("alice", "thesis")
    container = settled(made, "launched")

    def came_back(what: str) -> None:
        assert settled(made, what) == container, what

    in_turns(
        killed,
        seconds,
        (
            "retire",
            lambda engine: reconciled(engine, policy, replace(made, state="retired")),
            lambda what: settled(None, what, kept=1),
        ),
        ("restore", lambda engine: reconciled(engine, policy, replace(made, state="restored")), came_back),
    )
    assert left() == before
    assert inside(alice, "thesis", "ls /tmp/work").strip() == "/tmp/work"


@pytest.mark.parametrize("seconds", [0, pytest.param(0.01, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("worked", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_killed_while_it_is_replaced(
    engine, policy, alice, launched, killed, settled, left, inside, seconds, worked
):
    """What was in the old one is kept, and where there was nothing, so is nothing."""
    before = left()
    for number in range(1, MOST):
        if worked:
            inside(alice, "thesis", f"echo {number} > /tmp/work")
        # Another wish each time: each begins where the one before ended.
        wanted = Wanted("alice", "thesis", pids=20 + number)
        what = f"replacement killed in call {number} after {seconds} s"
        more = killed.once(number, seconds, functools.partial(reconciled, policy=policy, wanted=wanted), what)
        # One too many, where it was killed before it looked at the bounds, is the daily clean-up's.
        retired.clean_up(engine, policy, time.time())
        settled(wanted, what, kept=min(number, retired.AT_MOST) if worked else 0)
        if not more:
            break
    assert left() == before
    assert killed.calls
    if worked:
        containers.retire(engine, policy, alice, "thesis")
        containers.undo(engine, policy, alice, "thesis")
        assert inside(alice, "thesis", "cat /tmp/work").strip() == str(number)


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [0, 0.2])
def test_killed_while_its_image_is_built(
    engine, policy, alice, launched, thesis, tiny, killed, settled, left, seconds
):
    run = "RUN sleep 0.2\n" if seconds else ""
    thesis.write("Dockerfile", f"FROM {tiny}\nCOPY word /word\n{run}")
    before = left()
    container = engine.containers(NAME)[0]["Id"]
    for number in range(1, MOST):
        thesis.write("word", f"{number}\n")
        what = f"build killed in call {number} after {seconds} s"
        more = killed.once(
            number, seconds, lambda engine: images.build(engine, policy, alice, "thesis"), what
        )
        again = images.build(engine, policy, alice, "thesis")
        assert not again.changed, what
        assert images.project_images(engine)[2001, "thesis"].reference == again.facts["image"], what
        # What runs goes on with its own image.
        assert [(item["Id"], item["State"]) for item in engine.containers(NAME)] == [
            (container, "running")
        ], what
        if not more:
            break
    assert left() == before
    assert killed.calls


def builders(url: str) -> list[str]:
    """Return the processes that build at this engine."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (path / "cmdline").read_bytes().split(b"\0")
            if arguments[1:2] == [b"build"] and url.encode() in (path / "environ").read_bytes():
                found.append(path.name)
    return found


def test_a_build_ends_with_its_process(engine, url, policy, alice, thesis, tiny, left):
    """Else it would go on beside the next one, with no lock, for as long as it likes."""
    before = left()
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN sleep 30\n")
    in_child(url, strikes_at(1, 1, die), lambda engine: images.build(engine, policy, alice, "thesis"))
    end = time.monotonic() + 5
    while builders(url) or left().others != before.others:
        assert time.monotonic() < end, (builders(url), left())
        time.sleep(0.1)
    assert left().nameless == before.nameless


# The engine is killed


class Daemon:
    """The dockerd behind a socket: killed without warning, and started again as it was, with live restore."""

    def __init__(self, url: str) -> None:
        self.socket = url.partition("://")[2]
        self.pid = self._peer()
        command = Path(f"/proc/{self.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        self.command = [*command, "--live-restore"] if "--live-restore" not in command else command
        # It may be another program of that name there (tools/engine.py).
        self.mounts = os.open(f"/proc/{self.pid}/ns/mnt", os.O_RDONLY)
        self.log = Path(f"/proc/{self.pid}/fd/1").resolve()

    def _peer(self) -> int:
        """Return the process that listens at the socket (unix(7), SO_PEERCRED)."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(self.socket)
            given = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", given)[0])

    def answers(self) -> bool:
        """Say whether it answers."""
        try:
            Engine.connect(f"unix://{self.socket}").close()
        except LabError:
            return False
        return True

    def _containerd(self) -> list[Path]:
        """Return the folders in /proc of the containerd that it started, which dies with it."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        children = [Path("/proc", pid) for task in tasks for pid in task.read_text().split()]
        return [child for child in children if (child / "comm").read_text() == "containerd\n"]

    def kill(self) -> None:
        """Kill it, and return when nothing listens any more, and nothing that it started is about to die."""
        dying = self._containerd()
        os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(OSError):
            while self._peer() == self.pid:
                time.sleep(0.005)
        while any(path.exists() for path in dying):
            time.sleep(0.005)

    def start(self) -> None:
        """Start it again, and return when it answers."""
        # The dead one may still be a process that nobody waited for; its pid says that it lives.
        if "--pidfile" in self.command:
            Path(self.command[self.command.index("--pidfile") + 1]).unlink(missing_ok=True)
        with self.log.open("a") as log:
            subprocess.Popen(
                ["nsenter", f"--mount=/proc/self/fd/{self.mounts}", *self.command],
                pass_fds=[self.mounts],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        end = time.monotonic() + 20
        while not self.answers():
            assert time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.1)
        self.pid = self._peer()

    def end_strays(self) -> None:
        """End the shims of containers that the engine does not know.

        Here containerd dies with the engine, in the middle of a start; on a server it is its own service.
        """
        engine = Engine.connect(f"unix://{self.socket}")
        known = {item["Id"] for item in engine.containers()}
        engine.close()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError):
                arguments = (path / "cmdline").read_text().split("\0")
                ours = any(part.startswith(str(Path(self.socket).parent)) for part in arguments)
                if "shim" in arguments[0] and ours and arguments[arguments.index("-id") + 1] not in known:
                    os.kill(int(path.name), signal.SIGKILL)


@pytest.fixture
def daemon(url) -> Iterator[Daemon]:
    made = Daemon(url)
    yield made
    if not made.answers():
        made.start()
    made.end_strays()
    os.close(made.mounts)


def falls_at(daemon: Daemon, call: str, occurrence: int, seconds: float) -> Hook:
    """Return a hook that kills the engine at that call of that name, or ``seconds`` after its beginning."""
    counted = itertools.count(1)

    def hook(name: str) -> None:
        if name == call and next(counted) == occurrence:
            if seconds:
                threading.Timer(seconds, daemon.kill).start()
            else:
                daemon.kill()

    return hook


def falls(url: str, daemon: Daemon, fault: tuple[str, int, float], work: Work) -> None:
    """Do the work while the engine falls, see that it fails with a sentence, and bring the engine back."""
    status = in_child(url, falls_at(daemon, *fault), work)
    # Where it falls in the middle of a call, that may have been done already.
    assert os.waitstatus_to_exitcode(status) in ((FAILED, ENDED) if fault[2] else (FAILED,))
    assert held_locks() == []
    daemon.start()


@pytest.fixture
def bystander(engine, policy, bob, tiny, project_of) -> Callable[[], None]:
    """Let bob's container run; return a function that asserts that it ran on all the time."""
    project_of(bob, "net").write("Dockerfile", f"FROM {tiny}\n")
    container = containers.launch(engine, policy, bob, "net").facts["id"]
    before = engine.inspect(container)["State"]

    def check() -> None:
        now = engine.inspect(container)["State"]
        assert (now["Status"], now["Pid"]) == ("running", before["Pid"])

    return check


@pytest.mark.parametrize("fault", [("create", 1, 0.01), ("start", 1, 0.05)], ids=str)
def test_engine_killed_while_a_container_is_made(
    engine, url, policy, alice, thesis, bystander, daemon, settled, left, fault
):
    images.build(engine, policy, alice, "thesis")
    before = left()
    wanted = Wanted("alice", "thesis")
    falls(url, daemon, fault, lambda engine: reconciled(engine, policy, wanted))
    reconciled(engine, policy, wanted)
    settled(wanted, str(fault))
    bystander()
    assert left() == before


class Fallen(Killed):
    """Works under which the engine falls at one call after the other, and then done to their end."""

    def __init__(self, url: str, engine: Engine, daemon: Daemon, between: Callable[[], None]) -> None:
        """``between`` is called when the engine is back, and the work not done again."""
        super().__init__(url, engine)
        self.daemon = daemon
        self.between = between

    def once(self, number: int, seconds: float, work: Work, what: str) -> bool:
        """Let the engine fall at that call, bring it back, and do the work again; say whether it fell."""
        status = in_child(self.url, strikes_at(number, seconds, self.daemon.kill), work)
        assert held_locks() == [], what
        fell = not self.daemon.answers()
        # What fell in the middle of a call may have been done; what can be done without is let go.
        code = os.waitstatus_to_exitcode(status)
        assert code == ENDED or (fell and code == FAILED), what
        if fell:
            self.calls += 1
            self.daemon.start()
            self.between()
        work(self.engine)
        return fell


@pytest.fixture
def fallen(url, engine, daemon, bystander) -> Fallen:
    return Fallen(url, engine, daemon, bystander)


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [0, 0.02])
def test_engine_killed_at_each_step_while_a_container_is_made_and_removed(
    engine, policy, alice, launched, fallen, settled, left, seconds
):
    before = left()
    in_turns(fallen, seconds, *made_and_removed(policy, alice, settled))
    assert left() == before
    # The removal of the one, and create, put and start of the other; before each there are looks.
    assert fallen.calls >= (4 if seconds else 8)


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [0, 0.05])
def test_engine_killed_at_each_step_while_a_container_is_replaced(
    engine, policy, alice, launched, fallen, settled, left, inside, seconds
):
    """What was in the old one is kept: it is renamed, and the new one gets its name."""
    before = left()
    for number in range(1, MOST):
        inside(alice, "thesis", f"echo {number} > /tmp/work")
        wanted = Wanted("alice", "thesis", pids=20 + number)
        what = f"engine killed in call {number} of a replacement after {seconds} s"
        more = fallen.once(number, seconds, functools.partial(reconciled, policy=policy, wanted=wanted), what)
        retired.clean_up(engine, policy, time.time())
        settled(wanted, what, kept=min(number, retired.AT_MOST))
        if not more:
            break
    assert left() == before
    assert fallen.calls >= 4
    containers.retire(engine, policy, alice, "thesis")
    containers.undo(engine, policy, alice, "thesis")
    assert inside(alice, "thesis", "cat /tmp/work").strip() == str(number)


@pytest.mark.thorough
@pytest.mark.parametrize("seconds", [0, 0.5])
def test_engine_killed_at_each_step_while_an_image_is_built(
    engine, policy, alice, thesis, tiny, launched, fallen, left, seconds
):
    container = engine.containers(NAME)[0]["Id"]
    others = fallen.between
    old = images.project_images(engine)[2001, "thesis"].id

    def all_goes_on() -> None:
        """The others' container runs, and so does this one, with the image that it had."""
        others()
        (own,) = engine.containers(NAME)
        assert (own["Id"], own["State"], own["ImageID"]) == (container, "running", old)
        # There is a current image at each moment.
        assert engine.inspect_image("lab/2001/thesis")

    fallen.between = all_goes_on
    before = left()
    thesis.write("Dockerfile", f"FROM {tiny}\nCOPY word /word\nRUN sleep 1\n")
    for number in range(1, MOST):
        thesis.write("word", f"{number}\n")
        what = f"engine killed in call {number} of a build after {seconds} s"
        more = fallen.once(
            number, seconds, lambda engine: images.build(engine, policy, alice, "thesis"), what
        )
        again = images.build(engine, policy, alice, "thesis")
        assert not again.changed, what
        assert images.project_images(engine)[2001, "thesis"].reference == again.facts["image"], what
        if not more:
            break
    all_goes_on()
    assert left() == before
    assert fallen.calls >= (2 if seconds else 4)
