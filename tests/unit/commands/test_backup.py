# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What backups and drills decide, and how they are told; the real restic is in tests/integration."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    adminnotes,
    asuser,
    backup,
    backuprules,
    cli_backup,
    drill,
    journal,
    locks,
    metrics,
    overview,
    policy,
    quota,
    restic,
    state,
)
from ansible_collections.lab.server.plugins.module_utils._core.backup import Record
from ansible_collections.lab.server.plugins.module_utils._core.backuprules import BackupRules
from ansible_collections.lab.server.plugins.module_utils._core.drill import Node, Seen
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    HostError,
    InvalidInput,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy
from ansible_collections.lab.server.plugins.module_utils._core.terminal import Terminal
from conftest import Run

RULES = BackupRules("/backup", ("*.ckpt",))
HOUR = 3600
NOW = 1_700_000_000.0


@pytest.fixture
def backed_up(lab: Policy) -> Policy:
    return replace(lab, backup=RULES)


@pytest.fixture
def admin(run: Run, backed_up: Policy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(cli_backup, "load", lambda _path: backed_up)
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(adminnotes, "PATH", str(tmp_path / "notes/admins"))
    monkeypatch.setattr(overview, "full", lambda _policy: [])
    return run


# ---- the policy ------------------------------------------------------------------------------------------


def test_the_rules_survive_the_file_and_are_not_for_everybody(backed_up: Policy) -> None:
    plain = json.loads(json.dumps(policy.dump(backed_up)))
    assert policy.parse(plain) == backed_up
    assert policy.public(backed_up).backup is None
    # The policy of a server that was written before there were backups.
    del plain["backup"]
    assert policy.parse(plain).backup is None
    assert backuprules.dump(None) is None


@pytest.mark.parametrize(
    ("repository", "path"),
    [("/backup", "/backup"), ("sftp:lab@store.example.org:/b", ""), ("s3:https://s3.example.org/b", "")],
)
def test_only_a_folder_is_a_path(repository: str, path: str) -> None:
    assert BackupRules(repository).path == path


# ---- what is backed up -----------------------------------------------------------------------------------


def test_each_user_has_another_password_and_place() -> None:
    # As the command of docs/backup.md tells it.
    known = "dc1f1d37dce8434c"
    assert backup.password("correct horse battery staple", "alice").startswith(known)
    assert backup.password("a" * 16, "alice") != backup.password("a" * 16, "bob")
    assert backup.password("a" * 16, "alice") != backup.password("b" * 16, "alice")
    assert backup.url(RULES, "one", "alice") == "/backup/one/alice"


def test_no_secret_is_in_arguments_or_in_what_is_printed(lab: Policy) -> None:
    place = restic.Repository("/backup", "secret-password", (("AWS_SECRET_ACCESS_KEY", "secret-key"),))
    command, options = restic._prepared(
        place, backup.backup_arguments(RULES, lab.user("alice"), ["/x"]), (), ()
    )
    assert "secret" not in " ".join(command) and "secret" not in repr(place)
    assert options["env"]["RESTIC_PASSWORD"] == "secret-password"
    assert options["env"]["AWS_SECRET_ACCESS_KEY"] == "secret-key"


def test_caches_are_left_out_and_trees_come_after_the_options(lab: Policy) -> None:
    words = backup.backup_arguments(RULES, lab.user("alice"), ["/home/alice"])
    assert words[-2:] == ["--", "/home/alice"]
    for word in ("--exclude-caches", "--one-file-system", "--exclude=__pycache__", "--exclude=*.ckpt"):
        assert word in words
    assert "--exclude=/home/alice/.cache" in words


def test_what_is_not_kept_is_not_asked_for() -> None:
    words = backup.forget_arguments(replace(RULES, keep_monthly=0))
    assert words == ["forget", "--prune", "--group-by=", "--keep-daily=7", "--keep-weekly=5"]


@pytest.mark.parametrize(
    ("hard", "used", "largest"), [(5 << 30, 1 << 30, 5 << 30), (5 << 30, 7 << 30, 7 << 30), (0, 1 << 30, 0)]
)
def test_only_a_file_that_must_have_holes_is_left_out(
    lab: Policy, monkeypatch: pytest.MonkeyPatch, hard: int, used: int, largest: int
) -> None:
    usage = quota.Usage(used, 1, policy.Quota(0, hard, 0, 0))
    monkeypatch.setattr(quota, "usage", lambda _policy, _user: usage)
    alice = lab.user("alice")
    assert backup._largest(lab, alice) == largest
    words = backup.backup_arguments(RULES, alice, ["/x"], largest)
    assert [word for word in words if "larger" in word] == (
        [f"--exclude-larger-than={largest}"] if largest else []
    )


def test_without_quotas_nothing_is_left_out(lab: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_policy: Policy, _user: object) -> quota.Usage:
        raise HostError("Quotas are not on.")

    monkeypatch.setattr(quota, "usage", refuse)
    assert backup._largest(lab, lab.user("alice")) == 0


# ---- everybody has a turn --------------------------------------------------------------------------------


class Restic:
    """Plays restic and the clock: a backup of who is in ``slow`` takes all the time that it is given."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slow: set[str] = set()
        self.calls: list[tuple[str, str, float]] = []

    def run(
        self, place: restic.Repository, arguments: Sequence[str], *, timeout: float, **_more: Any
    ) -> subprocess.CompletedProcess[str]:
        user = place.url.rpartition("/")[2]
        self.calls.append((user, arguments[0], timeout))
        self.now += 60
        if arguments[0] == "backup" and user in self.slow:
            self.now += timeout
            raise HostError("restic took too long and was ended.")
        said = json.dumps({"message_type": "summary", "snapshot_id": "0123456789"})
        return subprocess.CompletedProcess(list(arguments), 0, said, "")

    def users(self) -> list[str]:
        return [user for user, verb, _timeout in self.calls if verb == "backup"]


@pytest.fixture
def played(admin: Run, lab: Policy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Restic:
    made = Restic()
    (tmp_path / "password").write_text("correct horse battery staple\n")
    monkeypatch.setattr(backup, "_secret", lambda path: "x" * 16 if path == backup.PASSWORD_PATH else None)
    monkeypatch.setattr(backup, "_check_place", lambda _rules: None)
    monkeypatch.setattr(backup.restic, "run", made.run)
    monkeypatch.setattr(backup.time, "monotonic", lambda: made.now)
    monkeypatch.setattr(backup.time, "time", lambda: NOW + made.now)
    monkeypatch.setattr(locks, "RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(quota, "usage", lambda _policy, _user: quota.Usage(0, 0, quota.NO_LIMIT))
    return made


def test_who_takes_too_long_is_ended_and_the_next_one_goes_on(admin: Run, played: Restic) -> None:
    played.slow = {"alice"}
    code, out, _err = admin("lab", "backup")
    first, second = out.splitlines()
    assert code == 1 and first.startswith("alice: failed: It took longer than lab_backup.user_hours, 2,")
    assert second == "bob: snapshot 01234567"
    assert all(timeout <= 2 * HOUR for _user, _verb, timeout in played.calls)
    [given] = [timeout for user, verb, timeout in played.calls if (user, verb) == ("alice", "backup")]
    # What came before it counts, too.
    assert given == 2 * HOUR - 120
    bad, _warn = backup.attention(RULES, [backup.record("alice")], NOW)
    assert len(bad) == 1 and "du --apparent-size" in bad[0]


def test_whose_last_try_is_the_longest_ago_comes_first(admin: Run, played: Restic) -> None:
    played.slow = {"alice"}
    # As if all of it had been ended while the one of alice was made.
    backup.keep(Record("alice", done=NOW - 90 * HOUR, tried=NOW - HOUR))
    backup.keep(Record("bob", done=NOW - HOUR, tried=NOW - 2 * HOUR))
    admin("lab", "backup")
    admin("lab", "backup")
    # She who has no success does not come first for it.
    assert played.users() == ["bob", "alice", "bob", "alice"]


def test_a_try_is_known_before_it_ends(
    played: Restic, backed_up: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[float] = []

    def run(place: restic.Repository, arguments: Sequence[str], **more: Any) -> object:
        tried.append(backup.record("alice").tried)
        return played.run(place, arguments, **more)

    monkeypatch.setattr(backup.restic, "run", run)
    began = NOW + played.now
    assert backup.back_up(backed_up, backed_up.user("alice")).problem == ""
    assert set(tried) == {began}


def test_who_is_backed_up_by_somebody_else_keeps_nobody_waiting(
    admin: Run, played: Restic, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backup.back_up

    def back_up(policy: Policy, user: policy.User) -> Record:
        if user.name == "alice":
            raise Refused("Somebody else is at work on the backup of alice.")
        return real(policy, user)

    monkeypatch.setattr(backup, "back_up", back_up)
    code, out, _err = admin("lab", "backup")
    assert code == 1
    assert out == "alice: failed: Somebody else is at work on the backup of alice.\nbob: snapshot 01234567\n"
    assert backup.record("alice").problem == ""


def test_what_is_larger_than_the_quota_is_named(
    admin: Run, played: Restic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = quota.Usage(0, 0, policy.Quota(0, 1 << 20, 0, 0))
    monkeypatch.setattr(quota, "usage", lambda _policy, _user: usage)
    monkeypatch.setattr(asuser, "run_as_user", lambda _who, look, timeout: look())
    files = tmp_path / "files"
    files.mkdir()
    monkeypatch.setattr(Policy, "workspace", lambda _policy, _user: str(files))
    for name, size in (("dense", 1 << 20), ("holes", 1 << 40)):
        (files / name).touch()
        os.truncate(files / name, size)
    (files / "link").symlink_to(files / "holes")
    code, out, _err = admin("lab", "backup", "alice")
    told = f"alice: snapshot 01234567; larger than the quota, so left out: {files}/holes\n"
    assert (code, out) == (0, told)
    assert backup.record("alice").left_out == (f"{files}/holes",)


# ---- restoring -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("thesis/data", "/home/.workspaces/alice/thesis/data"),
        ("/home/alice/workspace/thesis", "/home/.workspaces/alice/thesis"),
        ("/home/alice/workspace", "/home/.workspaces/alice"),
        ("/home/alice/.bashrc", "/home/alice/.bashrc"),
        ("/home/.homes/alice/thesis", "/home/.homes/alice/thesis"),
    ],
)
def test_where_a_path_is_in_a_snapshot(lab: Policy, path: str, found: str) -> None:
    assert backup.locate(lab, lab.user("alice"), path) == found


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "../bob", "a/../b", "a//b", "a/", "/etc/shadow", "/home/bob", "/home/alicex", "a\nb"],
)
def test_a_path_that_is_not_plain_or_not_the_users_is_refused(lab: Policy, path: str) -> None:
    with pytest.raises(InvalidInput):
        backup.locate(lab, lab.user("alice"), path)


def test_a_pattern_matches_its_path_alone() -> None:
    assert backup.literal(r"/a/[b]*?\c d") == r"/a/\[b\]\*\?\\c d"


@pytest.mark.parametrize("snapshot", ["--help", "latest:x", "abc", "ABCDEF01", ""])
def test_what_is_no_snapshot_never_reaches_restic(backed_up: Policy, snapshot: str) -> None:
    with pytest.raises(InvalidInput, match="is no snapshot"):
        backup.restore(backed_up, backed_up.user("alice"), "thesis", "/root/x", snapshot)


@pytest.fixture
def stored(backed_up: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policy:
    """Return a policy whose repositories are in a folder, with a restic that finds no others than these."""
    monkeypatch.setattr(backup, "_secret", lambda path: "a" * 16 if path == backup.PASSWORD_PATH else None)
    for place in ("old.example.org/alice", "old.example.org/eve", f"{os.uname().nodename}/bob"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config").write_text("")
    (tmp_path / "elsewhere").mkdir()

    def run(place: restic.Repository, words: list[str], **_more: object) -> SimpleNamespace:
        if not os.path.exists(f"{place.url}/config"):
            raise restic.Missing(f"restic {words[0]} failed: unable to open config file: stat {place.url}")
        one = {"short_id": "0a1b2c3d", "time": "2026-11-26T01:00:00Z", "paths": []}
        return SimpleNamespace(stdout=json.dumps([one]))

    monkeypatch.setattr(restic, "run", run)
    return replace(backed_up, backup=BackupRules(str(tmp_path)))


def test_who_left_and_another_name_of_the_server_are_found(stored: Policy) -> None:
    eve = backup.somebody(stored, "eve")
    assert backup.somebody(stored, "alice") == stored.user("alice")
    assert backup.locate(stored, eve, "/home/eve/workspace") == "/home/.workspaces/eve"
    assert backup.snapshots(stored, eve, "old.example.org")[0]["id"] == "0a1b2c3d"
    assert backup.snapshots(stored, stored.user("bob"))
    for name in ("../alice", "Eve", "root", ""):
        with pytest.raises(InvalidInput):
            backup.somebody(stored, name)
    for server in ("..", "../x", "a/b", "-x"):
        with pytest.raises(InvalidInput, match="no name of a server"):
            backup.repository(stored, eve, server)


def test_a_repository_that_is_not_there_is_said_with_what_to_do(stored: Policy) -> None:
    with pytest.raises(NotFound, match=r"no backup of eve at .*add --server old\.example\.org\."):
        backup.snapshots(stored, backup.somebody(stored, "eve"))
    with pytest.raises(NotFound, match=r"no backup of mallory at .*is mounted; .* --server NAME\."):
        backup.snapshots(stored, backup.somebody(stored, "mallory"))


def test_a_restore_of_what_is_not_there_says_so_and_leaves_nothing(
    stored: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backup, "_check_target", lambda _target: None)
    eve, target = backup.somebody(stored, "eve"), tmp_path / "elsewhere/x"
    with pytest.raises(NotFound, match="no backup of eve"):
        backup.restore(stored, eve, "thesis", str(target))
    with pytest.raises(NotFound, match="is not in that snapshot"):
        backup.restore(stored, eve, "thesis", str(target), server="old.example.org")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_snapshots_are_listed_of_all_and_of_who_left(
    run: Run, stored: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(cli_backup, "load", lambda _path: stored)
    code, out, _err = run("lab", "backup", "--list")
    assert code == 0 and "There is no backup of alice" in out and "bob  0a1b2c3d  2026-11-26T01:00:00" in out
    assert run("lab", "backup", "eve", "--list", "--server", "old.example.org")[1].startswith("eve  0a1b2c3d")
    code, _out, err = run("lab", "backup", "eve", "--list")
    assert code == 4 and "--server old.example.org" in err
    # What is made is this server's, and of lab users alone.
    assert run("lab", "backup", "alice", "--server", "old.example.org")[0] == 2
    for verb in ("backup", "drill"):
        code, _out, err = run("lab", verb, "eve")
        assert code == 4 and "lab backup NAME --list" in err
    words = ("lab", "restore", "eve", "thesis", "--to", "/root/x", "--dry-run")
    wanted = backup.locate(stored, backup.somebody(stored, "eve"), "thesis")
    assert run(*words)[:2] == (0, f"Would restore {wanted} of snapshot latest into /root/x.\n")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("restic 0.14.0 compiled with go1.19.8 on linux/amd64\n", []),
        ("restic 0.15.0 compiled with go1.19.8 on linux/amd64\n", ["--sparse"]),
        ("restic 1.0.0 compiled with go1.30 on linux/amd64\n", ["--sparse"]),
        ("something else", []),
    ],
)
def test_holes_are_restored_where_restic_can(
    monkeypatch: pytest.MonkeyPatch, said: str, words: list[str]
) -> None:
    ran: list[list[str]] = []

    def run(_place: object, arguments: list[str], **_more: Any) -> subprocess.CompletedProcess[str]:
        ran.append(arguments)
        return subprocess.CompletedProcess(arguments, 0, said, "")

    monkeypatch.setattr(restic, "run", run)
    backup.extract(restic.Repository("/backup", "x"), "latest", ["/a"], "/x", owned=False)
    assert ran[1] == ["restore", "--target=/x", *words, "--include=/a", "--", "latest"]


# ---- elsewhere -------------------------------------------------------------------------------------------

FAR = restic.Repository(
    "s3:https://s3.example.org/backups/one/alice",
    "secret-password",
    (("AWS_ACCESS_KEY_ID", "AKIASECRET"), ("AWS_SECRET_ACCESS_KEY", "secret-key"), ("AWS_PROFILE", "x")),
)
_OPENED = "Fatal: unable to open config file: "
_LOCATION = "\nIs there a repository at the following location?\n"


@pytest.mark.parametrize(
    ("repository", "server"),
    [
        ("sftp://lab@store.example.org:2222//backup", ("store.example.org", "lab", "2222")),
        ("sftp://store.example.org/backup", ("store.example.org", "", "")),
        ("sftp://lab@[2001:db8::1]:22//b", ("2001:db8::1", "lab", "22")),
        ("sftp:lab@store:/backup/a", ("store", "lab", "")),
        ("sftp:store:backup", ("store", "", "")),
        # What follows the colon is a path already, and these would be options, or nothing at all.
        ("sftp:lab@store:2222/backup", None),
        ("sftp:-oProxyCommand=x:/b", None),
        ("sftp://-oProxyCommand=x/b", None),
        ("sftp:-lroot@store:/b", None),
        ("sftp://store", None),
        ("sftp://store//", None),
        ("sftp:store:/", None),
        ("s3:https://s3.example.org/b", None),
        ("/backup", None),
    ],
)
def test_a_server_of_sftp_is_read_as_restic_reads_it(
    repository: str, server: tuple[str, str, str] | None
) -> None:
    found = backuprules.sftp_server(repository)
    assert (found and (found.host, found.user, found.port)) == server


def test_ssh_asks_nobody_and_takes_the_keys_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def command(url: str) -> list[str]:
        words, _options = restic._prepared(restic.Repository(url, "x"), ["snapshots"], (), (), "/tmp/log")
        assert words[0] == "restic" and words[-1] == "snapshots"
        assert not words[1:-1] or (words[1] == "-o" and words[2].startswith("sftp.command=ssh -o "))
        return words[2].partition("=")[2].split() if words[1:-1] else []

    monkeypatch.setattr(restic, "SSH_KEY", str(tmp_path / "key"))
    monkeypatch.setattr(restic, "KNOWN_HOSTS", str(tmp_path / "hosts"))
    url = "sftp://lab@store.example.org:2222//backup/one/alice"
    plain = command(url)
    assert "BatchMode=yes" in plain and "ConnectTimeout=20" in plain
    assert plain[-9:] == ["-E", "/tmp/log", "-p", "2222", "-l", "lab", "store.example.org", "-s", "sftp"]
    assert not [word for word in plain if word.startswith(("IdentityFile", "UserKnownHostsFile"))]
    assert command("sftp:store:backup")[-3:] == ["store", "-s", "sftp"]
    for name in ("key", "hosts"):
        (tmp_path / name).touch()
    given = command(url)
    for word in (
        f"IdentityFile={tmp_path}/key",
        "IdentitiesOnly=yes",
        f"UserKnownHostsFile={tmp_path}/hosts",
    ):
        assert given[given.index(word) - 1] == "-o"
    assert "StrictHostKeyChecking=yes" in given
    assert command("/backup") == command("s3:https://s3.example.org/b") == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        # restic 0.14, of a folder, S3, sftp and its own protocol; 0.18.
        (1, f"{_OPENED}stat /backup/one/alice/config: no such file or directory{_LOCATION}/backup"),
        (1, f"{_OPENED}Stat: The specified key does not exist.{_LOCATION}s3:..."),
        (1, f"{_OPENED}Lstat: file does not exist{_LOCATION}sftp:..."),
        (1, f"{_OPENED}<config/> does not exist{_LOCATION}rest:..."),
        (10, "Fatal: repository does not exist: unable to open config file: anything"),
    ],
)
def test_a_repository_is_missing_only_where_the_place_says_so(code: int, said: str) -> None:
    assert isinstance(restic._failed(FAR, "cat", code, said, ""), restic.Missing)


@pytest.mark.parametrize(
    ("said", "of_ssh", "words"),
    [
        (f"{_OPENED}Stat: Access Denied.{_LOCATION}s3:...", "", "does not accept the credentials"),
        ("Fatal: unable to open repository at s3:x: no credentials found", "", "does not accept the creden"),
        (f"{_OPENED}Stat: Head x: dial tcp: lookup x: no such host{_LOCATION}", "", "cannot be reached"),
        (f"{_OPENED}Head x: dial tcp 10.0.0.1:443: connect: connection refused", "", "cannot be reached"),
        (f"{_OPENED}Head x: x509: certificate signed by unknown authority", "", "lab_ca_certificates"),
        ("Fatal: error: EOF", "lab@store: Permission denied (publickey).", "does not accept the key of"),
        (
            "Fatal: error: EOF",
            "No ED25519 host key is known for store\nHost key verification failed.",
            "host",
        ),
        ("Fatal: error: EOF", "ssh: Could not resolve hostname store: Name or service", "cannot be reached"),
        ("Fatal: wrong password or no key found", "", "restic cat failed: wrong password or no key found"),
        ("Fatal: the key secret-key of AKIASECRET and secret-password", "", "the key *** of *** and ***"),
        ("", "", "restic cat failed: status 1"),
    ],
)
def test_what_keeps_a_repository_from_being_reached_is_no_missing_one(
    tmp_path: Path, said: str, of_ssh: str, words: str
) -> None:
    (tmp_path / "log").write_text(of_ssh)
    error = restic._failed(FAR, "cat", 1, said, str(tmp_path / "log"))
    assert not isinstance(error, restic.Missing) and words in str(error)
    assert "secret-" not in str(error)


def test_a_name_in_what_is_said_of_a_folder_is_no_cause() -> None:
    said = "Fatal: unable to save /home/alice/connection refused: no space left on device"
    error = restic._failed(restic.Repository("/backup/one/alice", "x"), "backup", 1, said, "")
    assert str(error).startswith("restic backup failed: unable to save /home/alice/connection refused")


def test_who_goes_on_trying_until_the_end_tells_why(tmp_path: Path) -> None:
    said = 'Stat(<config/>) returned error, retrying after 6.8s: Stat: Head "x": dial tcp: connection refused'
    error = restic._too_long(FAR, "cat", 60.0, said, "")
    assert "cannot be reached" in str(error) and "connection refused" in str(error)
    assert "longer than 60 s" in str(restic._too_long(FAR, "cat", 60.0, "", str(tmp_path / "none")))


def test_what_writes_lines_for_ever_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "restic"
    program.write_text("#!/bin/sh\necho one\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(restic, "PROGRAM", str(program))
    monkeypatch.setattr(restic, "_confinement", lambda _capabilities, _trees: None)
    met = []
    with pytest.raises(HostError, match="restic ls took longer than 1 s and was ended"):
        met.extend(restic.lines(restic.Repository("/backup", "x"), ["ls"], 0.6))
    assert met == ["one\n"]


# ---- the drill -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2023-11-14T22:13:20Z", 1_700_000_000_000_000_000),
        ("2023-11-14T22:13:20.5Z", 1_700_000_000_500_000_000),
        ("2023-11-14T23:13:20.123456789+01:00", 1_700_000_000_123_456_789),
        ("2023-11-14T17:13:20.000000001-05:00", 1_700_000_000_000_000_001),
    ],
)
def test_times_are_read_to_the_nanosecond(text: str, expected: int) -> None:
    assert drill.nanoseconds(text) == expected


def _line(path: str, **more: object) -> str:
    time = "2023-11-14T22:13:20Z"
    data = {"struct_type": "node", "type": "file", "path": path, "size": 1, "mtime": time, "ctime": time}
    return json.dumps({**data, **more})


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[]",
        "3",
        json.dumps({"struct_type": "snapshot"}),
        _line("/a", type="symlink"),
        _line("/a", size=1 << 40),
        _line("/a\ufffd"),
        _line("/a", mtime="yesterday"),
        _line("/a", size=None),
    ],
)
def test_what_is_no_file_for_a_sample_is_left_out(line: str) -> None:
    assert drill.node(line) is None


def test_a_sample_is_bounded_and_each_file_may_be_in_it() -> None:
    lines = [_line(f"/{number}") for number in range(50)]
    met = {one.path for turn in range(200) for one in drill.sample(lines, 5, random.Random(turn))}
    assert len(met) == 50
    assert all(len(drill.sample(lines, 5, random.Random(turn))) == 5 for turn in range(20))
    large = [_line(f"/{number}", size=60 << 20) for number in range(50)]
    assert sum(one.size for one in drill.sample(large, 50, random.Random(1))) <= 512 << 20


def test_a_file_of_the_same_times_must_be_the_same() -> None:
    one = Node("/a", 3, 5, 7)
    assert drill.verdict(one, Seen(3, 5, 7, "x"), "x") == "same"
    assert drill.verdict(one, Seen(3, 5, 7, "x"), "y") == "differs from what was backed up"
    assert drill.verdict(one, Seen(3, 5, 7, "x"), "") == "could not be restored"
    for now in (None, Seen(4, 5, 7, "x"), Seen(3, 6, 7, "x"), Seen(3, 5, 8, "x"), Seen(3, 5, 7, "")):
        assert drill.verdict(one, now, "y") == "changed"
    now = {"/a": Seen(3, 5, 7, "x")}
    assert drill.judge([one], now, {"/a": "x"}) == {"compared": 1, "changed": 0}
    with pytest.raises(HostError, match="/a could not be restored"):
        drill.judge([one], now, {"/a": ""})


# ---- how it is told --------------------------------------------------------------------------------------

GOOD = Record("alice", done=NOW - HOUR, drilled=NOW - HOUR, compared=3)


@pytest.mark.parametrize(
    ("record", "level", "words"),
    [
        (replace(GOOD, problem="no disk"), "bad", "the backup of alice failed: no disk"),
        (replace(GOOD, done=NOW - 60 * HOUR), "bad", "the backup of alice is 60 hours old"),
        (replace(GOOD, drill_problem="/a differs"), "bad", "the restore drill of alice failed: /a differs"),
        (Record("alice"), "warn", "alice has no backup yet"),
        (replace(GOOD, drilled=0.0), "warn", "no drill has restored the backup of alice yet"),
        (replace(GOOD, drilled=NOW - 480 * HOUR), "warn", "the restore drill of alice is 20 days old"),
    ],
)
def test_what_needs_a_hand(record: Record, level: str, words: str) -> None:
    bad, warn = backup.attention(RULES, [record], NOW)
    assert (bad, warn) == (([words], []) if level == "bad" else ([], [words]))
    assert backup.attention(RULES, [GOOD], NOW) == ([], [])


def test_a_damaged_record_is_a_problem_and_no_crash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    assert backup.record("alice") == Record("alice")
    assert backup.keep(GOOD) == backup.record("alice") == GOOD
    for text in ("{", "[]", '{"unknown": 1}'):
        (tmp_path / "backup/alice.json").write_text(text)
        assert "damaged" in backup.record("alice").problem


def test_status_and_metrics_tell_of_backups() -> None:
    assert cli_backup.fact(None) == []
    seen = {"users": [asdict(GOOD), asdict(Record("bob"))]}
    [(label, text)] = cli_backup.fact(seen)
    assert label == "backups" and text.startswith("1 of 2 users") and text.endswith("in a drill: 1")
    lines = metrics._backups(seen)
    assert f'lab_server_backup_seconds{{user="alice"}} {NOW - HOUR!r}' in lines
    assert 'lab_server_backup_failed{user="bob"} 0' in lines
    failed = metrics._backups(
        {"users": [asdict(replace(GOOD, problem="no disk", drill_problem="/a differs"))]}
    )
    for name in ("backup_failed", "drill_failed"):
        assert f'lab_server_{name}{{user="alice"}} 0' in lines
        assert f'lab_server_{name}{{user="alice"}} 1' in failed
    assert metrics._backups(None) == []


@pytest.mark.parametrize("words", [("backup",), ("restore", "alice", "x", "--to", "/root/x"), ("drill",)])
def test_who_is_not_root_is_told_so(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run("lab", *words)
    assert (code, out) == (3, "") and "admins" in err


def test_without_backups_that_is_said(run: Run, lab: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(cli_backup, "load", lambda _path: lab)
    code, _out, err = run("lab", "drill")
    assert code == 3 and "makes no backups" in err


def test_a_dry_run_only_tells(admin: Run, backed_up: Policy) -> None:
    code, out, _err = admin("lab", "backup", "alice", "--dry-run")
    assert code == 0 and out.startswith("alice: would back up /home/alice, ")
    words = ("lab", "restore", "alice", "thesis", "--to", "/root/x", "--dry-run")
    wanted = f"{backed_up.workspace(backed_up.user('alice'))}/thesis"
    told = f"Would restore {wanted} of snapshot latest into /root/x.\n"
    assert admin(*words)[:2] == (0, told)
    assert admin("lab", "backup", "nobody")[0] == 4


def test_one_that_failed_ends_with_1(admin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backup, "back_up", lambda _policy, user: Record(user.name, problem="no disk"))
    code, out, _err = admin("lab", "backup", "alice")
    assert (code, out) == (1, "alice: failed: no disk\n")
    monkeypatch.setattr(drill, "drill", lambda _policy, user: replace(GOOD, user=user.name))
    code, out, _err = admin("lab", "drill", "alice")
    assert (code, out) == (0, "alice: 3 files are as they were, 0 changed since\n")


ENDING = (signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def endable() -> Iterator[None]:
    """Let signals end this process as they do by default, also where nohup(1) started it."""
    before = [(number, signal.signal(number, signal.SIG_DFL)) for number in ENDING]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.usefixtures("endable")
@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("verb", ["drill", "restore"])
def test_what_was_restored_is_removed_when_the_work_is_ended(
    admin: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str, number: signal.Signals
) -> None:
    monkeypatch.setattr(backup, "_check_target", lambda _target: None)
    monkeypatch.setattr(backup, "repository", lambda *_all: None)
    monkeypatch.setattr(backup, "snapshots", lambda *_all: [{"id": "abc", "time": "2026-01-01T00:00:00"}])
    monkeypatch.setattr(restic, "lines", lambda *_all: [_line("/home/alice/secret")])
    monkeypatch.setattr(restic, "run", lambda *_all, **_more: None)
    monkeypatch.setattr(drill, "STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(drill.locks, "RUN_DIRECTORY", str(tmp_path / "run"))
    # What a drill left that was killed.
    (tmp_path / "drill-2001/home").mkdir(parents=True)
    (tmp_path / "to").mkdir()
    found = []

    def extract(
        _place: object, _snapshot: str, _paths: object, target: str, *, owned: bool, **_more: object
    ) -> None:
        found.append((os.listdir(target), owned))
        (Path(target) / "secret").write_text("of alice")
        os.kill(os.getpid(), number)

    monkeypatch.setattr(backup, "extract", extract)
    words = {"drill": ("drill", "alice"), "restore": ("restore", "alice", "x", "--to", f"{tmp_path}/to/x")}
    assert admin("lab", *words[verb])[0] == 128 + number
    assert found == [([], True)]
    assert list((tmp_path / "to").iterdir()) == []
    assert (tmp_path / "drill-2001").exists() == (verb == "restore")
    assert [signal.getsignal(one) for one in ENDING] == [signal.SIG_DFL] * 2


# ---- the audit log ---------------------------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what is written to the audit log."""
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(journal, "record", lambda _priority=0, **values: written.append(values))
    return written


def test_each_backup_and_drill_is_written_down(
    admin: Run, monkeypatch: pytest.MonkeyPatch, log: list[dict[str, Any]]
) -> None:
    problems = {"alice": "", "bob": "no disk"}
    monkeypatch.setattr(
        backup, "back_up", lambda _policy, user: Record(user.name, problem=problems[user.name], snapshot="ab")
    )
    monkeypatch.setattr(
        drill,
        "drill",
        lambda _policy, user: replace(GOOD, user=user.name, drill_problem=problems[user.name]),
    )
    assert admin("lab", "backup", "--dry-run")[0] == 0 and not log
    for verb in ("backup", "drill"):
        assert admin("lab", verb)[0] == 1
        assert [(one["user"], one["verb"], one["owner"], one["outcome"], one["detail"]) for one in log] == [
            ("root", verb, 2001, "done", "alice"),
            ("root", verb, 2002, "failed", "bob: no disk"),
        ]
        log.clear()


def test_a_restore_is_written_down_also_one_that_fails(
    admin: Run, monkeypatch: pytest.MonkeyPatch, log: list[dict[str, Any]]
) -> None:
    words = ("lab", "restore", "alice", "thesis", "--to", "/root/x")
    monkeypatch.setattr(backup, "restore", lambda *_all: "/root/x/thesis")
    assert admin(*words, "--dry-run")[0] == 0 and not log
    assert admin(*words)[0] == 0

    def fail(*_all: object) -> str:
        raise HostError("It is away.")

    monkeypatch.setattr(backup, "restore", fail)
    assert admin(*words)[0] != 0
    what = "thesis of alice, snapshot latest, to /root/x"
    assert [(one["verb"], one["owner"], one["outcome"], one["detail"]) for one in log] == [
        ("restore", 2001, "done", what),
        ("restore", 2001, "failed", f"{what}: It is away."),
    ]


def test_all_of_a_user_is_restored_and_given_back(
    admin: Run, monkeypatch: pytest.MonkeyPatch, log: list[dict[str, Any]], tmp_path: Path
) -> None:
    asked: list[Any] = []
    given, left = ["/home/alice", "/home/.workspaces/alice"], ["/home/.homes/alice/thesis"]

    def restore_all(_policy: object, _user: object, *words: str) -> list[str]:
        asked.append(words)
        return ["home", "workspace", "kept-homes"]

    def give_back(
        _policy: object, _user: object, folder: str, *, replace: bool
    ) -> tuple[list[str], list[str]]:
        asked.append((folder, replace))
        return given, left

    monkeypatch.setattr(backup, "restore_all", restore_all)
    monkeypatch.setattr(backup, "give_back", give_back)
    target = str(tmp_path / "all")
    words = ("lab", "restore", "alice", "--to", target)
    code, out, _err = admin(*words, "--back", "--dry-run")
    assert code == 0 and not log and not asked and "Would give back to alice" in " ".join(out.split())
    code, out, _err = admin(*words)
    assert code == 0 and "for root alone: home, workspace, kept-homes." in " ".join(out.split())
    assert asked == [(target, "latest", "")]
    code, out, _err = admin(*words, "--back", "--snapshot", "0123abcd")
    shown = " ".join(out.split())
    assert code == 0 and asked[1:] == [(target, "0123abcd", ""), (target, False)]
    assert "What was there stays as it was." in shown and "Left out, as there is no" in shown
    assert "has looked at it" not in shown
    # What was restored already is given back as it is.
    Path(target).mkdir()
    left.clear()
    code, out, _err = admin(*words, "--back", "--replace", "--json")
    told = json.loads(out)
    assert asked[3:] == [(target, True)] and (told["given_back"], told["holds"]) == (given, [])
    assert "has looked at it, remove" in " ".join(admin(*words, "--back")[1].split())
    assert [one["detail"] for one in log][1] == f"all of alice, snapshot 0123abcd, to {target}, and back"


@pytest.mark.parametrize("words", [("x", "--back"), ("x", "--replace"), ("--replace",)])
def test_giving_back_is_for_all_files_of_a_user(admin: Run, words: tuple[str, ...]) -> None:
    code, _out, err = admin("lab", "restore", "alice", *words, "--to", "/root/x")
    assert code == 2 and ("Leave PATH out." in err or "Add --back." in err)


# ---- at login --------------------------------------------------------------------------------------------


def shown(width: int = 80) -> list[str]:
    """Return what an admin sees at login."""
    out = Terminal(io.StringIO(), {})
    out.width = width
    return adminnotes.lines(out)


def test_a_failed_backup_is_told_at_login_until_one_succeeds(admin: Run, played: Restic) -> None:
    played.slow = {"alice"}
    assert shown() == []
    admin("lab", "backup")
    first, second = shown()
    assert first.startswith("bad   the backup of alice failed: It took longer") and second == (
        "      see: lab status"
    )
    status = os.stat(adminnotes.PATH)
    assert status.st_mode & 0o777 == 0o640 and status.st_uid == 0
    assert os.stat(os.path.dirname(adminnotes.PATH)).st_mode & 0o777 == 0o755
    played.slow = set()
    admin("lab", "backup", "alice")
    assert shown() == [] and not os.path.lexists(adminnotes.PATH)


def test_a_failed_drill_is_told_at_login(admin: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_policy: Policy, user: policy.User) -> Record:
        return backup.keep(replace(GOOD, user=user.name, done=time.time(), drill_problem="it differs"))

    monkeypatch.setattr(drill, "drill", fail)
    admin("lab", "drill")
    first, second = shown()
    assert first == "bad   the restore drill of alice failed: it differs"
    assert second == "      and 1 more; see: lab status"


def test_what_is_said_at_login_fits_and_is_for_who_may_read_it(
    admin: Run, backed_up: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [f"the backup of alice failed: {'x' * 300} \x1b[2J", "other"]
    monkeypatch.setattr(adminnotes, "bad", lambda _policy, _now: bad)
    adminnotes.refresh(backed_up)
    for width in (40, 80):
        assert len(shown(width)) == 2 and max(map(len, shown(width))) <= width
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert shown()[1] == "      and 1 more; see: sudo lab status"
    for text in ("", "[]", "{", "[3"):
        Path(adminnotes.PATH).write_text(text)
        assert shown() == []


def test_full_disks_and_damaged_records_are_told_at_login(
    admin: Run, backed_up: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert adminnotes.bad(backed_up, NOW) == []
    monkeypatch.setattr(overview, "full", lambda _policy: ["/home is 97 % full"])
    state.write_record("gpus/reservations.json", "[")
    damage, disk = adminnotes.bad(backed_up, NOW)
    assert "reservations.json is damaged" in damage and disk == "/home is 97 % full"
