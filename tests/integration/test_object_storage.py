"""Object storage: a real S3 server process, the real rclone, and lab users who push and pull.

The server (moto) checks the signature of each request, and what the key's owner may do. What users do runs in
a child that has become the user.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    calls,
    cli,
    cli_storage_work,
    objectkeys,
    transfer,
)
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, User
from private_root import call_in_child
from storage_servers import QUESTIONS_OF_A_KEY, free_port, s3_client, s3_key, s3_server, self_signed

#: What a command loads late, loaded now: who has become a user may not read the checkout.
LOADED = (cli_storage_work,)
LIMITS = {"containers": 1, "cpus": 1, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
BUCKETS = ("lab-alice", "lab-bob")
#: What the server answers without looking at a key: the keys of both, and the buckets.
SETUP = 2 * QUESTIONS_OF_A_KEY + len(BUCKETS)


@dataclass
class Server:
    """The S3 server: its address, and each user's key."""

    port: int
    keys: dict[str, dict[str, str]]

    def client(self, user: str) -> Any:
        return s3_client("s3", self.port, self.keys[user]["access_key"], self.keys[user]["secret_key"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Return a server with a bucket for each of two users, whose keys reach their own alone."""
    with s3_server(tmp_path_factory.mktemp("moto"), setup=SETUP) as port:
        keys = {user: s3_key(port, user, f"lab-{user}", "lab-none") for user in ("alice", "bob")}
        s3 = s3_client("s3", port)
        for name in BUCKETS:
            s3.create_bucket(Bucket=name)
        yield Server(port, keys)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder of root's below folders of root's alone, as a server has it."""
    folder = Path(tempfile.mkdtemp(prefix="lab-object-test-", dir="/var/lib"))
    folder.chmod(0o755)
    monkeypatch.setattr(policies, "HOME_ROOT", str(folder / "home"))
    monkeypatch.setattr(policies, "WORKSPACES_ROOT", str(folder / "home/.workspaces"))
    monkeypatch.setattr(objectkeys, "FOLDER", str(folder / "etc/object-storage"))
    yield folder
    shutil.rmtree(folder)


def _policy(**endpoint: Any) -> Policy:
    made, _keys = policies.from_inventory(
        {
            "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [
                {"name": "alice", "uid": 2001, "group": "students"},
                {"name": "bob", "uid": 2002, "group": "students"},
            ],
            "lab_object_storage": [{"name": "campus", "region": "us-east-1", **endpoint}],
        }
    )
    return made


Run = Callable[..., tuple[int, str, str]]


@dataclass
class Lab:
    """A server with users, who have workspaces and keys."""

    place: Path
    policy: Policy
    monkeypatch: pytest.MonkeyPatch

    def use(self, policy: Policy, keys: dict[str, Any]) -> None:
        """Have another policy and other keys from now on."""
        self.policy = policy
        self.monkeypatch.setattr(calls, "load", lambda _path: policy)
        given = {user: {"campus": key} for user, key in keys.items()}
        for item in objectkeys.reconcile(policy, given, check=False):
            assert not item.failed

    def workspace(self, user: str) -> Path:
        return Path(self.policy.workspace(self.policy.user(user)))

    def write(self, user: str, path: str, data: bytes) -> Path:
        """Write a file of the user's, and the folders above it."""
        owner, whole = self.policy.user(user), self.workspace(user) / path
        for one in reversed([one for one in whole.parents if not one.exists()]):
            one.mkdir()
            os.chown(one, owner.uid, owner.gid)
        whole.write_bytes(data)
        os.chown(whole, owner.uid, owner.gid)
        return whole

    def begin(self, user: str, *words: str) -> int:
        """Begin a command as the user, in a process group of its own, and return its process."""
        owner = self.policy.user(user)
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.setsid()
            _become(owner)
            for number, name in ((1, "out"), (2, "err")):
                flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                os.dup2(os.open(f"{policies.HOME_ROOT}/{user}/{name}", flags), number)
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
                setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
            signal.signal(signal.SIGINT, signal.default_int_handler)
            code = cli.main(list(words))
        except SystemExit as error:
            code = int(str(error.code))
        finally:
            os._exit(code)

    def end(self, user: str, child: int) -> tuple[int, str, str]:
        """Wait for a command; return its exit code, output and errors."""
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        home = Path(policies.HOME_ROOT) / user
        return code, (home / "out").read_text(), (home / "err").read_text()

    def run(self, user: str, *words: str) -> tuple[int, str, str]:
        """Run a command as the user; what it says never holds a key."""
        code, out, err = self.end(user, self.begin(user, *words))
        for path in Path(objectkeys.FOLDER).glob("*.conf"):
            for secret in re.findall(r"(?:access_key_id|secret_access_key) = (.*)", path.read_text()):
                assert secret not in out + err
        assert "Traceback" not in err
        return code, out, err


def _become(user: User) -> None:
    os.setgroups([])
    os.setgid(user.gid)
    os.setuid(user.uid)


@pytest.fixture
def lab(server: Server, place: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab(place, _policy(url=f"http://127.0.0.1:{server.port}", insecure=True), monkeypatch)
    (place / "etc").mkdir()
    for user in made.policy.users:
        for folder in (Path(user.home), made.workspace(user.name)):
            folder.mkdir(parents=True, mode=0o700)
            os.chown(folder, user.uid, user.gid)
            folder.chmod(0o700)
    made.use(made.policy, server.keys)
    _empty(server)
    return made


def _contents(folder: Path) -> dict[str, bytes]:
    """Return the regular files below a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def _there(server: Server, user: str = "alice") -> set[str]:
    found = server.client(user).list_objects_v2(Bucket=f"lab-{user}").get("Contents", [])
    return {one["Key"] for one in found}


def _empty(server: Server) -> None:
    client = server.client("alice")
    there = [{"Key": key} for key in _there(server) if key.isprintable()]
    if there:
        client.delete_objects(Bucket="lab-alice", Delete={"Objects": there})
    for key in _there(server):  # what XML cannot hold
        client.delete_object(Bucket="lab-alice", Key=key)


ODD = [
    *(
        "we ird",
        "[x]",
        "st*r",
        "q?m",
        "ctl\x01x",
        "ünï",
        "-dash",
        "a&b<c>",
        "qu'o\"te",
        "per%20cent",
        "pl+us",
    ),
    *("..x", "co:lon", "ha#sh", "back\\slash", " lead", "trail ", "\u2400sym", "$(id)", "{a,b}", "; rm"),
]


def test_what_was_pushed_comes_back_byte_by_byte(lab: Lab, server: Server) -> None:
    large = random.Random(1).randbytes(12 << 20)
    lab.write("alice", "thesis/data/large", large)
    for name in ODD:
        lab.write("alice", f"thesis/{name}", name.encode())
    before = _contents(lab.workspace("alice") / "thesis")
    code, out, err = lab.run("alice", "workspace", "push", "thesis", "lab-alice/thesis")
    assert (code, err) == (0, "") and f"{len(ODD) + 1} new" in out and "copied and compared" in out
    assert len(_there(server)) == len(ODD) + 1 and "thesis/$(id)" in _there(server)

    code, out, err = lab.run("alice", "workspace", "push", "thesis", "campus:lab-alice/thesis/")
    assert (code, err) == (0, "") and "Nothing was to do." in out
    code, out, err = lab.run("alice", "workspace", "pull", "lab-alice/thesis", "again/deep")
    assert (code, err) == (0, "")
    assert _contents(lab.workspace("alice") / "again/deep") == before
    made = (lab.workspace("alice") / "again/deep/data/large").stat()
    assert (made.st_uid, made.st_gid) == (2001, 2001)
    assert not (lab.workspace("alice") / transfer.STAGES).exists()
    code, out, err = lab.run("alice", "workspace", "pull", "lab-alice/thesis", "again/deep", "--json")
    answer = json.loads(out)
    assert code == 0 and not answer["changed"] and answer["same"] == len(ODD) + 1 and answer["kept"] == []


@pytest.mark.thorough
def test_one_file_goes_and_comes(lab: Lab, server: Server) -> None:
    lab.write("alice", "thesis/a.csv", b"1,2\n")
    lab.write("alice", "thesis/b.csv", b"no\n")
    code, out, _err = lab.run("alice", "workspace", "push", "thesis/a.csv", "lab-alice/tables")
    assert code == 0 and _there(server) == {"tables/a.csv"}
    code, out, err = lab.run("alice", "workspace", "pull", "lab-alice/tables/a.csv", "new", "--json")
    assert code == 0 and json.loads(out)["new"] == 1, err
    assert _contents(lab.workspace("alice") / "new") == {"a.csv": b"1,2\n"}


@pytest.mark.thorough
def test_what_is_no_plain_file_is_left_out_and_told(lab: Lab, server: Server) -> None:
    lab.write("alice", "thesis/good", b"good")
    lab.write("alice", "thesis/two\nlines", b"")
    folder = lab.workspace("alice") / "thesis"
    (folder / "secret").symlink_to("/etc/passwd")
    (folder / "out").symlink_to("/etc")
    os.mkfifo(folder / "pipe")
    Path(os.fsdecode(bytes(folder) + b"/no\xfftext")).write_bytes(b"x")
    code, out, err = lab.run("alice", "workspace", "push", "thesis", "lab-alice/t")
    assert code == 0 and _there(server) == {"t/good"} and "1 file copied and compared." in out
    for name in ("secret", "out", "pipe", "lines"):
        assert re.search(rf"left out.*{name}", err), err
    code, out, _err = lab.run("alice", "workspace", "push", "thesis", "lab-alice/t", "--json")
    assert code == 0 and len(json.loads(out)["left_out"]) == 5


@pytest.mark.parametrize("path", ["/etc", "../..", "thesis/out", "/proc/1", "../bob"])
def test_only_the_own_workspace_is_pushed_and_pulled_into(lab: Lab, server: Server, path: str) -> None:
    lab.write("alice", "thesis/good", b"good")
    (lab.workspace("alice") / "thesis/out").symlink_to("/etc")
    for words in (("push", path, "lab-alice/t"), ("pull", "lab-alice/t", path)):
        code, _out, err = lab.run("alice", "workspace", *words)
        assert code == 3 and "is not in your workspace" in err
    assert _there(server) == set()


@pytest.mark.thorough
def test_a_thousand_small_files(lab: Lab, server: Server) -> None:
    for number in range(1000):
        lab.write("alice", f"many/{number % 10}/{number}", str(number).encode())
    code, out, err = lab.run("alice", "workspace", "push", "many", "lab-alice/many")
    assert (code, err) == (0, "") and "1000 files copied and compared." in out
    code, out, err = lab.run("alice", "workspace", "pull", "lab-alice/many", "back")
    assert (code, err) == (0, "") and "1000 files copied and compared." in out
    assert _contents(lab.workspace("alice") / "back") == _contents(lab.workspace("alice") / "many")


@pytest.mark.thorough
def test_what_was_changed_here_is_not_overwritten_unless_told(lab: Lab) -> None:
    for name in ("a", "b", "c"):
        lab.write("alice", f"thesis/{name}", b"old")
    lab.run("alice", "workspace", "push", "thesis", "lab-alice/t")
    mine = lab.write("alice", "thesis/a", b"new")  # of the same size: only the checksum tells
    (lab.workspace("alice") / "thesis/b").unlink()
    code, out, err = lab.run("alice", "workspace", "pull", "lab-alice/t", "thesis")
    assert code == 1 and "1 file copied" in out and "differs here, and stays: a" in err
    assert _contents(mine.parent) == {"a": b"new", "b": b"old", "c": b"old"}
    code, out, _err = lab.run(
        "alice", "workspace", "pull", "lab-alice/t", "thesis", "--overwrite", "--dry-run"
    )
    assert code == 0 and "Nothing was copied" in out and mine.read_bytes() == b"new"
    code, _out, _err = lab.run("alice", "workspace", "pull", "lab-alice/t", "thesis", "--overwrite")
    assert code == 0 and mine.read_bytes() == b"old"


def test_a_pull_follows_no_link_and_no_hostile_name(lab: Lab, server: Server) -> None:
    client = server.client("alice")
    for key in ("../../bad", "h/../../bad", "h/a//b", "h/./c", "h/dir/", "h/link/x", "h/to", "h/ok", "h/s/t"):
        client.put_object(Bucket="lab-alice", Key=key, Body=b"theirs")
    outside = lab.place / "outside"
    outside.mkdir()
    os.chown(outside, 2001, 2001)
    lab.write("alice", "in/s", b"a file where a folder should be")
    (lab.workspace("alice") / "in/link").symlink_to(outside)
    (lab.workspace("alice") / "in/to").symlink_to(outside / "made")
    code, out, err = lab.run("alice", "workspace", "pull", "lab-alice/h", "in", "--overwrite")
    assert code == 1
    for name in ("link/x", "s/t", "to"):
        assert f"differs here, and stays: {name}" in err, err
    assert list(outside.iterdir()) == []
    assert (lab.workspace("alice") / "in/ok").read_bytes() == b"theirs"
    assert (lab.workspace("alice") / "in/to").is_symlink()
    assert sorted(path.name for path in (lab.workspace("alice") / "in").iterdir()) == [
        "link",
        "ok",
        "s",
        "to",
    ]
    assert sorted(path.name for path in lab.workspace("alice").iterdir()) == ["in"], out


@pytest.mark.thorough
def test_nothing_is_removed_there_unless_it_was_agreed_to(lab: Lab, server: Server) -> None:
    for name in ("a", "b"):
        lab.write("alice", f"thesis/{name}", name.encode())
    server.client("alice").put_object(Bucket="lab-alice", Key="other", Body=b"stays")
    lab.run("alice", "workspace", "push", "thesis", "lab-alice/t")
    (lab.workspace("alice") / "thesis/b").unlink()
    assert lab.run("alice", "workspace", "push", "thesis", "lab-alice/t")[0] == 0
    code, out, _err = lab.run("alice", "workspace", "push", "thesis", "lab-alice/t", "--mirror", "--dry-run")
    assert code == 0 and "to be removed there: b" in out
    code, _out, err = lab.run("alice", "workspace", "push", "thesis", "lab-alice/t", "--mirror")
    assert code == 2 and "nobody is here to answer" in err
    assert _there(server) == {"other", "t/a", "t/b"}
    code, out, _err = lab.run("alice", "workspace", "push", "thesis", "lab-alice/t", "--mirror", "--yes")
    assert code == 0 and "1 file removed there" in out and _there(server) == {"other", "t/a"}


def test_a_key_is_its_users_alone(lab: Lab, server: Server) -> None:
    folder = Path(objectkeys.FOLDER)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o711
    seen = {}
    for path in folder.iterdir():
        status = path.stat()
        seen[path.name] = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
    assert seen == {"alice.conf": (0o640, 0, 2001), "bob.conf": (0o640, 0, 2002)}

    def tried(user: User) -> list[str]:
        _become(user)
        found = []
        for name, doing in (
            ("list", lambda: os.listdir(folder)),
            ("own", (folder / f"{user.name}.conf").read_text),
            ("other", (folder / "alice.conf").read_text),
            ("write", lambda: (folder / f"{user.name}.conf").open("a")),
            ("replace", lambda: os.unlink(folder / f"{user.name}.conf")),
        ):
            with contextlib.suppress(PermissionError):
                doing()
                found.append(name)
        return found

    assert call_in_child(lambda: tried(lab.policy.user("bob"))) == ["own"]
    lab.write("bob", "x/a", b"mine")
    code, _out, err = lab.run("bob", "workspace", "push", "x", "lab-alice/t")
    assert code == 3 and "does not let your key do that there" in err and _there(server) == set()


@contextlib.contextmanager
def _slow(port: int, rate: int) -> Iterator[int]:
    """Pass bytes on to ``port``, ``rate`` of them a second and connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(rate // 20):
                sink.sendall(data)
                time.sleep(len(data) / rate)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _address = listener.accept()
                other = socket.create_connection(("127.0.0.1", port))
                for pair in ((one, other), (other, one)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def _children(parent: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _waited(wanted: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = wanted()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(what)


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_pull_that_was_stopped_goes_on(lab: Lab, server: Server, number: signal.Signals) -> None:
    for name in range(12):
        lab.write("alice", f"big/{name}", random.Random(name).randbytes(1 << 20))
    assert lab.run("alice", "workspace", "push", "big", "lab-alice/big")[0] == 0
    stages = lab.workspace("alice") / transfer.STAGES
    fast = lab.policy
    with _slow(server.port, 1 << 20) as port:
        lab.use(_policy(url=f"http://127.0.0.1:{port}", insecure=True), server.keys)
        child = lab.begin("alice", "workspace", "pull", "lab-alice/big", "back")
        done = _waited(
            lambda: [one for one in stages.rglob("*") if one.is_file() and one.stat().st_size == 1 << 20],
            "no file came",
        )
        said = b"".join(
            Path(f"/proc/{one}/{name}").read_bytes()
            for one in _children(child)
            for name in ("cmdline", "environ")
        )
        os.killpg(child, number)
        code, _out, err = lab.end("alice", child)
    assert b"RCLONE_CONFIG" in said and not any(one.encode() in said for one in server.keys["alice"].values())
    assert not (lab.workspace("alice") / "back").exists()
    if number == signal.SIGINT:
        assert code == 130 and "goes on with what is not copied yet" in err
    kept = {path: path.stat().st_ino for path in done if path.exists()}
    assert kept
    lab.use(fast, server.keys)
    code, _out, err = lab.run("alice", "workspace", "pull", "lab-alice/big", "back")
    assert (code, err) == (0, "")
    back = lab.workspace("alice") / "back"
    assert _contents(back) == _contents(lab.workspace("alice") / "big") and not stages.exists()
    # What had come was not fetched again: it is the very same file.
    assert all((back / path.name).stat().st_ino == inode for path, inode in kept.items())


@pytest.mark.thorough
def test_a_push_that_was_stopped_goes_on(lab: Lab, server: Server) -> None:
    for name in range(24):
        lab.write("alice", f"big/{name}", random.Random(name).randbytes(1 << 20))
    fast = lab.policy
    with _slow(server.port, 1 << 20) as port:
        lab.use(_policy(url=f"http://127.0.0.1:{port}", insecure=True), server.keys)
        child = lab.begin("alice", "workspace", "push", "big", "lab-alice/big")
        _waited(lambda: _there(server), "no file arrived")
        os.killpg(child, signal.SIGINT)
        assert lab.end("alice", child)[0] == 130
    # What was on its way arrives still.
    came, before = len(_there(server)), -1
    while came != before:
        time.sleep(1.5)
        came, before = len(_there(server)), came
    assert 0 < came < 24
    lab.use(fast, server.keys)
    code, out, err = lab.run("alice", "workspace", "push", "big", "lab-alice/big")
    assert (code, err) == (0, "") and f"{24 - came} new" in out and len(_there(server)) == 24


@pytest.mark.thorough
def test_what_goes_wrong_is_said_in_a_sentence(lab: Lab, server: Server, tmp_path: Path) -> None:
    lab.write("alice", "x/a", b"mine")
    push, pull = ("push", "x", "lab-alice/x"), ("pull", "lab-alice/x", "y")
    url = f"http://127.0.0.1:{server.port}"
    wrong = {"access_key": server.keys["alice"]["access_key"], "secret_key": "not-the-right-one"}
    unknown = {"access_key": "AKIAUNKNOWN", "secret_key": "not-the-right-one"}
    for keys in (wrong, unknown):
        lab.use(_policy(url=url, insecure=True), {"alice": keys})
        for words in (push, pull):
            code, _out, err = lab.run("alice", "workspace", *words)
            assert code == 3 and "does not accept your key" in err, err
    lab.use(_policy(url=url, insecure=True), server.keys)
    code, _out, err = lab.run("alice", "workspace", "push", "x", "lab-none/x")
    assert code == 4 and "no such bucket" in err, err
    code, _out, err = lab.run("alice", "workspace", "pull", "lab-none/x", "y")
    assert code == 4 and "no such bucket" in err, err
    code, _out, err = lab.run("alice", "workspace", "pull", "lab-alice/nothing", "y")
    assert code == 4 and "has no files" in err
    lab.use(_policy(url=f"http://127.0.0.1:{free_port()}", insecure=True), server.keys)
    for words in (push, pull):
        code, _out, err = lab.run("alice", "workspace", *words)
        assert code == 1 and "cannot be reached now" in err, err
    lab.use(_policy(url=url, insecure=True), {"bob": server.keys["bob"]})
    code, _out, err = lab.run("alice", "workspace", *push)
    assert code == 3 and "You have no key" in err
    self_signed(tmp_path)
    with s3_server(tmp_path, "-c", str(tmp_path / "cert"), "-k", str(tmp_path / "key")) as port:
        lab.use(_policy(url=f"https://127.0.0.1:{port}"), server.keys)
        code, _out, err = lab.run("alice", "workspace", *push)
        assert code == 1 and "does not trust the certificate" in err, err
    assert _there(server) == set() and not (lab.workspace("alice") / "y").exists()


@pytest.mark.thorough
def test_what_cannot_be_read_is_named_and_the_rest_goes(lab: Lab, server: Server) -> None:
    lab.write("alice", "x/a", b"mine")
    closed = lab.write("alice", "x/closed", b"not mine")
    os.chown(closed, 0, 0)
    closed.chmod(0o600)
    code, _out, err = lab.run("alice", "workspace", "push", "x", "lab-alice/x")
    assert code == 1 and "1 of 2 files did not arrive, such as closed" in err and "permission denied" in err
    assert _there(server) == {"x/a"}


@pytest.mark.thorough
def test_a_disk_without_room_is_told_before_anything_comes(lab: Lab) -> None:
    lab.write("alice", "x/a", random.Random(1).randbytes(3 << 20))
    assert lab.run("alice", "workspace", "push", "x", "lab-alice/x")[0] == 0
    workspace = lab.workspace("bob")
    lab.use(lab.policy, {user: lab_key(lab, "alice") for user in ("alice", "bob")})
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m,uid=2002,mode=700", "tmpfs", workspace], check=True
    )
    try:
        code, _out, err = lab.run("bob", "workspace", "pull", "lab-alice/x", "y")
        assert code == 3 and "3M are to come, and the disk has room for 2M" in err, err
        # Room that is gone when it is needed: what rclone says of it becomes a sentence, too.
        lab.monkeypatch.setattr(transfer, "check_room", lambda *_arguments: None)
        code, _out, err = lab.run("bob", "workspace", "pull", "lab-alice/x", "y")
        assert code == 1 and "The disk of this server is full" in err, err
        assert list(workspace.iterdir()) == []
    finally:
        subprocess.run(["umount", workspace], check=True)


def lab_key(lab: Lab, user: str) -> dict[str, str]:
    """Return the key in a user's file."""
    text = Path(objectkeys.path_of(user)).read_text()
    found = dict(re.findall(r"(?m)^(access_key_id|secret_access_key) = (.*)$", text))
    return {"access_key": found["access_key_id"], "secret_key": found["secret_access_key"]}


@pytest.mark.thorough
def test_buckets_of_the_inventory_are_offered_and_held_to(lab: Lab, server: Server) -> None:
    endpoint = replace(lab.policy.object_storage[0], buckets=("lab-{user}",))
    lab.use(replace(lab.policy, object_storage=(endpoint,)), server.keys)
    lab.write("alice", "thesis/data/a", b"mine")
    assert lab.run("alice", "workspace", "push", "thesis/data")[0] == 0
    assert _there(server) == {"thesis/data/a"}
    code, _out, err = lab.run("alice", "workspace", "push", "thesis", "lab-bob/x")
    assert code == 3 and "lab-bob is no bucket of yours" in err
    code, out, _err = lab.run("alice", "workspace", "storage")
    assert code == 0 and re.search(r"campus +yes +lab-alice", out)
