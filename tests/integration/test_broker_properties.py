"""The broker under whatever a lab user can do to it, on a real engine, as the process that sudo starts.

Words, environments, descriptors, signals at any moment, and planted files are made up by Hypothesis. After
each call all that is not the caller's own is as it was, nothing is locked, and nobody sees a stack trace.
``LAB_EXAMPLES=500`` tries more than the ordinary run does.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import broker, install
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy
from conftest import Project
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from private_root import PrivateRoot, tree

EXAMPLES = int(os.environ.get("LAB_EXAMPLES") or 80)
ALICE, BOB = 2001, 2002
FAULT = "Something went wrong that should not"
PATIENCE = 90  # seconds until what was begun has ended

# ---- what a user can do ----------------------------------------------------------------------------------


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _text(text: str) -> Callable[[Path], None]:
    return lambda path: _written(path, text.encode())


def _written(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        for size in (8 << 40, 1 << 40, 1 << 30):
            with suppress(OSError):
                file.truncate(size)
                return


def _socket(path: Path) -> None:
    # The path of a socket is at most 107 bytes long (unix(7)).
    folder = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{folder}/{path.name}")
    os.close(folder)


def _device(path: Path) -> None:
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 8))
    except PermissionError:
        path.touch()


def _hard_link(path: Path) -> None:
    (path.parent / ".first").write_text("one\n")
    os.link(path.parent / ".first", path)


def _deep(path: Path) -> None:
    for _level in range(60):
        path.mkdir()
        path = path / "deeper"


def _forbidden(path: Path) -> None:
    path.write_text("FROM scratch\n")
    path.chmod(0)


KINDS: dict[str, Callable[[Path], None]] = {
    "link to shadow": _link("/etc/shadow"),
    "link to another's": _link("../../bob/paper/secret"),
    "link to itself": _link("Dockerfile"),
    "link to nothing": _link("/nonexistent"),
    "fifo": os.mkfifo,
    "socket": _socket,
    "device": _device,
    "sparse": _sparse,
    "hard link": _hard_link,
    "folder": lambda path: path.mkdir(),
    "deep": _deep,
    "forbidden": _forbidden,
    "empty": _text(""),
    "no text": lambda path: _written(path, bytes(range(256)) * 40),
    "broken": _text("FROM lab-test/tiny\nRUN false\n"),
    "another base": _text("FROM lab/2002/paper:latest\nUSER 0\nVOLUME /home\nLABEL lab.server.owner=2002\n"),
    "many lines": _text("FROM lab-test/tiny\n" + "ENV A=1\n" * 3000),
}
PLACES = ("Dockerfile", ".dockerignore", "requirements.txt", "word", "a\nb", "-rf", "results", "..\x1b[2J")
NAMES = ("thesis", "thesis", "thesis", "paper", "nothing", "../bob", "paper._.2002", "", "--help")
FURTHER = (
    *("command=sleep 1", "command=:", "cpus=0.5", "memory=32m", "rebuild=yes", "to=1", "to=0", "all=yes"),
    *("lines=5", "lines=-1", "id", "sh", "-c", "--privileged", "-v/:/host", "six", "six==1.0"),
)
SECRETS = {
    "DOCKER_HOST": "tcp://127.0.0.1:1",
    "PYTHONPATH": "/home/.workspaces/alice",
    "LD_PRELOAD": "/nonexistent.so",
    "PYTHONINSPECT": "1",
    "TMPDIR": "/nonexistent",
    "HOME": "/nonexistent",
    "PATH": "/nonexistent",
    "TERM": "../../x\x1b[2J",
    "LANG": "xx_XX.UTF-8",
    "TZ": "/etc/shadow",
    "COLUMNS": "-1",
    "PYTHONSTARTUP": "/etc/shadow",
}
OUTPUTS = ("pipe", "pipe", "pipe", "closed", "full", "nobody reads")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGQUIT)


@dataclass(frozen=True)
class Try:
    """One call of the broker, and what its caller has prepared."""

    words: tuple[str, ...]
    environment: dict[str, str]
    output: str
    closed: tuple[int, ...]
    limits: tuple[str, ...]
    planted: dict[str, str]
    folder_leads_away: bool
    signal: tuple[int, float] | None = None
    uid: str = field(default=str(ALICE))

    @property
    def verb(self) -> str:
        """The verb, known or not."""
        return self.words[0] if self.words else ""


def _words() -> st.SearchStrategy[tuple[str, ...]]:
    odd = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=40)
    verbs = st.one_of(
        st.sampled_from([*broker.VERBS, *broker.HANDED]),
        st.sampled_from(["project-launch", "image-update", "container-retire", "container-exec"]),
        odd,
    )
    names = st.one_of(st.sampled_from(NAMES), st.just("thesis"), odd)
    further = st.lists(st.one_of(st.sampled_from(FURTHER), odd), max_size=3)
    told = st.builds(lambda verb, name, more: (verb, name, *more), verbs, names, st.just([]) | further)
    return st.one_of(told, st.builds(lambda verb: (verb,), verbs), st.lists(odd, max_size=4).map(tuple))


TRIES = st.builds(
    Try,
    words=_words(),
    environment=st.dictionaries(st.sampled_from(sorted(SECRETS)), st.none()).map(
        lambda chosen: {name: SECRETS[name] for name in chosen}
    ),
    output=st.sampled_from(OUTPUTS),
    closed=st.lists(st.sampled_from([0, 2]), unique=True, max_size=2).map(tuple),
    limits=st.lists(st.sampled_from(["files", "size", "cpu"]), unique=True, max_size=2).map(tuple),
    planted=st.dictionaries(st.sampled_from(PLACES), st.sampled_from(sorted(KINDS)), max_size=3),
    folder_leads_away=st.sampled_from([False] * 7 + [True]),
    signal=st.none() | st.tuples(st.sampled_from(SIGNALS), st.floats(0, 1.5)),
    uid=st.sampled_from([str(ALICE)] * 12 + ["0", "99999", "-1", "2001x", ""]),
)

# ---- the server ------------------------------------------------------------------------------------------


class Lab:
    """A server in a private root, with alice who tries, and bob to whom nothing may happen."""

    def __init__(
        self, private: PrivateRoot, folder: Path, policy: Policy, docker: Callable[..., str]
    ) -> None:
        self.private = private
        self.folder = folder
        self.policy = policy
        self.docker = docker
        private.show(folder)
        private.call(self._install)

    def _install(self) -> None:
        for result in install.reconcile(self.policy, check=False):
            assert not result.failed, result.message
        users = ((user.name, user.uid) for user in self.policy.users)
        with open("/etc/passwd", "a") as passwd, open("/etc/group", "a") as group:
            group.write(f"lab:x:{self.policy.lab_gid}:{','.join(u.name for u in self.policy.users)}\n")
            for name, uid in users:
                passwd.write(f"{name}:x:{uid}:{uid}::/home/{name}:/bin/sh\n")
                group.write(f"{name}:x:{uid}:\n")
        # Docker itself is outside of the private root: it sees workspaces where the test has put them.
        module = Path(install.CURRENT, install.PACKAGE, "policy.py")
        with module.open("a") as text:
            text.write(f"\nWORKSPACES_ROOT = {str(self.folder / 'home/.workspaces')!r}\n")
        program = Path(install.BROKER)
        program.write_text(program.read_text().replace("/usr/bin/python3", sys.executable, 1))

    def run(self, tried: Try) -> dict[str, Any]:
        """Start the broker as sudo does, do to it what is to be done, and return what it said."""
        answer: dict[str, Any] = self.private.call(lambda: _called(tried))
        return answer

    def working(self) -> list[int]:
        """Return the processes that are at work in the private root; all but the one that holds it."""
        top = os.stat(self.private.path)
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                there = os.stat(entry / "root")
                if (there.st_dev, there.st_ino) == (top.st_dev, top.st_ino):
                    found.append(int(entry.name))
        return [pid for pid in found if pid != self.private.keeper]

    def settle(self) -> None:
        """Wait until all that was begun has ended."""
        end = time.monotonic() + PATIENCE
        while self.working():
            assert time.monotonic() < end, f"still at work: {self.working()}"
            time.sleep(0.05)

    def locked(self) -> list[str]:
        """Return the locks that somebody holds."""
        held = []
        for path in (self.private.path / "run/lab-server").rglob("*"):
            if path.is_file():
                with path.open() as lock:
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        held.append(path.name)
        return held

    def others(self) -> dict[str, Any]:
        """Return all that alice may not change: files, state, containers and images."""
        own = str(self.folder / "home/.workspaces/alice")
        files: dict[str, Any] = dict(tree(str(self.folder), but=own))
        state = "/.upper/var/lib/lab-server"
        for path, said in self.private.content().items():
            if path.startswith("/run/lab-server"):
                continue
            # What is kept of the caller has the uid in its name, but for what was seen of images, which has
            # their digests; folders are made for whoever comes first.
            own_state = str(ALICE) in path or f"{state}/looks/" in path or str(said).startswith("40700")
            if path.startswith(state) and own_state:
                continue
            files[path] = said
        listed = self.docker(
            "ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}} {{.State}}"
        ).splitlines()
        files["containers"] = sorted(line for line in listed if f"._.{ALICE}" not in line)
        tags = self.docker(
            "images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"
        ).splitlines()
        named = [line for line in tags if not line.startswith((f"lab/{ALICE}/", "<none>"))]
        return {**files, "images": sorted(named), "volumes": self.docker("volume", "ls", "-q")}

    def plant(self, tried: Try) -> None:
        """Put the files of the caller where they are to be; they are the caller's own."""
        home = self.folder / "home/.workspaces/alice"
        subprocess.run(["rm", "-rf", "--", *(str(path) for path in home.iterdir())], check=True)
        thesis = home / "thesis"
        if tried.folder_leads_away:
            thesis.symlink_to("../bob/paper")
            return
        thesis.mkdir()
        ordinary = {"Dockerfile": "FROM lab-test/tiny\nCOPY word /word\n", "word": f"{time.time()}\n"}
        for name, text in ordinary.items():
            if name not in tried.planted:
                (thesis / name).write_text(text)
        for name, kind in tried.planted.items():
            KINDS[kind](thesis / name)
        subprocess.run(["chown", "-Rh", f"{ALICE}:{ALICE}", str(home)], check=True)

    def forget(self) -> None:
        """Remove the containers of alice."""
        names = self.docker("ps", "-aq", "--filter", f"label=lab.server.owner={ALICE}").split()
        if names:
            self.docker("rm", "-f", *names)


def _called(tried: Try) -> dict[str, Any]:
    """Call the broker, within the private root."""

    def prepare() -> None:
        for descriptor in tried.closed:
            os.close(descriptor)
        if tried.output == "closed":
            os.close(1)
        for name, (kind, value) in {
            "files": (resource.RLIMIT_NOFILE, 40),
            "size": (resource.RLIMIT_FSIZE, 512),
            "cpu": (resource.RLIMIT_CPU, 20),
        }.items():
            if name in tried.limits:
                resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))
        os.umask(0)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGUSR1])

    reader, writer = os.pipe()
    output = os.open("/dev/full", os.O_WRONLY) if tried.output == "full" else writer
    process = subprocess.Popen(
        [install.BROKER, *tried.words],
        env={**tried.environment, "SUDO_UID": tried.uid},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
        cwd="/tmp",
        preexec_fn=prepare,  # noqa: PLW1509  # no threads here
        start_new_session=True,
    )
    os.close(writer)
    if tried.output == "nobody reads":
        os.close(reader)
        reader = os.open("/dev/null", os.O_RDONLY)
    if tried.signal is not None:
        number, after = tried.signal
        with suppress(subprocess.TimeoutExpired):
            process.wait(after)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read()
    errors = process.stderr.read() if process.stderr else b""
    return {
        "rc": process.wait(PATIENCE),
        "out": said.decode("utf-8", "replace"),
        "err": errors.decode("utf-8", "replace"),
    }


@pytest.fixture
def lab(
    private_root: PrivateRoot, root: Path, policy: Policy, project_of: Callable[..., Project], docker, engine
) -> Iterator[Lab]:
    paper = project_of(policy.user("bob"), "paper")
    paper.write("Dockerfile", "FROM lab-test/tiny\n")
    paper.write("secret", "the secret of bob\n")
    made = Lab(private_root, root, policy, docker)
    bobs = Try(("project-launch", "paper"), {}, "pipe", (), (), {}, False, uid=str(BOB))
    said = made.run(bobs)
    assert said["rc"] == 0, said
    yield made
    made.settle()
    made.forget()


def problems(tried: Try, said: dict[str, Any]) -> list[str]:
    """Return what is wrong with the answer to a call."""
    found = []
    text = said["out"] + said["err"]
    if "Traceback" in text or "most recent call last" in text:
        found.append("a stack trace")
    if FAULT in text:
        found.append("a fault of ours")
    if "the secret of bob" in text or "root:*:" in text:
        found.append("what is another's")
    killed = tried.signal is not None
    if not killed and not 0 <= said["rc"] <= 4 and tried.verb not in broker.HANDED:
        found.append(f"exit code {said['rc']}")
    if not killed and tried.output == "pipe" and tried.verb not in broker.HANDED:
        events = [json.loads(line) for line in said["out"].splitlines()]
        ends = [event["event"] for event in events if event["event"] != "progress"]
        if ends != ["result" if said["rc"] == 0 else "error"]:
            found.append(f"its last words are {ends}")
    return found


def test_whatever_a_user_does_only_their_own_changes(lab: Lab) -> None:
    before = lab.others()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        # Each costs a second or more: the first that fails is told as it is.
        phases=[Phase.explicit, Phase.reuse, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(TRIES)
    def tried(tried: Try) -> None:
        lab.forget()
        lab.plant(tried)
        said = lab.run(tried)
        lab.settle()
        assert problems(tried, said) == [], said
        assert lab.locked() == []
        after = lab.others()
        assert {
            k: (before.get(k), after.get(k)) for k in {*before, *after} if before.get(k) != after.get(k)
        } == {}

    tried()
