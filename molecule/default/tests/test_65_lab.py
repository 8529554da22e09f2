"""What an admin sees of the server; lab verify tells a sound one from a changed one (D1, D3, D5, E8)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import CAROL, PlayOutcome, Server

#: (the check that fails, what is changed, how it is put back, what is said)
SABOTAGES = [
    (
        "mounts",
        "mount -o remount,suid /srv/data",
        "mount -o remount,nosuid,nodev /srv/data",
        "without nosuid",
    ),
    ("docker-group", "gpasswd -a bob docker", "gpasswd -d bob docker", "bob is in the group docker"),
    (
        "sudo",
        "echo 'alice ALL=(root) NOPASSWD: /usr/bin/id' > /etc/sudoers.d/zz-test",
        "rm /etc/sudoers.d/zz-test",
        "alice may run (root) NOPASSWD: /usr/bin/id",
    ),
    (
        "slices",
        f"cd /sys/fs/cgroup/lab.slice/lab-{CAROL}.slice; old=$(cat memory.max); echo max > memory.max",
        "echo $old > memory.max",
        "carol does not hold its limit of memory",
    ),
    ("shares", "chmod 2777 /srv/data/vision", "chmod 2770 /srv/data/vision", "vision: set mode 2770"),
    (
        "firewall",
        "iptables -w -D DOCKER-USER -j LAB-SERVER",
        "iptables -w -I DOCKER-USER -j LAB-SERVER",
        "containers reach the metadata service",
    ),
    (
        "units",
        "systemctl stop lab-server-cleanup.timer",
        "systemctl start lab-server-cleanup.timer",
        "lab-server-cleanup.timer is not active",
    ),
    (
        "options",
        f"old=$(docker inspect -f '{{{{.HostConfig.PidsLimit}}}}' vision._.{CAROL}); "
        f"docker update --pids-limit -1 vision._.{CAROL}",
        f"docker update --pids-limit $old vision._.{CAROL}",
        "its processes are not limited",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def running(server: Server) -> None:
    """Let a container of carol run, whatever the tests before did to it."""
    server.user("carol", "project launch vision --detach")


def failed(answer: str) -> dict[str, str]:
    """Return what the failed checks of an answer in JSON say, by their names."""
    checks: list[dict[str, Any]] = json.loads(answer)["checks"]
    return {check["check"]: check["detail"] for check in checks if check["verdict"] == "fail"}


def test_a_provisioned_server_keeps_its_promises(
    server: Server, play: Callable[..., PlayOutcome], tmp_path: Path
) -> None:
    done = play("-e", f"verify_reports={tmp_path}", playbook="lab.server.verify")
    (report,) = tmp_path.glob("*.xml")
    (suite,) = ElementTree.fromstring(report.read_text().split("\n", 1)[1])
    failures = [failure.text for failure in suite.iter("failure")]
    assert (done.rc, failures) == (0, []), done.text[-2000:]
    # All were made: without Docker or quotas they would have been skipped. Nobody may have GPUs here.
    skipped = [case.get("name") for case in suite.iter("testcase") if case.find("skipped") is not None]
    assert skipped == ["gpus"] and int(suite.get("tests", "0")) >= 28
    texts = {str(case.get("name")): case.findtext("system-out", "") for case in suite.iter("testcase")}
    assert "ended at 1M" in texts["quota-write"]
    assert "/srv/data (device" in texts["data"] and "0 containers" not in texts["data"]
    # What it made for that is gone.
    assert (
        server.root("ls -A /home | grep -c verify; repquota -un /home | grep -c '^#649'", check=False).out
        == "0\n0"
    )


@pytest.mark.parametrize(
    ("check", "change", "back", "words"),
    [
        pytest.param(*one, id=one[0], marks=[] if one[0] in ("mounts", "sudo") else pytest.mark.thorough)
        for one in SABOTAGES
    ],
)
def test_what_was_changed_by_hand_fails_one_check(
    server: Server, check: str, change: str, back: str, words: str
) -> None:
    told = server.root(
        f"{{ {change}; }} >&2; lab verify --quick --json; rc=$?; {{ {back}; }} >&2; exit $rc", check=False
    )
    assert told.rc == 1, told.text
    found = failed(told.out)
    assert list(found) == [check] and words in found[check], found


def test_an_admin_sees_the_server_its_users_and_what_was_done(server: Server) -> None:
    status = server.root("lab status").out
    assert max(map(len, status.splitlines())) <= 80
    for words in ("/srv/data", "vision", "cleanup active", "promised of"):
        assert words in status
    page = server.root("lab status --html -").out
    assert ">carol/vision<" in page and "<script" not in page
    place = "/root/lab.html"
    kept = server.root(f"lab status --html {place} && stat -c %a:%U {place}; rm {place}").out
    assert kept.strip() == "600:root"
    users = json.loads(server.root("lab users --json").out)["users"]
    carol = next(user for user in users if user["name"] == "carol")
    assert f"vision._.{CAROL}" in carol["running"] and carol["usage"]["used"] > 0 and carol["images"]
    events = json.loads(server.root("lab events --user carol --project vision --json").out)["events"]
    assert events[-1]["verb"] == "project-launch" and events[-1]["outcome"] == "done"


def test_a_user_gets_one_sentence(server: Server) -> None:
    refused = server.user("alice", "lab verify", check=False)
    assert refused.rc == 3 and "admins" in refused.err and refused.out == ""


@pytest.mark.thorough
def test_metrics_are_written_where_node_exporter_reads_them(
    server: Server, play: Callable[..., PlayOutcome]
) -> None:
    folder = "/var/lib/prometheus/node-exporter"
    server.root(f"mkdir -p {folder}")
    arguments = ("--tags", "metrics", "-e", f"metrics_directory={folder}")
    try:
        done = play(*arguments)
        assert done.rc == 0, done.text[-3000:]
        server.root(f"systemctl start lab-server-metrics.service && test -s {folder}/lab.prom")
        text = server.root(f"cat {folder}/lab.prom").out
        assert 'lab_server_user_limit_bytes{user="bob"} 262144000' in text
        assert "lab_server_docker_up 1" in text
        mode = server.root(f"stat -c %a:%U {folder}/lab.prom; ls -A {folder}").out.split()
        assert mode == ["644:root", "lab.prom"]
        assert server.root("systemctl is-active lab-server-metrics.timer").out == "active"
        again = play(*arguments)
        assert again.rc == 0 and again.count("changed") == 0, again.text[-3000:]
    finally:
        made = f"/etc/systemd/system/lab-server-metrics.* {folder}"
        server.root("systemctl disable --now lab-server-metrics.timer", check=False)
        server.root(f"rm -rf {made} && systemctl daemon-reload")
