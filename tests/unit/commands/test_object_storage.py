# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What object storage decides and says; the real rclone and a server of S3 are in tests/integration."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    objectkeys,
    policy,
    quota,
    rclone,
    transfer,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    HostError,
    InvalidInput,
    LabError,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.objectrules import Endpoint
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy
from ansible_collections.lab.server.plugins.module_utils._core.rclone import Comparison, Listing, Rclone
from conftest import Run

CAMPUS = Endpoint("campus", "https://s3.example.org", "eu-central-1", buckets=("lab-{user}", "g-{group}"))
OPEN = Endpoint("open", "https://open.example.org")
KEY = {"access_key": "AKALICE1", "secret_key": "secret-of-alice/1"}
TOOL = Rclone("campus", "/keys", "/home/alice")


@pytest.fixture
def stored(lab: Policy) -> Policy:
    return replace(lab, object_storage=(CAMPUS, OPEN))


# ---- the policy ------------------------------------------------------------------------------------------


def test_the_endpoints_survive_the_file_and_are_for_everybody(stored: Policy) -> None:
    plain = json.loads(json.dumps(policy.dump(stored)))
    assert policy.parse(plain) == stored
    assert policy.public(stored).object_storage == (CAMPUS, OPEN)
    # The policy of a server that was written before there was object storage.
    del plain["object_storage"]
    assert policy.parse(plain).object_storage == ()


def test_patterns_name_the_buckets_of_a_user(lab: Policy) -> None:
    alice = replace(lab.user("alice"), groups=("vision",))
    assert CAMPUS.buckets_of(alice) == ("lab-alice", "g-students", "g-vision")
    assert OPEN.buckets_of(alice) == ()


# ---- keys ------------------------------------------------------------------------------------------------


def test_the_settings_hold_the_keys_of_one_user(stored: Policy) -> None:
    keys = objectkeys.read({"alice": {"open": KEY}}, stored)
    text = objectkeys.text_of(stored, keys["alice"])
    assert "[open]\n" in text and "[campus]" not in text
    for line in (
        "secret_access_key = secret-of-alice/1",
        "endpoint = https://open.example.org",
        "no_check_bucket = true",
    ):
        assert f"\n{line}\n" in text
    assert KEY["secret_key"] not in repr(keys)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], r"^object_storage_credentials: expected a mapping"),
        ({"mallory": {}}, r"'mallory' is not in lab_users"),
        ({"alice": {"other": KEY}}, r"^object_storage_credentials\.alice: 'other' is not in lab_object_st"),
        ({"alice": {"open": "top-secret"}}, r"\.alice\.open: expected access_key and secret_key"),
        ({"alice": {"open": {**KEY, "more": "x"}}}, r"\.alice\.open: expected access_key and secret_key"),
        ({"alice": {"open": {**KEY, "secret_key": "top-sec"}}}, r"\.secret_key is no key that is supported"),
        ({"alice": {"open": {**KEY, "secret_key": "top-secret\nx"}}}, r"\.secret_key is no key that is supp"),
        ({"alice": {"open": {**KEY, "secret_key": "top-secret%(x)s"}}}, r"\.secret_key is no key that is s"),
        ({"alice": {"open": {**KEY, "access_key": 'top-secret"'}}}, r"\.access_key is no key that is suppo"),
        ({"alice": {"open": {**KEY, "access_key": 12345678}}}, r"\.access_key is no key that is supported"),
    ],
)
def test_a_key_that_cannot_be_is_refused_and_not_shown(stored: Policy, given: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        objectkeys.read(given, stored)
    assert "top-sec" not in str(caught.value)


def test_a_difference_shows_no_key_but_that_there_is_one(stored: Policy) -> None:
    old = objectkeys.text_of(stored, objectkeys.read({"alice": {"open": KEY}}, stored)["alice"])
    other = {**KEY, "secret_key": "another-secret"}
    new = objectkeys.text_of(stored, objectkeys.read({"alice": {"open": other}}, stored)["alice"])
    shown = objectkeys._masked(old, new)
    assert shown["before"] != shown["after"]
    assert not any(
        secret in str(shown) for secret in (KEY["secret_key"], KEY["access_key"], "another-secret")
    )
    first = objectkeys._masked("", new)
    assert first["before"] == "" and "another-secret" not in first["after"]


def test_what_a_user_holds_is_told_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "alice.conf"
    assert objectkeys.held(str(path)) == frozenset()
    path.write_text("[open]\nsecret_access_key = top-secret\n")
    assert objectkeys.held(str(path)) == {"open"}
    with pytest.raises(Refused, match="no key for the object storage campus"):
        objectkeys.check_held(CAMPUS, str(path))
    path.write_text("top-secret\n")
    with pytest.raises(HostError) as caught:
        objectkeys.held(str(path))
    assert "top-secret" not in str(caught.value)


# ---- what is meant ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("campus:lab-alice/a/b/", "campus:lab-alice/a/b"),
        ("campus:g-students", "campus:g-students"),
        ("campus:", "campus:lab-alice/thesis"),
        ("open:any-bucket/x:y", "open:any-bucket/x:y"),
    ],
)
def test_a_place_is_taken_apart(stored: Policy, text: str, root: str) -> None:
    assert transfer.place(stored, stored.user("alice"), text, "thesis").root == root


def test_one_endpoint_needs_no_name(stored: Policy) -> None:
    alone = replace(stored, object_storage=(CAMPUS,))
    alice = stored.user("alice")
    assert transfer.place(alone, alice, "lab-alice/a:b").root == "campus:lab-alice/a:b"
    assert transfer.place(alone, alice, "", "t").root == "campus:lab-alice/t"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("lab-alice/x", InvalidInput, "Say which object storage: campus, open"),
        ("other:lab-alice", NotFound, "'other' is no object storage of this server"),
        ("open,key=x:b", NotFound, "is no object storage"),
        ("campus:lab-bob/x", Refused, "lab-bob is no bucket of yours at campus"),
        ("open:", InvalidInput, "Say which bucket of open"),
        ("open:B/x", InvalidInput, "'B' is no name of a bucket"),
        ("open:-x/x", InvalidInput, "'-x' is no name of a bucket"),
        ("campus:/x", InvalidInput, "'' is no name of a bucket"),
        ("open:bucket/../x", InvalidInput, "is no folder of a bucket"),
        ("open:bucket//x", InvalidInput, "is no folder of a bucket"),
        ("open:bucket/a\nb", InvalidInput, r"'a\\nb' is no folder of a bucket"),
        ("open:bucket/" + "x" * 901, InvalidInput, "is no folder of a bucket"),
    ],
)
def test_a_place_that_cannot_be_is_refused(
    stored: Policy, text: str, kind: type[LabError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        transfer.place(stored, stored.user("alice"), text)


def test_without_object_storage_that_is_said(run: Run, lab: Policy, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    assert run("workspace", "push", "thesis", "x")[0] == 3
    code, out, _err = run("workspace", "storage")
    assert code == 0 and "no object storage" in out


# ---- what is to be done ----------------------------------------------------------------------------------


def test_a_plan_is_made_of_what_both_sides_can_hold() -> None:
    files = {
        "new": 1,
        "changed": 2,
        "same": 4,
        "a\u240ab": 8,
        "no\ufffdtext": 16,
        "late": 32,
        "d/\uff0e/x": 64,
    }
    signs = {"new": "+", "changed": "*", "same": "=", "gone": "-", "a\u240ab": "+", "no\ufffdtext": "+"}
    made = transfer.plan(Listing(files, ("link",)), Comparison({**signs, "d/\uff0e/x": "+"}))
    assert (made.new, made.differing, made.same, made.extra) == (("new",), ("changed",), ("same",), ("gone",))
    assert made.left_out == ("a\u240ab", "d/\uff0e/x", "late", "link", "no\ufffdtext")
    assert made.size == 3 and made.copied == ["changed", "new"]
    assert transfer.plan(Listing(files), Comparison(signs), replace=False).size == 1
    # A name that has the sign itself, which rclone quotes.
    assert transfer.usable("a\u201b\u240ab") and not transfer.usable("a//b")


@pytest.mark.parametrize(
    ("limits", "size", "files", "said"),
    [
        (policy.Quota(0, 1000, 0, 0), 500, 1, ""),
        (policy.Quota(0, 1000, 0, 0), 901, 1, "901 are to come, and your quota leaves room for 900"),
        (policy.Quota(0, 50, 0, 0), 1, 1, "your quota leaves room for 0"),
        (policy.Quota(0, 0, 0, 12), 1, 3, "3 files are to come, and your quota leaves room for 2"),
        (policy.Quota(0, 0, 0, 0), 1 << 60, 1, "the disk has room for"),
    ],
)
def test_room_is_looked_at_before(
    lab: Policy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limits: policy.Quota,
    size: int,
    files: int,
    said: str,
) -> None:
    monkeypatch.setattr(Policy, "workspace", lambda _policy, _user: str(tmp_path))
    monkeypatch.setattr(quota, "usage", lambda _policy, _user: quota.Usage(100, 10, limits))
    if said:
        with pytest.raises(Refused, match=said):
            transfer.check_room(lab, lab.user("alice"), size, files)
    else:
        transfer.check_room(lab, lab.user("alice"), size, files)


# ---- how it comes in -------------------------------------------------------------------------------------


@pytest.fixture
def space(tmp_path: Path) -> Path:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return workspace


def _settled(space: Path, target: Path, *, replace: bool = False) -> list[str]:
    with transfer.staged(str(space), transfer.Place(OPEN, "bucket"), str(target)) as stage:
        for name in ("a", "sub/b", "sub/link/c", "to"):
            path = Path(stage.path) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("theirs")
        assert stage.size() == 24
        kept = transfer.settle(str(space), stage, str(target), replace=replace)
        transfer.put_away(stage)
    assert not (space / transfer.STAGES).exists()
    return kept


def test_what_came_takes_its_place_and_follows_no_link(space: Path, tmp_path: Path) -> None:
    assert _settled(space, space / "new/deep") == []
    assert (space / "new/deep/sub/link/c").read_text() == "theirs"
    outside = tmp_path / "outside"
    outside.mkdir()
    (space / "old/sub").mkdir(parents=True)
    (space / "old/sub/link").symlink_to(outside)
    (space / "old/to").symlink_to(outside / "made")
    (space / "old/a").write_text("mine")
    assert _settled(space, space / "old") == ["a", "sub/link/c", "to"]
    assert (space / "old/a").read_text() == "mine" and (space / "old/sub/b").read_text() == "theirs"
    assert _settled(space, space / "old", replace=True) == ["sub/link/c", "to"]
    assert (space / "old/a").read_text() == "theirs" and list(outside.iterdir()) == []


def test_what_takes_the_place_of_a_file_is_on_the_disk_before(
    space: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    mine = space / "old/a"
    mine.parent.mkdir()
    mine.write_text("mine")
    monkeypatch.setattr(transfer.safefs, "sync_all", lambda _folder: seen.append(mine.read_text()))
    assert _settled(space, mine.parent, replace=True) == [] and mine.read_text() == "theirs"
    assert seen == ["mine"]
    # What replaces nothing can be pulled again.
    _settled(space, mine.parent)
    assert seen == ["mine"]


def test_a_target_that_became_a_link_is_refused(space: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (space / "old").symlink_to(tmp_path / "outside")
    with transfer.staged(str(space), transfer.Place(OPEN, "bucket"), str(space / "old")) as stage:
        (Path(stage.path) / "a").write_text("theirs")
        with pytest.raises(InvalidInput):
            transfer.settle(str(space), stage, str(space / "old"), replace=True)
    assert list((tmp_path / "outside").iterdir()) == []


def test_one_pull_at_a_time(space: Path) -> None:
    place = transfer.Place(OPEN, "bucket")
    with transfer.staged(str(space), place, "x"):
        with pytest.raises(Refused, match="being pulled already"), transfer.staged(str(space), place, "x"):
            pass
        with transfer.staged(str(space), place, "y"):
            pass


# ---- what rclone says ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        ("InvalidAccessKeyId: x\n\tstatus code: 403", Refused, "campus does not accept your key"),
        ("SignatureDoesNotMatch: x\n\tstatus code: 403", Refused, "campus does not accept your key"),
        ("NoSuchBucket: x\n\tstatus code: 404", NotFound, "no such bucket"),
        ("Forbidden: Forbidden\n\tstatus code: 403", Refused, "does not let your key do that"),
        ("dial tcp 192.0.2.1:443: connect: connection refused", HostError, "cannot be reached now"),
        ("dial tcp: lookup s3.example.org: no such host", HostError, "cannot be reached now"),
        ("x509: certificate signed by unknown authority", HostError, "does not trust the certificate"),
        ("write /x: disk quota exceeded", HostError, "Your disk quota is used up"),
        ("write /x: no space left on device", HostError, "The disk of this server is full"),
        ("QuotaExceeded: x\n\tstatus code: 403", Refused, "campus has no room left for you"),
        ("open /x: permission denied", HostError, "a.txt cannot be read or written: permission denied"),
        ("RequestTimeTooSkewed: x\n\tstatus code: 403", HostError, "The clocks"),
        ("something\x1b[2J new\nrequest id: 1", HostError, r"rclone failed: something\\x1b\[2J new Show"),
    ],
)
def test_every_failure_is_a_sentence(words: str, kind: type[LabError], said: str) -> None:
    error = TOOL._explained([("a.txt", words)])
    assert isinstance(error, kind)
    with pytest.raises(kind, match=said):
        raise error


def test_what_rclone_says_is_taken_in() -> None:
    figures: list[Any] = []
    lines = [
        json.dumps({"level": "warning", "msg": "x", "stats": {"bytes": 7}}),
        json.dumps(
            {"level": "warning", "msg": "Can't follow symlink without -L/--copy-links", "object": "l"}
        ),
        json.dumps({"level": "warning", "msg": "3 hashes could not be checked"}),
        json.dumps({"level": "error", "msg": "AccessDenied: no", "object": "a"}),
        "2026/11/26 14:32:24 Failed to copy: Forbidden: Forbidden\n",
        "\tstatus code: 403, request id: x\n",
    ]
    said = rclone._read(lines, figures.append)
    assert figures == [{"bytes": 7}] and said.skipped == ["l"] and said.unchecked == 3
    assert said.errors == [
        ("a", "AccessDenied: no"),
        ("", "Failed to copy: Forbidden: Forbidden\n\tstatus code: 403, request id: x"),
    ]


def test_no_key_and_nothing_of_the_caller_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_CA_BUNDLE", "RCLONE_CONFIG", "RCLONE_LOG_FILE", "LD_PRELOAD"):
        monkeypatch.setenv(name, "x")
    for name in [one for one in os.environ if one.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    assert TOOL._environment() == {
        "HOME": "/home/alice",
        "LC_ALL": "C.UTF-8",
        "PATH": "/usr/bin:/bin",
        "RCLONE_CONFIG": "/keys",
        "https_proxy": "http://proxy.example.org:3128",
    }


def test_a_missing_rclone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rclone, "PROGRAM", "/nonexistent/rclone")
    with pytest.raises(HostError, match="rclone cannot be run: No such file"):
        TOOL.listing("/")
