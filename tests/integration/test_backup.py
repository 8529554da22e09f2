"""Backups by the real restic, restored and compared; what users do to lead it astray.

They go into a folder, to a server of S3 and to one of sftp, which are processes of the tests' own.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    backup,
    drill,
    locks,
    quota,
    restic,
    state,
)
from ansible_collections.lab.server.plugins.module_utils._core import policy as policies
from ansible_collections.lab.server.plugins.module_utils._core.backuprules import BackupRules
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, NotFound, Refused
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, User
from private_root import PrivateRoot, call_in_child
from storage_servers import (
    QUESTIONS_OF_A_KEY,
    SftpServer,
    elsewhere,
    free_port,
    line,
    s3_client,
    s3_key,
    s3_server,
    self_signed,
    sftp_server,
    silent,
    ssh_key,
)

SECRET = "correct horse battery staple"
#: What docs/backup.md lets a key do. HeadBucket is moto's alone: S3 itself lets who has ListBucket do it.
MAY = (
    *("s3:ListBucket", "s3:HeadBucket", "s3:GetBucketLocation"),
    *("s3:GetObject", "s3:PutObject", "s3:DeleteObject"),
)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder of root's below folders of root's alone, as a server has it."""
    folder = Path(tempfile.mkdtemp(prefix="lab-backup-test-", dir="/var/lib"))
    folder.chmod(0o755)
    for name in ("repository", "state", "restored", "cache"):
        (folder / name).mkdir(mode=0o700)
    (folder / "password").write_text(SECRET + "\n")
    (folder / "password").chmod(0o600)
    monkeypatch.setattr(backup, "PASSWORD_PATH", str(folder / "password"))
    monkeypatch.setattr(backup, "ENVIRONMENT_PATH", str(folder / "environment"))
    monkeypatch.setattr(locks, "RUN_DIRECTORY", str(folder / "run"))
    monkeypatch.setattr(restic, "CACHE", str(folder / "cache"))
    monkeypatch.setattr(restic, "SSH_KEY", str(folder / "ssh_key"))
    monkeypatch.setattr(restic, "KNOWN_HOSTS", str(folder / "known_hosts"))
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(folder / "state"))
    monkeypatch.setattr(drill, "STATE_DIRECTORY", str(folder / "state"))
    monkeypatch.setattr(policies, "HOME_ROOT", str(folder / "home"))
    monkeypatch.setattr(policies, "WORKSPACES_ROOT", str(folder / "home/.workspaces"))
    monkeypatch.setattr(policies, "HOMES_ROOT", str(folder / "home/.homes"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def policy(place: Path) -> Policy:
    limits = {"containers": 1, "cpus": 1, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
    quota = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
    made, _keys = policies.from_inventory(
        {
            "lab_groups": [{"name": "students", "gid": 3101, "limits": limits, "quota": quota}],
            "lab_users": [
                {"name": "alice", "uid": 2001, "group": "students"},
                {"name": "bob", "uid": 2002, "group": "students"},
            ],
        }
    )
    return made


@pytest.fixture
def server(policy: Policy, place: Path) -> Policy:
    """Return a policy with backups, whose users have a home and a workspace with files."""
    made = replace(policy, backup=BackupRules(str(place / "repository"), ("*.ckpt",)))
    for user in policy.users:
        for folder in (Path(user.home), Path(made.workspace(user))):
            folder.mkdir(parents=True, mode=0o700)
            os.chown(folder, user.uid, user.gid)
            folder.chmod(0o700)
            _write(user, folder / "note", f"of {user.name}\n")
    return made


def _write(user: User, path: Path, text: str) -> Path:
    missing = [one for one in path.parents if not one.exists()]
    for one in reversed(missing):
        one.mkdir()
        os.chown(one, user.uid, user.gid)
    path.write_text(text)
    os.chown(path, user.uid, user.gid)
    return path


def _listed(policy: Policy, user: User) -> set[str]:
    lines = restic.lines(backup.repository(policy, user), ["ls", "--json", "latest"])
    return {json.loads(line).get("path", "") for line in lines}


def test_what_was_backed_up_comes_back_byte_by_byte(server: Policy, place: Path) -> None:
    alice = server.user("alice")
    workspace = Path(server.workspace(alice))
    data = random.Random(1).randbytes(3 << 20)
    odd = _write(alice, workspace / "thesis/[a]*?\\ b", "odd")
    large = _write(alice, workspace / "thesis/data", "")
    large.write_bytes(data)
    os.symlink("/etc/shadow", workspace / "thesis/link")
    os.mkfifo(workspace / "thesis/fifo")
    assert backup.back_up(server, alice).problem == ""
    shutil.rmtree(workspace / "thesis")

    final = Path(backup.restore(server, alice, "thesis", str(place / "restored/a")))
    assert (final / "data").read_bytes() == data
    assert (final / odd.name).read_text() == "odd"
    assert os.readlink(final / "link") == "/etc/shadow"
    assert (final / "data").stat().st_uid == alice.uid
    assert (place / "restored/a").stat().st_mode & 0o777 == 0o700
    one = Path(backup.restore(server, alice, f"thesis/{odd.name}", str(place / "restored/b")))
    assert one.read_text() == "odd"
    assert sorted(path.name for path in (place / "restored/b").iterdir()) == [odd.name]


@pytest.mark.thorough
def test_caches_and_what_it_says_are_left_out(server: Policy, place: Path) -> None:
    alice = server.user("alice")
    workspace, home = Path(server.workspace(alice)), Path(alice.home)
    out = [
        _write(alice, workspace / "p/__pycache__/a.pyc", ""),
        _write(alice, workspace / ".cache/pip/wheel", ""),
        _write(alice, workspace / ".cache/uv/wheel", ""),
        _write(alice, home / ".cache/thing", ""),
        _write(alice, Path(policies.HOMES_ROOT) / "alice/p/.cache/thing", ""),
        _write(alice, workspace / "p/epoch.ckpt", ""),
    ]
    _write(alice, workspace / "torch/CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n")
    out.append(_write(alice, workspace / "torch/thing", ""))
    kept = [
        _write(alice, workspace / ".cache/huggingface/model", ""),
        _write(alice, Path(policies.HOMES_ROOT) / "alice/p/.bashrc", ""),
        home / "note",
    ]
    assert backup.back_up(server, alice).problem == ""
    listed = _listed(server, alice)
    assert {str(path) for path in kept} <= listed
    assert not {str(path) for path in out} & listed


def test_a_file_of_holes_that_is_larger_than_the_quota_is_left_out_and_named(
    server: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = server.user("alice")
    workspace = Path(server.workspace(alice))
    usage = quota.Usage(0, 0, policies.Quota(0, 1 << 20, 0, 0))
    monkeypatch.setattr(quota, "usage", lambda _policy, _user: usage)
    for name, size in (("dense", 1 << 20), ("holes", 1 << 40)):
        os.truncate(_write(alice, workspace / name, ""), size)
    found = backup.back_up(server, alice)
    assert (found.problem, found.left_out) == ("", (f"{workspace}/holes",))
    assert {"dense", "holes", "note"} & {Path(path).name for path in _listed(server, alice)} == {
        "dense",
        "note",
    }
    # As the restic of the server has it.
    assert backup.restore(server, alice, "dense", str(Path(state.STATE_DIRECTORY).parent / "restored/a"))


def test_a_user_cannot_read_the_repository_and_it_holds_no_words(server: Policy, place: Path) -> None:
    alice = server.user("alice")
    _write(alice, Path(server.workspace(alice)) / "secret", "the-treasure " * 1000)
    backup.back_up(server, alice)
    done = subprocess.run(
        ["ls", str(place / "repository")], user=alice.uid, group=alice.gid, capture_output=True, check=False
    )
    assert done.returncode != 0
    files = [path for path in (place / "repository").rglob("*") if path.is_file()]
    assert files
    assert not any(b"the-treasure" in path.read_bytes() for path in files)


@pytest.mark.thorough
def test_each_user_has_a_repository_and_a_password_of_its_own(server: Policy) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    assert backup.back_up(server, alice).problem == backup.back_up(server, bob).problem == ""
    wrong = replace(backup.repository(server, bob), url=backup.repository(server, alice).url)
    with pytest.raises(HostError, match="wrong password"):
        restic.run(wrong, ["snapshots"])
    assert not any("/bob" in path for path in _listed(server, alice))


@pytest.mark.thorough
def test_a_folder_that_is_swapped_for_a_link_meanwhile_leads_nowhere(server: Policy) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    workspace = Path(server.workspace(alice))
    _write(bob, Path(server.workspace(bob)) / "f/loot", "bob's")
    _write(alice, workspace / "f/own", "mine")
    os.symlink(Path(server.workspace(bob)) / "f", workspace / "g")
    ended = threading.Event()

    def swap() -> None:
        while not ended.is_set():
            os.rename(workspace / "f", workspace / "h")
            os.rename(workspace / "g", workspace / "f")
            os.rename(workspace / "f", workspace / "g")
            os.rename(workspace / "h", workspace / "f")

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        # Straight at the link, as after a won race: the kernel refuses it in the tree of this process.
        done = restic.run(backup.Repository(str(workspace), "x"), ["version"], trees=[str(workspace)])
        assert "restic" in done.stdout
        for _turn in range(3):
            backup.back_up(server, alice)
    finally:
        ended.set()
        swapping.join()
    for snapshot in backup.snapshots(server, alice):
        lines = restic.lines(backup.repository(server, alice), ["ls", "--json", snapshot["id"]])
        assert not any("loot" in line for line in lines)


def test_the_process_passes_no_link_writes_nothing_and_has_one_capability(
    server: Policy, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    workspace = Path(server.workspace(alice))
    os.symlink(server.workspace(bob), workspace / "way")
    program = place / "probe"
    program.write_text(
        f"#!/bin/sh\ncat {workspace}/note; cat {workspace}/way/note; touch {workspace}/new\n"
        "grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(restic, "PROGRAM", str(program))
    trees, needed = [str(workspace)], (restic.DAC_READ_SEARCH,)
    done = restic.run(backup.Repository("x", "x"), ["x"], trees=trees, capabilities=needed)
    assert done.stdout.startswith("of alice\n")
    assert "of bob" not in done.stdout
    assert "Too many levels of symbolic links" in done.stderr
    assert "Read-only file system" in done.stderr
    # /proc/self/status: bit 2 is CAP_DAC_READ_SEARCH.
    assert "CapEff:\t0000000000000004" in done.stdout
    assert "CapBnd:\t0000000000000004" in done.stdout
    assert "NoNewPrivs:\t1" in done.stdout
    assert not (workspace / "new").exists()


def test_a_drill_compares_and_finds_what_is_not_as_it_was(
    server: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = server.user("alice")
    workspace = Path(server.workspace(alice))
    for number in range(5):
        _write(alice, workspace / f"p/{number}", f"number {number}")
    backup.back_up(server, alice)
    found = drill.drill(server, alice)
    assert (found.drill_problem, found.compared, found.changed) == ("", 7, 0)
    assert found.drilled > 0

    _write(alice, workspace / "p/0", "changed")
    (workspace / "p/1").unlink()
    os.symlink("/etc/shadow", workspace / "p/1")
    found = drill.drill(server, alice)
    assert (found.drill_problem, found.compared, found.changed) == ("", 5, 2)
    assert os.listdir(drill.STATE_DIRECTORY) == ["backup"]

    real = backup.extract

    def spoiled(place: restic.Repository, snapshot: str, paths: list[str], target: str, **more: bool) -> None:
        real(place, snapshot, paths, target, **more)
        Path(target + str(workspace / "p/2")).write_text("number X")

    monkeypatch.setattr(backup, "extract", spoiled)
    found = drill.drill(server, alice)
    assert found.drill_problem.startswith(f"{workspace}/p/2 differs from what was backed up.")
    bad, _warn = backup.attention(backup.rules_of(server), [found], found.done)
    assert len(bad) == 1


@pytest.mark.thorough
def test_a_damaged_repository_fails_the_drill(server: Policy, place: Path) -> None:
    alice = server.user("alice")
    backup.back_up(server, alice)
    packs = [path for path in (place / "repository").rglob("data/*/*") if path.is_file()]
    for pack in packs:
        pack.chmod(0o600)
        pack.write_bytes(bytes(byte ^ 255 for byte in pack.read_bytes()))
    shutil.rmtree(place / "cache")
    (place / "cache").mkdir(mode=0o700)
    assert drill.drill(server, alice).drill_problem


@pytest.mark.thorough
def test_a_repository_that_is_gone_is_not_made_anew(server: Policy, place: Path) -> None:
    alice = server.user("alice")
    first = backup.back_up(server, alice)
    shutil.rmtree(place / "repository")
    assert "No such file" in backup.back_up(server, alice).problem
    (place / "repository").mkdir(mode=0o700)
    found = backup.back_up(server, alice)
    assert "was there and is gone" in found.problem
    assert found.done == first.done
    assert list((place / "repository").iterdir()) == []


@pytest.mark.thorough
def test_old_snapshots_go(server: Policy) -> None:
    alice = server.user("alice")
    for _turn in range(3):
        backup.back_up(server, alice)
    # All of one day: the last stays, and with restic 0.18 the first, for want of older ones.
    assert len(backup.snapshots(server, alice)) in (1, 2)


@pytest.mark.thorough
def test_what_cannot_be_restored_is_said_and_leaves_nothing(server: Policy, place: Path) -> None:
    alice = server.user("alice")
    backup.back_up(server, alice)
    with pytest.raises(NotFound, match="is not in that snapshot"):
        backup.restore(server, alice, "nothing", str(place / "restored/a"))
    with pytest.raises(Refused, match="is there already"):
        backup.restore(server, alice, "note", str(place / "restored"))
    with pytest.raises(Refused, match="no folder that only root writes"):
        backup.restore(server, alice, "note", str(Path(server.workspace(alice)) / "new"))
    assert list((place / "restored").iterdir()) == []


def test_who_left_and_another_name_of_the_server_are_restored(server: Policy, place: Path) -> None:
    alice = server.user("alice")
    backup.back_up(server, alice)
    here = place / "repository" / os.uname().nodename
    here.rename(place / "repository/old.example.org")
    later = replace(server, users=(server.user("bob"),))
    with pytest.raises(NotFound, match=r"add --server old\.example\.org"):
        backup.restore(later, backup.somebody(later, "alice"), "note", str(place / "restored/a"))
    whole = f"{alice.home}/workspace"
    found = backup.restore(
        later, backup.somebody(later, "alice"), whole, str(place / "restored/a"), server="old.example.org"
    )
    assert (Path(found) / "note").read_text() == "of alice\n"
    assert found == str(place / "restored/a/alice")


def test_all_of_a_user_comes_back_by_one_command(server: Policy, place: Path) -> None:
    alice = server.user("alice")
    home, workspace = Path(alice.home), Path(server.workspace(alice))
    kept = Path(policies.HOMES_ROOT) / "alice"
    _write(alice, home / "deep/er/letter", "mine")
    _write(alice, workspace / "workspace/data", "a project of that name")
    os.symlink("/etc/shadow", home / "link")
    (home / "deep/er/letter").chmod(0o640)
    for name in ("thesis", "never"):
        _write(alice, kept / name / ".bashrc", name)
    backup.back_up(server, alice)
    shutil.rmtree(home / "deep")
    shutil.rmtree(workspace / "workspace")
    shutil.rmtree(kept / "never")
    (kept / "thesis/.bashrc").unlink()
    (home / "link").unlink()
    (home / "note").write_text("newer\n")
    # Whoever leads a link out of the own home writes there as oneself alone.
    outside = place / "outside"
    outside.mkdir()
    (home / "deep").symlink_to(outside)
    target = str(place / "restored/all")
    assert backup.restore_all(server, alice, target) == ["home", "workspace", "kept-homes"]
    assert (place / "restored/all").stat().st_mode & 0o777 == 0o700
    with pytest.raises(HostError, match=r"Not all came back to .*home/alice: "):
        backup.give_back(server, alice, target)
    assert list(outside.iterdir()) == []
    (home / "deep").unlink()
    given, left = backup.give_back(server, alice, target)
    assert given == [str(home), str(workspace), str(kept / "thesis")] and left == [str(kept / "never")]
    assert (home / "deep/er/letter").read_text() == "mine"
    assert (home / "deep/er/letter").stat().st_mode & 0o777 == 0o640
    assert (workspace / "workspace/data").read_text() == "a project of that name"
    assert (kept / "thesis/.bashrc").read_text() == "thesis"
    assert os.readlink(home / "link") == "/etc/shadow" and (home / "note").read_text() == "newer\n"
    # Once more it is the same; with replace what was backed up wins.
    assert backup.give_back(server, alice, target) == (given, left)
    backup.give_back(server, alice, target, replace=True)
    assert (home / "note").read_text() == "of alice\n"
    for path in (home / "deep/er/letter", workspace / "workspace/data", home / "note", home / "link"):
        assert (path.lstat().st_uid, path.lstat().st_gid) == (alice.uid, alice.gid)


def test_nothing_is_given_back_to_who_is_not_there_or_from_what_others_reach(
    server: Policy, place: Path
) -> None:
    alice = server.user("alice")
    backup.back_up(server, alice)
    target = place / "restored/all"
    backup.restore_all(server, alice, str(target))
    later = replace(server, users=(server.user("bob"),))
    with pytest.raises(Refused, match="alice is no lab user"):
        backup.give_back(later, backup.somebody(later, "alice"), str(target))
    target.chmod(0o755)
    with pytest.raises(Refused, match="root alone can enter"):
        backup.give_back(server, alice, str(target))
    with pytest.raises(NotFound, match="nothing of alice"):
        backup.give_back(server, alice, str(place / "restored"))
    # A home that is somebody else's gets nothing.
    target.chmod(0o700)
    os.chown(alice.home, 2002, 2002)
    given, left = backup.give_back(server, alice, str(target))
    assert left == [alice.home] and given == [server.workspace(alice)]


@pytest.mark.thorough
def test_a_password_that_others_can_read_is_refused(server: Policy, place: Path) -> None:
    (place / "password").chmod(0o644)
    assert "can be read by others" in backup.back_up(server, server.user("alice")).problem


# ---- elsewhere -------------------------------------------------------------------------------------------


@dataclass
class Elsewhere:
    """A server of users whose backups go to another one, which is asked at ``port``."""

    kind: str
    server: Policy
    place: Path
    port: int
    sftp: SftpServer
    keys: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)

    def at(self, port: int, host: str = "127.0.0.1") -> Policy:
        """Return the policy with another way to the same folder."""
        if self.kind == "s3":
            return self.read(f"s3:http://{host}:{port}/backups/lab")
        (self.place / "known_hosts").write_text(self.sftp.line(port))
        return self.read(f"sftp://store@{host}:{port}/lab")

    @property
    def policy(self) -> Policy:
        return self.at(self.port)

    def read(self, repository: str) -> Policy:
        """Return the policy with what IT may write as a repository."""
        limits = {"containers": 1, "cpus": 1, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
        quota = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
        read, _keys = policies.from_inventory(
            {
                "lab_groups": [{"name": "students", "gid": 3101, "limits": limits, "quota": quota}],
                "lab_users": [],
                "lab_backup": {"repository": repository},
            }
        )
        return replace(self.server, backup=read.backup)

    def give(self, **variables: str) -> None:
        """Have these variables of the environment, besides the others."""
        self.variables |= variables
        text = "".join(f"{name}={value}\n" for name, value in self.variables.items())
        (self.place / "environment").write_text(text)
        (self.place / "environment").chmod(0o600)

    def spoil(self, how: str) -> None:
        """Have credentials that the other server does not accept."""
        if self.kind == "s3":
            self.give(**{f"AWS_{how}": "wrong-wrong-wrong"})
        elif how == "key":
            (self.place / "ssh_key").unlink()
            ssh_key(self.place / "ssh_key")
        else:
            other = ssh_key(self.place / "other").read_text().split()[1]
            (self.place / "known_hosts").write_text(f"[127.0.0.1]:{self.port} ssh-ed25519 {other}\n")

    def clear(self) -> None:
        """Remove all repositories, as when the disk over there is not mounted."""
        shutil.rmtree(self.sftp.folder / "home/lab", ignore_errors=True)  # it may be gone already
        if self.kind == "s3":
            client = s3_client("s3", self.port, *self.secrets[:2])
            while there := client.list_objects_v2(Bucket="backups").get("Contents", []):
                keys = [{"Key": one["Key"]} for one in there]
                client.delete_objects(Bucket="backups", Delete={"Objects": keys})

    def there(self) -> list[str]:
        """Return whose repositories there are."""
        if self.kind == "s3":
            client = s3_client("s3", self.port, *self.secrets[:2])
            names = [one["Key"] for one in client.list_objects_v2(Bucket="backups").get("Contents", [])]
        else:
            names = [str(path) for path in self.sftp.folder.glob("home/lab/*/*/config")]
        return [name.split("/")[-2] for name in names if name.endswith("/config")]

    @property
    def secrets(self) -> list[str]:
        """What no message may hold: the key of S3, the password, and its master."""
        derived = [backup.password(SECRET, user.name) for user in self.server.users]
        return [*self.keys, SECRET, *derived]


@dataclass
class Servers:
    """The processes that all tests share."""

    s3: int
    keys: dict[str, str]
    sftp: SftpServer


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = Path(tempfile.mkdtemp(prefix="lab-sftp-test-", dir="/var/lib"))
    folder.chmod(0o755)
    try:
        with ExitStack() as stack:
            setup = QUESTIONS_OF_A_KEY + 1
            port = stack.enter_context(s3_server(tmp_path_factory.mktemp("moto"), setup=setup))
            keys = s3_key(port, "lab", "backups", may=MAY)
            s3_client("s3", port).create_bucket(Bucket="backups")
            yield Servers(port, keys, stack.enter_context(sftp_server(folder)))
    finally:
        shutil.rmtree(folder)


@pytest.fixture(params=["s3", "sftp"])
def far(request: pytest.FixtureRequest, servers: Servers, server: Policy, place: Path) -> Elsewhere:
    port = servers.s3 if request.param == "s3" else servers.sftp.port
    made = Elsewhere(request.param, server, place, port, servers.sftp, keys=tuple(servers.keys.values()))
    if request.param == "s3":
        access, secret = servers.keys["access_key"], servers.keys["secret_key"]
        made.give(AWS_ACCESS_KEY_ID=access, AWS_SECRET_ACCESS_KEY=secret, AWS_DEFAULT_REGION="us-east-1")
    else:
        shutil.copy(servers.sftp.folder / "key", place / "ssh_key")
    made.clear()
    return made


def _refused(far: Elsewhere, policy: Policy, words: str) -> None:
    """See that each verb fails with these words, in records and in what an admin reads, without secrets."""
    alice = policy.user("alice")
    found = backup.back_up(policy, alice)
    bad, _warn = backup.attention(backup.rules_of(policy), [found], found.tried)
    assert found.problem and bad == [f"the backup of alice failed: {found.problem}"]
    said = [found.problem, drill.drill(policy, alice).drill_problem]
    calls: tuple[Callable[[], object], ...] = (
        lambda: backup.snapshots(policy, alice),
        lambda: backup.restore(policy, alice, "note", str(far.place / "restored/never")),
    )
    for call in calls:
        with pytest.raises(HostError) as caught:
            call()
        said.append(str(caught.value))
    for one in said:
        assert words in one and "gone" not in one
        assert not any(secret in one for secret in far.secrets), one
    assert list((far.place / "restored").iterdir()) == []


def test_what_was_backed_up_elsewhere_comes_back_byte_by_byte(far: Elsewhere) -> None:
    policy, place = far.policy, far.place
    alice = policy.user("alice")
    workspace = Path(policy.workspace(alice))
    data = random.Random(1).randbytes(3 << 20)
    _write(alice, workspace / "thesis/[a]*?\\ b", "odd")
    _write(alice, workspace / "thesis/data", "").write_bytes(data)
    for _turn in range(3):
        assert backup.back_up(policy, alice).problem == ""
    # As of a folder, see above.
    taken = backup.snapshots(policy, alice)
    assert len(taken) in (1, 2)
    found = drill.drill(policy, alice)
    assert (found.drill_problem, found.compared, found.changed) == ("", 4, 0)
    assert backup.attention(backup.rules_of(policy), [found], found.done) == ([], [])

    shutil.rmtree(workspace / "thesis")
    final = Path(backup.restore(policy, alice, "thesis", str(place / "restored/a"), taken[-1]["id"]))
    assert (final / "data").read_bytes() == data and (final / "data").stat().st_uid == alice.uid
    assert (final / "[a]*?\\ b").read_text() == "odd"
    assert backup.snapshots(policy, alice, os.uname().nodename) == taken
    with pytest.raises(NotFound, match="There is no backup of bob at"):
        backup.snapshots(policy, policy.user("bob"))


@pytest.mark.parametrize(
    ("far", "how", "words"),
    [
        ("s3", "SECRET_ACCESS_KEY", "does not accept the credentials"),
        ("s3", "ACCESS_KEY_ID", "does not accept the credentials"),
        ("sftp", "key", "does not accept the key of this server"),
        ("sftp", "host", "host key of the backups' server is not the one that is known"),
    ],
    indirect=["far"],
)
def test_wrong_credentials_are_said_in_a_sentence_and_nothing_is_made(
    far: Elsewhere, how: str, words: str
) -> None:
    policy = far.policy
    first = backup.back_up(policy, policy.user("alice"))
    assert first.problem == "" and far.there() == ["alice"]
    far.spoil(how)
    _refused(far, policy, words)
    assert backup.record("alice").done == first.done
    # There is none yet.
    assert words in backup.back_up(policy, policy.user("bob")).problem
    assert far.there() == ["alice"]


@pytest.mark.thorough
def test_a_repository_elsewhere_that_is_gone_is_not_made_anew(far: Elsewhere) -> None:
    policy = far.policy
    alice = policy.user("alice")
    first = backup.back_up(policy, alice)
    assert first.problem == "" and far.there() == ["alice"]
    far.clear()
    found = backup.back_up(policy, alice)
    assert "was there and is gone" in found.problem and found.done == first.done
    assert far.there() == []


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("far", "how", "patience"),
    [
        # restic 0.14 says nothing of S3 for 15 seconds.
        ("s3", "refused", 20),
        ("s3", "silent", 4),
        *(("sftp", how, 20) for how in ("refused", "silent", "no such name")),
    ],
    indirect=["far"],
)
def test_a_server_that_is_away_is_said_within_a_bounded_time(
    far: Elsewhere, monkeypatch: pytest.MonkeyPatch, how: str, patience: float
) -> None:
    alice = far.server.user("alice")
    assert backup.back_up(far.policy, alice).problem == ""
    monkeypatch.setattr(backup, "_PATIENCE", patience)
    options = [one.replace("ConnectTimeout=20", "ConnectTimeout=3") for one in restic._SSH_OPTIONS]
    assert options != list(restic._SSH_OPTIONS)
    monkeypatch.setattr(restic, "_SSH_OPTIONS", options)
    with silent() as port:
        wanted = far.at(free_port() if how == "refused" else port)
        if how == "no such name":
            wanted = far.at(port, "backups.invalid")
        # As on the day on which the server fails that was known.
        known = replace(backup.record("alice"), made=backup.repository(wanted, alice).url)
        backup.keep(known)
        begun = time.monotonic()
        words = "took longer than 4 s" if (far.kind, how) == ("s3", "silent") else "cannot be reached"
        _refused(far, wanted, words)
    # Four verbs.
    assert time.monotonic() - begun < 4 * (patience + 3)
    assert backup.record("alice").done == known.done
    monkeypatch.setattr(backup, "_PATIENCE", 60.0)
    assert backup.back_up(far.policy, alice).problem == ""


@pytest.mark.thorough
def test_a_server_that_falls_silent_meanwhile_is_given_up(
    far: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = far.server.user("alice")
    data = _write(alice, Path(far.server.workspace(alice)) / "data", "")
    data.write_bytes(random.Random(1).randbytes(8 << 20))
    # Two of these hours are ten seconds.
    monkeypatch.setattr(backup, "HOUR", 5)
    with line(far.port, most=2 << 20) as between:
        begun = time.monotonic()
        found = backup.back_up(far.at(between.port), alice)
        assert between.passed > 2 << 20
    assert found.problem.startswith("It took longer than lab_backup.user_hours, 2,")
    assert 9 < time.monotonic() - begun < 25


@pytest.mark.thorough
@pytest.mark.parametrize("far", ["s3"], indirect=True)
def test_an_authority_of_the_universitys_own_is_trusted_where_the_server_trusts_it(
    far: Elsewhere, tmp_path: Path
) -> None:
    self_signed(tmp_path)
    options = ("-c", str(tmp_path / "cert"), "-k", str(tmp_path / "key"))
    # Nobody's key is looked at for as long as this test asks.
    with s3_server(tmp_path, *options, setup=100000) as port:
        policy = far.read(f"s3:https://127.0.0.1:{port}/backups/lab")
        alice = policy.user("alice")
        problem = backup.back_up(policy, alice).problem
        assert "does not trust the certificate" in problem and "lab_ca_certificates" in problem
        # What update-ca-certificates(8) makes of the certificates that IT gives.
        mounts = {"/etc/ssl/certs/ca-certificates.crt": str(tmp_path / "cert")}
        call = elsewhere(lambda: backup.back_up(policy, alice).problem, mounts)
        assert call_in_child(call) == ""


@pytest.mark.thorough
@pytest.mark.parametrize("far", ["sftp"], indirect=True)
def test_without_a_key_of_its_own_it_goes_by_roots_settings_of_ssh(far: Elsewhere) -> None:
    (far.place / "ssh_key").rename(far.place / "id")
    policy = far.read("sftp:store-of-backups:lab")
    (far.place / "known_hosts").unlink(missing_ok=True)
    with (far.place / "hosts").open("w") as hosts:
        hosts.write(far.sftp.line(far.port))
    root = PrivateRoot()
    try:
        root.show(far.place)
        folder = root.path / "root/.ssh"
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / "config").write_text(
            f"Host store-of-backups\n HostName 127.0.0.1\n Port {far.port}\n User store\n"
            f" IdentityFile {far.place}/id\n UserKnownHostsFile {far.place}/hosts\n"
        )
        assert root.call(lambda: backup.back_up(policy, policy.user("alice")).problem) == ""
    finally:
        root.close()
    assert far.there() == ["alice"]
