# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a container must be like: ours is in order, and each single thing that is not is named."""

from __future__ import annotations

import copy
from typing import Any, Callable

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import rules, spec
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, from_inventory
from ansible_collections.lab.server.plugins.module_utils._core.spec import EngineFacts, ImageFacts, Wishes

LIMITS = {"containers": 3, "cpus": 1.5, "memory": "64m", "pids": 64, "shm": "1m", "gpus": 0}
QUOTA = {"soft": 0, "hard": "1g", "inodes_soft": 0, "inodes_hard": 0}


def policy() -> Policy:
    made, _keys = from_inventory(
        {
            "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [{"name": "alice", "uid": 2001, "group": "students"}],
            "lab_shares": [{"name": "vision", "access": "group", "group": "students"}],
        }
    )
    return made


WISHES = [
    Wishes(),
    Wishes(ports=((8888, 18888),)),
    Wishes(home="persistent"),
    Wishes(home="host", memory=32 << 20),
]


def subject(wishes: Wishes = WISHES[1], driver: str = "systemd") -> rules.Subject:
    """Return a container of ours as Docker describes it."""
    lab = policy()
    decided = spec.decide(lab, lab.user("alice"), "thesis", wishes)
    made = spec.create_config(decided, ImageFacts("sha256:1", "/bin"), EngineFacts(driver, 8))
    host = {**made.pop("HostConfig"), "MaskedPaths": ["/proc/kcore"], "ReadonlyPaths": ["/proc/sys"]}
    told = {
        "Config": made,
        "HostConfig": host,
        "AppArmorProfile": "docker-default",
        "Mounts": [
            {"Type": one["Type"], "Source": one.get("Source", ""), "Destination": one["Target"]}
            for one in host["Mounts"]
        ],
        "NetworkSettings": {"Networks": {"lab": {}}, "Ports": host["PortBindings"]},
    }
    return rules.Subject(decided, spec.cgroup_parent(2001, driver), told, apparmor=True)


@pytest.mark.parametrize("wishes", WISHES)
@pytest.mark.parametrize("driver", ["systemd", "cgroupfs"])
def test_what_we_make_is_in_order(wishes: Wishes, driver: str) -> None:
    assert rules.violations(subject(wishes, driver)) == []


GIVEN = [{"Driver": "cdi", "DeviceIDs": ["nvidia.com/gpu=GPU-1"]}]


@pytest.mark.parametrize(
    ("groups", "given", "word"),
    [
        (["3101", "4195"], GIVEN, ""),
        (["3101", "4195"], None, "groups 4195"),
        (["3101", "4195", "999"], GIVEN, "groups 999"),
    ],
)
def test_the_group_of_the_device_files_is_in_order_with_gpus_alone(
    groups: list[str], given: Any, word: str
) -> None:
    fine = subject()
    told = copy.deepcopy(dict(fine.told))
    told["HostConfig"].update(GroupAdd=groups, DeviceRequests=given)
    found = rules.violations(rules.Subject(fine.spec, fine.parent, told, apparmor=True, device_gids=(4195,)))
    assert [word in one for one in found] == ([True] if word else [])


def host(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda told: told["HostConfig"].update(changes)


def config(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda told: told["Config"].update(changes)


def mount(number: int, **changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda told: told["HostConfig"]["Mounts"][number].update(changes)


CHANGES: list[tuple[Callable[[dict[str, Any]], None], str]] = [
    (config(User=""), "runs as root"),
    (config(User="0:0"), "runs as 0:0"),
    (config(User="2002:2002"), "runs as 2002:2002"),
    (config(Healthcheck={"Test": ["CMD", "x"]}), "health check"),
    (host(GroupAdd=["3101", "999"]), "groups 999"),
    (host(Privileged=True), "privileged"),
    (host(CapDrop=None), "keeps capabilities"),
    (host(CapDrop=["NET_RAW"]), "keeps capabilities"),
    (host(CapAdd=["SYS_ADMIN"]), "added capabilities"),
    (host(SecurityOpt=None), "no-new-privileges is missing"),
    (host(SecurityOpt=["no-new-privileges", "seccomp=unconfined"]), "seccomp=unconfined"),
    (host(SecurityOpt=["no-new-privileges", "apparmor:unconfined"]), "apparmor=unconfined"),
    (host(MaskedPaths=[]), "/proc"),
    (host(Devices=[{"PathOnHost": "/dev/sda"}]), "devices of the host"),
    (host(DeviceCgroupRules=["a *:* rwm"]), "rules for devices"),
    (host(Binds=["/:/host"]), "binds"),
    (host(VolumesFrom=["x"]), "volumes of other containers"),
    (host(Sysctls={"net.ipv4.ip_forward": "1"}), "kernel settings"),
    (host(PidMode="host"), "PidMode is host"),
    (host(IpcMode="shareable"), "IpcMode is shareable"),
    (host(IpcMode="container:x"), "IpcMode is container:x"),
    (host(UTSMode="host"), "UTSMode is host"),
    (host(UsernsMode="host"), "UsernsMode is host"),
    (host(CgroupnsMode="host"), "CgroupnsMode is host"),
    (host(NetworkMode="host"), "network host"),
    (host(CgroupParent=""), "slice of its user"),
    (host(CgroupParent="lab-2002.slice"), "slice of its user"),
    (host(Memory=0), "memory"),
    (host(MemorySwap=-1), "memory"),
    (host(PidsLimit=None), "processes"),
    (host(PidsLimit=-1), "processes"),
    (host(NanoCpus=0), "cores"),
    (host(NanoCpus=4_000_000_000), "cores"),
    (host(ShmSize=1 << 30), "shared memory"),
    (host(Ulimits=None), "core dumps"),
    (host(RestartPolicy={"Name": "always"}), "restarts it by itself (always)"),
    (host(AutoRemove=True), "goes when it stops"),
    (host(LogConfig={"Type": "json-file", "Config": {}}), "log is not bounded"),
    (host(PublishAllPorts=True), "all its ports"),
    (host(PortBindings={"80/tcp": [{"HostIp": "", "HostPort": "80"}]}), "open on every address"),
    (host(PortBindings={"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "80"}]}), "open on 0.0.0.0"),
    (mount(0, Source="/home/.workspaces/bob"), "/home/.workspaces/bob of the host"),
    (mount(0, Source="/"), "/ of the host"),
    (mount(1, ReadOnly=False), "/srv/data is writable"),
    (mount(1, BindOptions={"Propagation": "rprivate"}), "below /srv/data may be writable"),
    (mount(2, BindOptions={"Propagation": "rshared"}), "reach it"),
    (lambda told: told.update(AppArmorProfile="unconfined"), "AppArmor"),
    (lambda told: told["NetworkSettings"]["Networks"].update(bridge={}), "network bridge"),
    (
        lambda told: told["Mounts"].append({"Type": "bind", "Source": "/etc", "Destination": "/host"}),
        "/host is mounted",
    ),
]


@pytest.mark.parametrize(("change", "word"), CHANGES)
def test_one_thing_that_is_wrong_is_named_and_nothing_else(
    change: Callable[[dict[str, Any]], None], word: str
) -> None:
    fine = subject()
    told = copy.deepcopy(dict(fine.told))
    change(told)
    found = rules.violations(rules.Subject(fine.spec, fine.parent, told, apparmor=True))
    assert len(found) == 1 and word in found[0], found


def test_without_apparmor_in_the_kernel_no_profile_is_missed() -> None:
    fine = subject()
    told = {**fine.told, "AppArmorProfile": ""}
    assert rules.violations(rules.Subject(fine.spec, fine.parent, told, apparmor=False)) == []


def test_of_a_container_of_which_nothing_is_known_nothing_is_believed() -> None:
    fine = subject()
    assert len(rules.violations(rules.Subject(fine.spec, fine.parent, {}, apparmor=True))) > 10
