# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The acceptance suite: what its checks conclude from facts, and how its results are told."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    accounts,
    capacity,
    checks_docker,
    checks_host,
    hostfiles,
    inspection,
    mounts,
    names,
    privatetmp,
    quota,
    scratch,
    slices,
    state,
    storage,
    verify,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    EngineError,
    HostError,
    InvalidInput,
)
from ansible_collections.lab.server.plugins.module_utils._core.inspection import Check, Outcome, Server
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, Quota, from_inventory
from ansible_collections.lab.server.plugins.module_utils._core.quota import Usage

LIMITS = {"containers": 3, "cpus": 1.5, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
QUOTA = {"soft": 0, "hard": "1g", "inodes_soft": 0, "inodes_hard": 0}
GIB = 1 << 30


@pytest.fixture
def policy() -> Policy:
    made, _keys = from_inventory(
        {
            "lab_filesystems": {
                "home": {"device": "/dev/disk/by-id/home", "create": True},
                "data": {"device": "UUID=1234", "fstype": "xfs"},
            },
            "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [
                {"name": "alice", "uid": 2001, "group": "students"},
                {"name": "bob", "uid": 2002, "group": "students"},
            ],
            "lab_base_images": [{"name": "lab/python", "archive": "/x.tar"}],
        }
    )
    return made


@pytest.fixture
def server(policy: Policy) -> Server:
    return Server(policy)


def check(name: str, server: Server) -> Outcome:
    (found,) = verify.chosen([name])
    return verify._outcome(server, found)


# ---- the runner ------------------------------------------------------------------------------------------


def test_each_check_has_a_short_name_of_its_own() -> None:
    known = [one.name for one in verify.CHECKS]
    assert len(known) == len(set(known)) and all(len(name) <= 13 for name in known)


def test_a_quick_run_leaves_out_what_is_slow_and_a_named_check_is_made_anyway() -> None:
    quick = {one.name for one in verify.chosen(quick=True)}
    assert {one.name for one in verify.CHECKS} - quick == {"quota-write", "commands"}
    assert [one.name for one in verify.chosen(["commands"], quick=True)] == ["commands"]
    with pytest.raises(InvalidInput, match="sudo"):
        verify.chosen(["nonsense"])


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (HostError("No.", "Do."), "No."),
        (FileNotFoundError(2, "No such file", "/x"), "/x: No such file"),
        (ValueError("odd\x1b"), r"ValueError: odd\x1b"),
    ],
)
def test_what_cannot_be_looked_at_has_failed(server: Server, error: Exception, word: str) -> None:
    def broken(_server: Server) -> Outcome:
        raise error

    (result,) = verify.run(server, [Check("x", "it is so", broken)])
    assert result.outcome.verdict == "fail" and word in result.outcome.detail


def test_without_docker_its_checks_are_skipped_and_one_fails(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any) -> None:
        raise EngineError("Docker Engine does not answer.")

    monkeypatch.setattr(inspection.Engine, "connect", refuse)
    verdicts = {one.check: one.outcome.verdict for one in verify.run(server, checks_docker.CHECKS)}
    assert verdicts.pop("docker") == "fail"
    assert set(verdicts.values()) == {"skip"}


def test_junit_tells_every_verdict() -> None:
    results = [
        verify.Result(name, "it is so", Outcome(verdict, "seen <&> \x1b", "Do."), 0.5)
        for name, verdict in (("a", "pass"), ("b", "warn"), ("c", "fail"), ("d", "skip"))
    ]
    text = verify.junit(results, host="srv1", now=0)
    (suite,) = ElementTree.fromstring(text.split("\n", 1)[1])
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "1")
    assert (suite.get("time"), suite.get("timestamp")) == ("2.000", "1970-01-01T00:00:00")
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert {case.get("classname") for case in cases.values()} == {"srv1.verify"}
    assert [child.tag for case in cases.values() for child in case] == [
        "system-out",
        "system-out",
        "failure",
        "skipped",
    ]
    failure = cases["c"].find("failure")
    assert failure is not None and failure.get("message") == "seen <&> \\x1b"
    assert "it is so" in str(failure.text) and "Do." in str(failure.text)
    assert "warning" in str(cases["b"].findtext("system-out"))
    assert not verify.passed(results) and verify.passed(results[:2])


def test_many_problems_are_counted_not_listed() -> None:
    outcome = inspection.judged([f"p{number}" for number in range(8)], "good")
    assert outcome.verdict == "fail" and outcome.detail.endswith("p4; and 3 more")


# ---- disks and quotas ------------------------------------------------------------------------------------

MOUNTS = """\
1 0 8:1 / / rw,relatime - ext4 /dev/sda1 rw
2 1 8:16 / /home rw,nosuid,nodev,relatime - ext4 /dev/sdb rw
3 1 8:32 / /srv/data rw,nosuid,nodev,relatime - xfs /dev/sdc rw
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MOUNTS, ""),
        (MOUNTS.replace("/home rw,nosuid,nodev", "/home rw,nodev"), "/home is mounted without nosuid"),
        (
            MOUNTS.replace("/srv/data rw,nosuid,nodev", "/srv/data rw,nosuid"),
            "/srv/data is mounted without nodev",
        ),
        (MOUNTS.rsplit("3 1", 1)[0], "/srv/data is not mounted"),
        (MOUNTS.replace("8:16", "8:99"), "/home is mounted from /dev/sdb, not /dev/disk/by-id/home"),
    ],
)
def test_mounts(server: Server, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.setattr(mounts, "read", lambda: mounts.parse(text))
    devices = {"/dev/disk/by-id/home": "8:16", "UUID=1234": "8:32"}
    monkeypatch.setattr(mounts, "device_number", devices.get)
    outcome = check("mounts", server)
    assert (outcome.verdict, outcome.detail) == (
        ("fail", words) if words else ("pass", "/home, /srv/data; nosuid,nodev where users write")
    )


def test_fstab_must_bring_them_back_the_same_way(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "fstab"
    monkeypatch.setattr(storage, "FSTAB", str(table))
    lines = [storage.fstab_line(one, "") for one in server.policy.filesystems]
    table.write_text("\n".join(lines) + "\n")
    assert check("fstab", server).verdict == "pass"
    table.write_text("\n".join(lines).replace("nosuid,nodev", "nodev", 1) + "\n")
    assert check("fstab", server).detail == "the line of /home lacks nosuid"
    table.write_text(lines[0] + "\n")
    assert "0 lines for /srv/data" in check("fstab", server).detail


def test_quotas_in_the_kernel_are_compared_with_the_policy(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {2001: Quota(0, GIB, 0, 0), 2002: Quota(0, GIB, 0, 0)}
    monkeypatch.setattr(mounts, "read", lambda: mounts.parse(MOUNTS))
    monkeypatch.setattr(
        quota, "enforced", lambda device: frozenset({quota.USER} if device == "/dev/sdb" else ())
    )
    monkeypatch.setattr(quota, "read", lambda _device, _kind, uid: Usage(0, 0, there[uid]))
    assert (check("quota-on", server).verdict, check("quota-limits", server).verdict) == ("pass", "pass")
    there[2002] = Quota(0, 0, 0, 0)
    assert check("quota-limits", server).detail == "bob has hard no limit, not 1G"
    monkeypatch.setattr(quota, "enforced", lambda _device: frozenset())
    assert check("quota-on", server).verdict == "fail"
    # One cause, one failure.
    assert (check("quota-limits", server).verdict, check("quota-write", server).verdict) == ("skip", "skip")


@pytest.mark.parametrize(
    ("size", "verdict", "word"),
    [
        (3 * GIB, "pass", "/home: 2G promised of 3G (0.67 times)"),
        (GIB + GIB // 4, "warn", "(1.6 times)"),
        (GIB // 2, "fail", "to alice, bob on /home (512M)"),
        (0, "pass", "the size of no disk is known"),
    ],
)
def test_overcommit(policy: Policy, size: int, verdict: str, word: str) -> None:
    outcome = checks_host.overcommit(surveyed(policy, home=size))
    assert outcome.verdict == verdict and word in outcome.detail


def surveyed(policy: Policy, **sizes: int) -> tuple[capacity.Capacity, ...]:
    there = [
        {"role": role, "mount": f"/{role}", "size": size, "free": size, "available": size}
        for role, size in sizes.items()
    ]
    return capacity.survey(policy, there)


def test_as_much_as_it_said_may_be_promised(policy: Policy) -> None:
    twice = replace(policy, disks=replace(policy.disks, overcommit=2.0))
    assert checks_host.overcommit(surveyed(twice, home=GIB + GIB // 4)).verdict == "pass"


def test_a_user_without_a_limit_is_told(policy: Policy) -> None:
    bob = replace(policy.users[1], quota=quota.NO_LIMIT)
    outcome = checks_host.overcommit(surveyed(replace(policy, users=(policy.users[0], bob)), home=3 * GIB))
    assert outcome.verdict == "warn" and "no limit for bob" in outcome.detail


def test_what_is_promised_of_the_other_disks_counts_as_well(policy: Policy) -> None:
    layered = tuple(
        replace(user, limits=replace(user.limits, layers_size=2 * GIB, images_size=GIB))
        for user in policy.users
    )
    sized = replace(policy, users=layered)
    assert checks_host.overcommit(surveyed(sized, home=3 * GIB, docker=6 * GIB)).verdict == "pass"
    outcome = checks_host.overcommit(surveyed(sized, home=3 * GIB, docker=3 * GIB))
    assert outcome.verdict == "warn" and "/docker: 6G promised of 3G (2 times)" in outcome.detail
    outcome = checks_host.overcommit(surveyed(sized, home=3 * GIB, docker=GIB))
    assert outcome.verdict == "fail" and "layers of alice, layers of bob on /docker (1G)" in outcome.detail
    # Without limits on Docker's disk its watermarks stop everybody: nothing to warn of.
    outcome = checks_host.overcommit(surveyed(policy, home=3 * GIB, docker=GIB))
    assert outcome.verdict == "pass" and "no limit for layers of alice" in outcome.detail


@pytest.mark.parametrize(
    ("used", "verdict", "word"), [(0.5, "pass", "room"), (0.8, "warn", "80 %"), (0.95, "fail", "95 %")]
)
def test_space(server: Server, monkeypatch: pytest.MonkeyPatch, used: float, verdict: str, word: str) -> None:
    monkeypatch.setattr(mounts, "read", lambda: mounts.parse(MOUNTS))
    monkeypatch.setattr(checks_host, "fullness", lambda point: (used if point == "/home" else 0.1, 0.1))
    outcome = check("space", server)
    assert outcome.verdict == verdict and word in outcome.detail
    # What is named is there: lab status tells it (test_lab.py).
    assert (outcome.fix == "") == (verdict == "pass") and ("lab status" in outcome.fix) == (verdict != "pass")


def test_fullness_is_that_of_df(tmp_path: Path) -> None:
    space, inodes = checks_host.fullness(str(tmp_path))
    assert 0 <= space <= 1 and 0 <= inodes <= 1
    shown = hostfiles.run(["df", "--output=pcent", str(tmp_path)]).stdout.split()[-1]
    assert abs(space * 100 - float(shown.rstrip("%"))) <= 1


@pytest.mark.skipif(os.geteuid() != 0, reason="a process that becomes another user needs root")
@pytest.mark.parametrize("limit", [1 << 20, 64 << 20])
def test_a_write_beyond_a_quota_as_somebody_who_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: int
) -> None:
    # The kernel of a test computer has no quotas: the limit on a file's size stands for it.
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(quota, "read", lambda *_arguments: Usage(0, 0, quota.NO_LIMIT))
    monkeypatch.setattr(quota, "write", lambda _device, _kind, uid, to: given.append((uid, to.hard)))
    monkeypatch.setattr(scratch.locks, "RUN_DIRECTORY", str(tmp_path / "run"))
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o111)
    real = os.write
    left = [limit]

    def limited(descriptor: int, data: bytes) -> int:
        if data[:1] == b"\1":
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(122, "Disk quota exceeded")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", limited)
    (tmp_path / ".lab-verify").mkdir()
    (tmp_path / ".lab-verify" / "old").write_text("left by one that was killed")
    written = scratch.write_beyond("/dev/x", {64900}, root=str(tmp_path))
    assert written.stopped is (limit < written.asked)
    assert given == [(64901, 1 << 20), (64901, 0)]
    assert not (tmp_path / ".lab-verify").exists()


# ---- accounts and limits ---------------------------------------------------------------------------------


def as_declared(policy: Policy) -> accounts.Actual:
    """Return a host that is as the policy wants it."""
    users = {
        one.name: accounts.Account(one.name, one.uid, one.gid, home=one.home, shell=accounts.SHELL)
        for one in policy.users
    }
    groups = {
        "lab": accounts.UnixGroup("lab", 3000, ("alice", "bob")),
        "students": accounts.UnixGroup("students", 3101, ("alice", "bob")),
        "docker": accounts.UnixGroup("docker", 110),
        **{one.name: accounts.UnixGroup(one.name, one.gid) for one in policy.users},
    }
    texts = dict([slices.root_unit()])
    for user in policy.users:
        texts.update(checks_host.unit_texts(user))
    return accounts.Actual(users=users, groups=groups, units=texts, known=frozenset({2001, 2002}))


@pytest.fixture
def declared(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    monkeypatch.setattr(slices, "CGROUPS", str(tmp_path))
    monkeypatch.setattr(checks_host, "_MAPPERS", (str(tmp_path / "newuidmap"),))
    monkeypatch.setattr(checks_host, "_SOCKET", str(tmp_path / "docker.sock"))
    monkeypatch.setattr(
        hostfiles, "run", lambda *_words, **_more: type("Done", (), {"stdout": "", "returncode": 0})()
    )
    server.__dict__["accounts"] = as_declared(server.policy)
    return server


def test_each_check_is_on_the_page_for_admins() -> None:
    page = (Path(__file__).parents[2] / "docs/admin.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    listed = [line.split("`")[1] for line in rows]
    assert [one.name for one in verify.CHECKS] == [
        name for name in listed if name in {one.name for one in verify.CHECKS}
    ]


def test_temporary_files_in_common_are_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = "session [success=1 default=ignore] pam_succeed_if.so quiet user notingroup lab\n"
    wanted = {
        **privatetmp.files(),
        **dict.fromkeys(privatetmp.STACKS, f"{stack}session optional pam_namespace.so\n"),
    }
    monkeypatch.setattr(privatetmp, "can_be", lambda: True)
    monkeypatch.setattr(privatetmp, "_is_right", lambda _path: True)
    monkeypatch.setattr(hostfiles, "read_text", wanted.get)
    assert check("tmp", server).verdict == "pass"
    for path in list(wanted):
        kept = wanted.pop(path)
        outcome = check("tmp", server)
        assert outcome.verdict == "fail" and path in outcome.detail
        wanted[path] = kept
    # What comes between the two lines would be what is left out.
    wanted[privatetmp.STACKS[0]] = (
        f"{stack}session optional pam_umask.so\nsession optional pam_namespace.so\n"
    )
    assert check("tmp", server).verdict == "fail"
    monkeypatch.setattr(privatetmp, "can_be", lambda: False)
    assert check("tmp", server).verdict == "skip"
    server.policy = replace(server.policy, disks=replace(server.policy.disks, private_tmp=False))
    assert check("tmp", server).verdict == "pass"


ACCOUNT_CHECKS = ("accounts", "subids", "docker-group", "slices")


def test_a_socket_of_docker_that_others_reach_is_told(declared: Server, tmp_path: Path) -> None:
    assert check("docker-group", declared).verdict == "pass"
    (tmp_path / "docker.sock").touch()
    (tmp_path / "docker.sock").chmod(0o666)
    assert check("docker-group", declared).detail.startswith("others than root can reach")


def failing(server: Server) -> dict[str, str]:
    outcomes = {name: check(name, server) for name in ACCOUNT_CHECKS}
    return {name: outcome.detail for name, outcome in outcomes.items() if outcome.verdict == "fail"}


def test_accounts_as_declared_pass(declared: Server) -> None:
    assert failing(declared) == {}


def test_each_fault_of_an_account_fails_one_check(declared: Server) -> None:
    there = declared.accounts
    docker = accounts.UnixGroup("docker", 110, ("bob",))
    shell = replace(there.users["alice"], shell="/bin/zsh")
    eve = accounts.Account("eve", 2009, 2009, home="/home/eve")
    for change, name, word in (
        ({"groups": {**there.groups, "docker": docker}}, "docker-group", "bob is in the group docker"),
        ({"subordinate": frozenset({"alice"})}, "subids", "alice has subordinate ids"),
        ({"users": {**there.users, "alice": shell}}, "accounts", "shell"),
        (
            {"users": {**there.users, "eve": eve}, "known": frozenset({2001, 2002, 2009})},
            "accounts",
            "close the account eve",
        ),
        ({"units": {**there.units, "lab-2001.slice": "[Slice]\n"}}, "slices", "lab-2001.slice"),
    ):
        declared.__dict__["accounts"] = replace(there, **change)
        found = failing(declared)
        assert list(found) == [name] and word in found[name]
    # What runs is looked at by the check of the slices alone.
    declared.__dict__["accounts"] = replace(there, stale={"lab-2001.slice": ("memory",)})
    assert failing(declared) == {}


def test_a_slice_that_runs_holds_its_limits(declared: Server, tmp_path: Path) -> None:
    folder = tmp_path / "lab.slice" / names.slice_name(2001)
    folder.mkdir(parents=True)
    for name, text in (
        ("memory.max", f"{64 << 20}\n"),
        ("memory.swap.max", "0\n"),
        ("pids.max", "64\n"),
        ("cpu.max", "150000 100000\n"),
    ):
        (folder / name).write_text(text)
    assert failing(declared) == {}
    assert "1 slices run" in check("slices", declared).detail
    for name, text, word in (
        ("memory.max", "max", "memory"),
        ("memory.swap.max", "max", "swap"),
        ("pids.max", "max", "processes"),
        ("cpu.max", "max 100000", "cores"),
        ("cpu.max", "200000 100000", "cores"),
    ):
        before = (folder / name).read_text()
        (folder / name).write_text(text + "\n")
        assert failing(declared) == {"slices": f"lab-2001.slice of alice does not hold its limit of {word}"}
        (folder / name).write_text(before)


@pytest.mark.parametrize(
    ("path", "mode", "fine"),
    [("a", 0o755, True), ("a", 0o775, False), ("", 0o777, False), ("gone", 0, False)],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what is root's")
def test_what_is_roots_is_so_up_to_the_root(tmp_path: Path, path: str, mode: int, fine: bool) -> None:
    made = Path("/var/lib") / f"lab-server-test-{os.getpid()}"
    made.mkdir()
    try:
        (made / "a").mkdir()
        if mode:
            (made / path).chmod(mode)
        assert checks_host._is_roots(str(made / ("gone" if path == "gone" else "a"))) is fine
    finally:
        (made / "a").rmdir()
        made.rmdir()


TOLD = """Matching Defaults entries for alice on srv:
    env_reset, mail_badpass

User alice may run the following commands on srv:
    (root) NOPASSWD: /usr/local/sbin/lab-broker
"""


@pytest.mark.parametrize(
    ("told", "word"),
    [
        (TOLD, ""),
        (TOLD + "    (ALL : ALL) ALL\n", "alice may run (ALL : ALL) ALL"),
        ("User alice is not allowed to run sudo on srv.\n", "alice cannot reach the broker"),
        (TOLD.replace("lab-broker", "lab-broker *"), "alice may run (root)"),
    ],
)
def test_sudo(server: Server, monkeypatch: pytest.MonkeyPatch, told: str, word: str) -> None:
    monkeypatch.setattr(checks_host, "_is_roots", lambda _path: True)
    monkeypatch.setattr(hostfiles, "run", lambda *_words, **_more: type("Done", (), {"stdout": told})())
    outcome = check("sudo", server)
    assert (outcome.verdict == "fail") is bool(word) and word in outcome.detail


# ---- the network -----------------------------------------------------------------------------------------

INSIDE = """\
-N LAB-SERVER
-A LAB-SERVER -d 169.254.0.0/16 -p udp -m udp --dport 53 -j RETURN
-A LAB-SERVER -d 169.254.0.0/16 -j REJECT --reject-with icmp-port-unreachable
-A LAB-SERVER ! -i lab0 -o lab0 -m conntrack --ctstate NEW -j DROP
"""
OUTSIDE = """\
-N LAB-SERVER-OUT
-A LAB-SERVER-OUT -d 169.254.0.0/16 -p tcp -m tcp --dport 53 -j RETURN
-A LAB-SERVER-OUT -d 169.254.0.0/16 -m owner --uid-owner 1000-59999 -j REJECT
"""
RULES = {
    "DOCKER-USER": "-N DOCKER-USER\n-A DOCKER-USER -j LAB-SERVER\n-A DOCKER-USER -j RETURN\n",
    "OUTPUT": "-P OUTPUT ACCEPT\n-A OUTPUT -j LAB-SERVER-OUT\n",
    "LAB-SERVER": INSIDE,
    "LAB-SERVER-OUT": OUTSIDE,
}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, ""),
        ({"DOCKER-USER": "-A DOCKER-USER -j RETURN\n-A DOCKER-USER -j LAB-SERVER\n"}, "containers reach"),
        ({"DOCKER-USER": ""}, "containers reach"),
        (
            {"LAB-SERVER": INSIDE.replace("169.254.0.0/16 -j REJECT", "10.0.0.0/8 -j REJECT")},
            "containers reach",
        ),
        ({"LAB-SERVER": INSIDE.replace("-N LAB-SERVER\n", "-A LAB-SERVER -j RETURN\n")}, "containers reach"),
        ({"OUTPUT": "-P OUTPUT ACCEPT\n"}, "users on the host reach"),
        ({"LAB-SERVER-OUT": OUTSIDE.replace("1000-59999", "1000-2001")}, "users on the host reach"),
        ({"LAB-SERVER": INSIDE.rsplit("-A", 1)[0]}, "others than the server itself"),
    ],
)
def test_firewall(
    server: Server, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], word: str
) -> None:
    rules = {**RULES, **changes}
    monkeypatch.setattr(
        hostfiles, "run", lambda words, **_more: type("Done", (), {"stdout": rules[words[-1]]})()
    )
    outcome = check("firewall", server)
    assert (outcome.verdict == "fail") is bool(word) and word in outcome.detail


# ---- units -----------------------------------------------------------------------------------------------

ACTIVE = {"ActiveState": "active", "UnitFileState": "enabled"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, ""),
        (
            {"lab-server-cleanup.timer": {"ActiveState": "inactive", "UnitFileState": "enabled"}},
            "is not active",
        ),
        ({"lab-server-cleanup.timer": {"ActiveState": "active", "UnitFileState": "disabled"}}, "next boot"),
        ({"lab-server-cleanup.service": {"ActiveState": "failed", "UnitFileState": "static"}}, "failed"),
        ({"lab-server-cleanup.service": {"ActiveState": "inactive", "UnitFileState": "static"}}, ""),
        ({"lab-server-x.timer": {"ActiveState": "inactive", "UnitFileState": "disabled"}}, ""),
        (
            {"lab-server-x.timer": {"ActiveState": "inactive", "UnitFileState": "enabled"}},
            "x.timer is not active",
        ),
        ({"docker.service": {"ActiveState": "inactive", "UnitFileState": "enabled"}}, "docker.service"),
    ],
)
def test_units(change: dict[str, dict[str, str]], word: str) -> None:
    states = {**dict.fromkeys(checks_host.UNITS, ACTIVE), **change}
    outcome = checks_host.judged_units(states, checks_host.UNITS)
    assert (outcome.verdict == "fail") is bool(word) and word in outcome.detail


# ---- docker ----------------------------------------------------------------------------------------------

SETTINGS = (
    '{"live-restore": true, "icc": false, "data-root": "/var/lib/docker", "log-opts": {"max-size": "10m"}}'
)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (SETTINGS, ""),
        (None, "live-restore"),
        (SETTINGS.replace("true", "false"), "live-restore is False"),
        (SETTINGS.replace('"icc": false', '"icc": true'), "icc is True"),
        (SETTINGS.replace("/var/lib/docker", "/x"), "data-root is '/x'"),
        (SETTINGS.replace("max-size", "max-file"), "not bounded"),
        (SETTINGS.replace("{", '{"log-driver": "journald", ', 1).replace("max-size", "tag"), ""),
        (SETTINGS.replace("{", '{"hosts": ["tcp://0.0.0.0"], ', 1), "opens Docker"),
    ],
)
def test_the_settings_of_docker(policy: Policy, text: str | None, word: str) -> None:
    found = checks_docker.settings(text, policy)
    assert bool(found) is bool(word) and (not word or word in found[0])


INFO = {
    "LiveRestoreEnabled": True,
    "DockerRootDir": "/var/lib/docker",
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default", "name=cgroupns"],
    "CgroupVersion": "2",
}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, ""),
        ({"LiveRestoreEnabled": False}, "live-restore"),
        ({"DockerRootDir": "/x"}, "/x"),
        ({"SecurityOptions": ["name=apparmor"]}, "seccomp"),
        ({"SecurityOptions": ["name=apparmor", "name=seccomp,profile=unconfined"]}, "seccomp"),
        ({"SecurityOptions": ["name=seccomp,profile=builtin"]}, "AppArmor"),
        ({"CgroupVersion": "1"}, "version 2"),
    ],
)
def test_the_running_engine(policy: Policy, change: dict[str, Any], word: str) -> None:
    found = checks_docker.live_settings({**INFO, **change}, policy, apparmor=True)
    assert len(found) == bool(word) and (not word or word in found[0])


def test_the_network_of_the_containers() -> None:
    options = {
        "com.docker.network.bridge.enable_icc": "false",
        "com.docker.network.bridge.name": "lab0",
    }
    assert checks_docker.network_problems({"Driver": "bridge", "Options": options}) == []
    assert len(checks_docker.network_problems({"Driver": "macvlan", "Options": {}})) == 3


def image(
    tags: list[str], owner: str = "2001", project: str = "thesis", digest: str = "a" * 64
) -> dict[str, Any]:
    labels = {
        "lab.server.owner": owner,
        "lab.server.project": project,
        "lab.server.fingerprint": digest,
    }
    return {"Id": "x", "Labels": labels, "RepoTags": tags}


A, B = "a" * 12, "b" * 12


@pytest.mark.parametrize(
    ("listed", "word"),
    [
        ([image(["lab/2001/thesis:latest", f"lab/2001/thesis:{A}"])], ""),
        ([{"Id": "y", "Labels": None, "RepoTags": ["lab/python:latest", "debian:12"]}], ""),
        ([{"Id": "y", "Labels": None, "RepoTags": None}], ""),
        ([{"Id": "y", "Labels": {}, "RepoTags": ["lab/2001/thesis:latest"]}], "is not of that project"),
        ([image(["lab/2002/thesis:latest"])], "is not of that project"),
        ([image(["lab/2001/thesis:latest", f"lab/2001/thesis:{B}"])], "another fingerprint"),
        ([image([f"lab/2001/thesis:{A}"])], "no current image"),
    ],
)
def test_the_names_of_images(listed: list[dict[str, Any]], word: str) -> None:
    found = checks_docker.image_problems(listed)
    assert len(found) == bool(word) and (not word or word in found[0])


def test_who_removed_all_images_but_one_that_is_in_use_has_no_current_one_and_no_problem() -> None:
    listed = [image([f"lab/2001/thesis:{A}"])]
    assert checks_docker.image_problems(listed, {listed[0]["Id"]}) == []
    assert len(checks_docker.image_problems(listed, {"another"})) == 1


def test_a_folder_has_one_identity_however_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    status = (tmp_path / "real").stat()
    found = checks_docker._identity(str(tmp_path / "real"))
    assert found == (status.st_dev, status.st_ino)
    assert checks_docker._identity(str(tmp_path / "real"), os.getpid()) == found
    # A link is nobody's to follow: in a container it would be the image author's.
    assert checks_docker._identity(str(tmp_path / "link")) is None
    assert checks_docker._identity(str(tmp_path / "none")) is None


@pytest.mark.parametrize(
    "name", ["gpus/reservations.json", "lifecycle.json", "former-uids.json", "kept-folders.json"]
)
def test_a_record_that_nothing_makes_good_is_told_when_it_is_damaged(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(state, "STATE_DIRECTORY", str(tmp_path))
    assert check("records", server).verdict == "pass"
    state.write_record(name, '[{"cut')
    outcome = check("records", server)
    assert outcome.verdict == "fail" and f"{name} is damaged" in outcome.detail
