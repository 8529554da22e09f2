"""The policy is checked as a whole, and each error is one sentence that names the variable and the fix."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.lab.server.plugins.filter.policy import policy as policy_filter
from ansible_collections.lab.server.plugins.module_utils._core import policy
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput, NotFound

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBFsdlBIzHK2rXmV5vzZzfPqjvBzOJXYzC5zyUsJqyx7 alice"


def inventory() -> dict[str, Any]:
    """Return variables that are right."""
    return copy.deepcopy(
        {
            "lab_gid": 3000,
            "lab_filesystems": {
                "home": {"device": "/dev/disk/by-id/virtio-lab-home", "fstype": "ext4", "create": True},
                "data": {"device": "/dev/disk/by-id/virtio-lab-data", "fstype": "xfs"},
            },
            "lab_groups": [
                {
                    "name": "students",
                    "gid": 3101,
                    "limits": {
                        "containers": 2,
                        "cpus": 2,
                        "memory": "1g",
                        "pids": 512,
                        "shm": "64m",
                        "gpus": 0,
                    },
                    "quota": {"soft": "200m", "hard": "250m", "inodes_soft": 20000, "inodes_hard": 25000},
                },
                {
                    "name": "researchers",
                    "gid": 3102,
                    "limits": {
                        "containers": 4,
                        "cpus": 4,
                        "memory": "2g",
                        "pids": 1024,
                        "shm": "64m",
                        "gpus": 1,
                    },
                    "quota": {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0},
                },
            ],
            "lab_users": [
                {"name": "alice", "uid": 2001, "group": "students", "ssh_keys": [KEY]},
                {
                    "name": "carol",
                    "uid": 2003,
                    "group": "researchers",
                    "groups": ["students"],
                    "quota": {"hard": "9g"},
                },
            ],
            "lab_shares": [
                {"name": "datasets", "access": "read-only", "group": "researchers"},
                {"name": "vision", "access": "group", "group": "researchers"},
                {"name": "vault", "access": "admin"},
            ],
            "lab_base_images": [{"name": "lab/python", "archive": "python.tar"}],
            "lab_projects": [
                {"user": "alice", "name": "my-thesis", "memory": "512m", "files": {"src/a.py": "print()\n"}},
            ],
            "lab_package_cache": {
                "index": "https://index.example.org/simple/",
                "files": ["https://files.example.org/packages/"],
                "apt": ["packages.example.org"],
                "size": "20g",
            },
            "lab_docker_source": "distribution",
            "unrelated": object(),
        }
    )


def test_the_policy_survives_its_file() -> None:
    checked, keys = policy.from_inventory(inventory())
    assert policy.parse(json.loads(json.dumps(policy.dump(checked)))) == checked
    assert keys["alice"] == (KEY,)
    assert "AAAA" not in json.dumps(policy.dump(checked))


def test_a_user_has_the_groups_values_and_her_own_overrides() -> None:
    checked, _keys = policy.from_inventory(inventory())
    carol = checked.user("carol")
    assert (carol.quota.hard, carol.quota.soft, carol.limits.cpus) == (9 << 30, 0, 4.0)
    assert checked.user_by_uid(2001).quota.hard == 250 << 20
    assert checked.workspace(carol) == "/home/.workspaces/carol"


def test_a_user_has_the_groups_variables_and_own_ones_before_them() -> None:
    given = inventory()
    before = policy.dump(policy.from_inventory(given)[0])
    given["lab_environment"] = {"ALL": "server"}
    given["lab_groups"][0]["environment"] = {"HF_HOME": "/workspace/a", "TEAM": "a"}
    given["lab_users"][0]["environment"] = {"HF_HOME": "/workspace/b"}
    checked, _keys = policy.from_inventory(given)
    # Who is in a group besides the own one has its shares, not its variables: carol is in 'students', too.
    assert {user.name: dict(user.environment) for user in checked.users} == {
        "alice": {"HF_HOME": "/workspace/b", "TEAM": "a"},
        "carol": {},
    }
    assert policy.parse(json.loads(json.dumps(policy.dump(checked)))) == checked
    # Users read the public part of it, and not what another one's variables hold.
    assert "workspace/" not in json.dumps(policy.dump(policy.public(checked)))
    # A policy that was written before there were such variables is read as it always was.
    for one in (*before["groups"], *before["users"]):
        assert one.pop("environment") == {}
    assert not any(user.environment for user in policy.parse(before).users)


def test_a_project_that_it_declared_has_hours_and_kept_folders_of_its_own() -> None:
    given = inventory()
    given["lab_groups"][0]["limits"] |= {"run_hours": 10, "idle_hours": 4}
    given["lab_projects"][0]["run_hours"] = 0
    given["lab_projects"][0]["keep"] = [{"path": "/opt/packages", "size": "2g"}, {"path": "/data"}]
    checked, _keys = policy.from_inventory(given)
    project = checked.projects[0]
    owner = next(user for user in checked.users if user.name == project.user)
    assert (owner.limits.run_hours, owner.limits.idle_hours) == (10, 4)
    its = checked.limits_of(owner, project.name)
    assert (its.run_hours, its.idle_hours) == (0, 4)
    assert checked.limits_of(owner, "another") == owner.limits
    assert [(kept.path, kept.size) for kept in project.keep] == [("/data", 0), ("/opt/packages", 2 << 30)]
    assert policy.parse(json.loads(json.dumps(policy.dump(checked)))) == checked


def test_each_gpu_is_out_of_service_once() -> None:
    gpus = [_GPU.replace("a", "3"), _GPU.replace("GPU", "MIG"), _GPU]
    checked, _keys = policy.from_inventory({**inventory(), "lab_gpu": {"out_of_service": [*gpus, gpus[0]]}})
    assert checked.gpu.out_of_service == tuple(sorted(gpus))
    assert policy.parse(json.loads(json.dumps(policy.dump(checked)))) == checked


def test_group_shares_are_the_members_alone() -> None:
    checked, _keys = policy.from_inventory(inventory())
    assert [share.name for share in checked.shares_for(checked.user("carol"))] == ["vision"]
    assert checked.shares_for(checked.user("alice")) == ()


def test_who_is_not_there_is_not_found() -> None:
    checked, _keys = policy.from_inventory(inventory())
    for call in (
        lambda: checked.user("mallory"),
        lambda: checked.user_by_uid(0),
        lambda: checked.group("lab"),
    ):
        with pytest.raises(NotFound):
            call()


def _set(path: str, value: object) -> Any:
    def change(variables: dict[str, Any]) -> None:
        target: Any = variables
        *parents, last = path.split("/")
        for part in parents:
            target = target[int(part)] if part.isdigit() else target.setdefault(part, {})
        target[int(last) if last.isdigit() else last] = value

    return change


_GPU = "GPU-a0000000-0000-4000-8000-000000000000"
_S3 = {"name": "s3", "url": "https://s3.example.org"}
BAD_INPUT = [
    ("lab_docker_source", "Upstream", r"^lab_docker_source: 'Upstream' is not known\. Use one of: upstream"),
    ("lab_ca_certificates", "/x.crt", r"^lab_ca_certificates: expected a list"),
    ("lab_data_root", "/etc/data", r"^lab_data_root: /etc/data is in the way of /etc"),
    ("lab_data_root", "/var/lib/docker/data", r"^lab_data_root: .* is in the way of /var/lib/docker"),
    ("lab_data_root", "/srv", r"^lab_data_root: /srv is in the way of /srv"),
    ("lab_filesystems/docker", {"mount": "/home"}, r"^lab_filesystems\.docker\.mount: /home is in the way"),
    ("lab_filesystems/home/device", "/dev/sdb", r"^lab_filesystems\.home\.device: .* can be another disk"),
    ("lab_filesystems/home/device", "/dev/dm-3", r"^lab_filesystems\.home\.device: .* can be another disk"),
    ("lab_filesystems/home/device", "/dev/a\nb", r"^lab_filesystems\.home\.device: .* is no device"),
    ("lab_filesystems/home/device", "/dev/../tmp/x", r"^lab_filesystems\.home\.device: .* is no device"),
    (
        "lab_filesystems/data/device",
        "/dev/disk/by-id/virtio-lab-home",
        r"^lab_filesystems\.data\.device: the device .* is also that of lab_filesystems\.home\.device",
    ),
    ("lab_filesystems/home/options", ["noauto"], r"^lab_filesystems\.home\.options: 'noauto' cannot be used"),
    ("lab_filesystems/data/options", ["ro"], r"^lab_filesystems\.data\.options: 'ro' cannot be used"),
    ("lab_groups/0/quota/hard", 10, r"quota\.soft: the soft limit"),
    ("lab_groups/1/quota/hard", 10, r"^lab_groups\[1\] \(researchers\)\.quota\.hard: 10 bytes hold nothing"),
    ("lab_users/0/uid", "2001", r"^lab_users\[0\] \(alice\)\.uid: expected a whole number .*, not '2001'"),
    ("lab_users/0/ssh_keys", ["/home/a/.ssh/id_ed25519.pub"], r"\.ssh_keys\[0\]: .* is no public key"),
    ("lab_users/0/ssh_keys", ["hello world"], r"\.ssh_keys\[0\]: 'hello world' is no public key"),
    ("lab_shares/1/access", None, r"^lab_shares\[1\] \(vision\)\.access is missing\. Use one of: read-only"),
    ("lab_base_images/0/name", "lab/2001", r"^lab_base_images\[0\] .* holds the users' images"),
    ("lab_projects/0/memory", "1m", r"^lab_projects\[0\] \(my-thesis\)\.memory: less than 16m"),
    ("lab_projects/0/shm", "600m", r"\.shm: 600M is above the limit of the user alice\. At most 64M"),
    ("lab_foo", 1, r"^lab_foo: unknown key\. Use one of: "),
    ("lab_gid", 0, r"^lab_gid: expected a whole number from 1000"),
    ("lab_data_root", "srv/../data", r"^lab_data_root: .* plain absolute path"),
    ("lab_environment/PATH", "/x", r"^lab_environment\.PATH: is set by lab\.server"),
    ("lab_environment/LD_PRELOAD", "/x", r"^lab_environment\.LD_PRELOAD: is set by lab\.server"),
    ("lab_environment/A", 1, r"^lab_environment\.A: expected text"),
    (
        "lab_groups/0/environment",
        {"PATH": "/x"},
        r"^lab_groups\[0\] \(students\)\.environment\.PATH: is set by lab\.server",
    ),
    (
        "lab_users/0/environment",
        {"LD_PRELOAD": "/x"},
        r"^lab_users\[0\] \(alice\)\.environment\.LD_PRELOAD: is set by lab\.server",
    ),
    ("lab_users/0/environment", {"A": "b\nc"}, r"^lab_users\[0\] \(alice\)\.environment\.A: holds a line"),
    ("lab_users/0/environment", {"A-B": "c"}, r"^lab_users\[0\] \(alice\)\.environment: 'A-B'"),
    ("lab_users/0/environment", ["A=b"], r"^lab_users\[0\] \(alice\)\.environment: expected a mapping"),
    (
        "lab_filesystems/home/fstype",
        "btrfs",
        r"^lab_filesystems\.home\.fstype: 'btrfs' is not known\. Use one of: ext4, xfs",
    ),
    ("lab_filesystems/scratch", {}, r"^lab_filesystems\.scratch: unknown key"),
    ("lab_filesystems/home/options", ["suid"], r"^lab_filesystems\.home\.options: 'suid' cannot be used"),
    ("lab_filesystems/home/device", "sdb", r"^lab_filesystems\.home\.device: 'sdb' is no device"),
    ("lab_filesystems/home/mount", "/homes", r"^lab_filesystems\.home\.mount: the homes are at /home"),
    ("lab_groups", "students", r"^lab_groups: expected a list"),
    ("lab_groups/0", "students", r"^lab_groups\[0\]: expected a mapping"),
    ("lab_groups/0/colour", "red", r"^lab_groups\[0\] \(students\)\.colour: unknown key"),
    ("lab_groups/0/quota/hard", "lots", r"^lab_groups\[0\] \(students\)\.quota\.hard: 'lots' is not a size"),
    (
        "lab_groups/0/quota/soft",
        "1g",
        r"^lab_groups\[0\] \(students\)\.quota\.soft: the soft limit 1G is above the hard limit 250M",
    ),
    (
        "lab_groups/0/quota/inodes_soft",
        26000,
        r"^lab_groups\[0\] \(students\)\.quota\.inodes_soft: the soft limit 26000 is above",
    ),
    ("lab_groups/0/limits/memory", "1m", r"^lab_groups\[0\] \(students\)\.limits\.memory: less than 16m"),
    ("lab_groups/0/limits/shm", "2g", r"^lab_groups\[0\] \(students\)\.limits\.shm: .* above it"),
    ("lab_groups/0/limits/cpus", "two", r"^lab_groups\[0\] \(students\)\.limits\.cpus: expected a number"),
    (
        "lab_groups/0/limits/gpus",
        True,
        r"^lab_groups\[0\] \(students\)\.limits\.gpus: expected a whole number",
    ),
    ("lab_backup", {}, r"^lab_backup\.repository is missing"),
    ("lab_backup", {"repository": "b2:x"}, r"^lab_backup\.repository: 'b2:x' is no repository that is supp"),
    ("lab_backup", {"repository": "s3:s3.example.org"}, r"^lab_backup\.repository: .* is no repository"),
    (
        "lab_backup",
        {"repository": "sftp:lab@x:22/b"},
        r"^lab_backup\.repository: .* Use .*sftp://USER@HOST:PORT",
    ),
    ("lab_backup", {"repository": "/a/../b"}, r"^lab_backup\.repository: '/a/\.\./b' is no repository"),
    ("lab_backup", {"repository": "rest:https://u:p@x/"}, r"^lab_backup\.repository holds a password"),
    ("lab_backup", {"repository": "/b", "exclude": ["a\nb"]}, r"^lab_backup\.exclude\[0\] is no pattern"),
    ("lab_backup", {"repository": "/b", "keep_daily": 0}, r"^lab_backup\.keep_daily: expected a whole numb"),
    ("lab_backup", {"repository": "/b", "user_hours": 13}, r"^lab_backup\.user_hours: expected a whole numb"),
    ("lab_backup", {"repository": "/b", "password": "x"}, r"^lab_backup\.password: unknown key"),
    ("lab_object_storage", {"name": "x"}, r"^lab_object_storage: expected a list"),
    ("lab_object_storage", [{"name": "x"}], r"^lab_object_storage\[0\] \(x\)\.url is missing"),
    ("lab_object_storage", [{**_S3, "key": 1}], r"^lab_object_storage\[0\] \(s3\)\.key: unknown key"),
    (
        "lab_object_storage",
        [{**_S3, "name": "S3"}],
        r"^lab_object_storage\[0\] \(S3\)\.name: 'S3' is not allow",
    ),
    ("lab_object_storage", [_S3, _S3], r"^lab_object_storage\[1\] \(s3\)\.name: s3 is there twice"),
    ("lab_object_storage", [{**_S3, "url": "s3.example.org"}], r"\.url is no plain URL of a server"),
    ("lab_object_storage", [{**_S3, "url": "https://u:p@h.org"}], r"\.url is no plain URL of a server"),
    ("lab_object_storage", [{**_S3, "url": "https://h.org/\n"}], r"\.url is no plain URL of a server"),
    (
        "lab_object_storage",
        [{**_S3, "url": "http://h.org"}],
        r"\.url: by http everybody .* set insecure: true",
    ),
    ("lab_object_storage", [{**_S3, "region": "a b"}], r"\.region: 'a b' is no region"),
    (
        "lab_object_storage",
        [{**_S3, "provider": "None"}],
        r"\.provider: 'None' is not known\. Use one of: Other",
    ),
    (
        "lab_object_storage",
        [{**_S3, "buckets": ["{home}"]}],
        r"\.buckets\[0\]: '{home}' is no pattern of a bu",
    ),
    ("lab_object_storage", [{**_S3, "buckets": ["-{user}"]}], r"\.buckets\[0\]: '-a' is no name of a bucket"),
    (
        "lab_gpu",
        {"shared": 2},
        r"^lab_gpu\.shared: unknown key\. Use one of: groups, out_of_service, reserve, shared_by",
    ),
    ("lab_gpu", {"shared_by": 0}, r"^lab_gpu\.shared_by: expected a whole number from 1 to 64, not 0"),
    ("lab_gpu", {"groups": {"nobody": {}}}, r"^lab_gpu\.groups\.nobody: is not in lab_groups"),
    ("lab_gpu", {"users": {"mallory": {}}}, r"^lab_gpu\.users\.mallory: is not in lab_users"),
    ("lab_gpu", {"groups": {"students": {"devices": -1}}}, r"^lab_gpu\.groups\.students\.devices: expected"),
    ("lab_gpu", {"groups": {"students": {"container": 0}}}, r"^lab_gpu\.groups\.students\.container: expect"),
    (
        "lab_gpu",
        {"groups": {"students": {"whole": 1}}},
        r"^lab_gpu\.groups\.students\.whole: expected true or",
    ),
    (
        "lab_gpu",
        {"users": {"alice": {"weight": 2}}},
        r"^lab_gpu\.users\.alice\.weight: only a group has one",
    ),
    ("lab_gpu", {"out_of_service": "GPU-1"}, r"^lab_gpu\.out_of_service: expected a list"),
    (
        "lab_gpu",
        {"out_of_service": [_GPU, "3"]},
        r"^lab_gpu\.out_of_service\[1\]: '3' is no uuid of a GPU or MIG instance\. Write it as nvidia-smi",
    ),
    ("lab_gpu", {"out_of_service": [_GPU.upper()]}, r"^lab_gpu\.out_of_service\[0\]: 'GPU-A0"),
    (
        "lab_projects/0/gpus",
        1,
        r"^lab_projects\[0\] \(my-thesis\)\.gpus: 1 is above the limit of the user alice",
    ),
    ("lab_projects/0/run_hours", -1, r"\.run_hours: expected a whole number from 0"),
    ("lab_projects/0/idle_hours", "2d", r"\.idle_hours: expected a whole number from 0"),
    ("lab_projects/0/keep", "/opt/x", r"\.keep: expected a list"),
    ("lab_projects/0/keep", [{"size": "1g"}], r"\.keep\[0\]\.path is missing"),
    ("lab_projects/0/keep", [{"path": "/etc"}], r"\.keep\[0\]\.path: /etc would hide /etc of the container"),
    ("lab_projects/0/keep", [{"path": "/opt/x", "size": 10}], r"\.size: 10 bytes hold nothing"),
    ("lab_projects/0/keep", [{"path": "/opt/x", "mode": 1}], r"\.keep\[0\]\.mode: unknown key"),
    ("lab_projects/0/gpus", "many", r"^lab_projects\[0\] \(my-thesis\)\.gpus: 'many' asks for no GPU"),
    ("lab_projects/0/gpus", True, r"^lab_projects\[0\] \(my-thesis\)\.gpus: True asks for no GPU"),
    (
        "lab_projects/0/gpus",
        {"memory": "much"},
        r"^lab_projects\[0\] \(my-thesis\)\.gpus: memory: 'much' is not a size",
    ),
    (
        "lab_groups/1/gid",
        3101,
        r"^lab_groups\[1\] \(researchers\)\.gid: the number 3101 is also that of lab_groups\[0\] ",
    ),
    (
        "lab_users/0/name",
        "researchers",
        r"^lab_projects\[0\] \(my-thesis\)\.user: 'alice' is not in lab_users",
    ),
    ("lab_users/0/name", "Alice", r"^lab_users\[0\] \(Alice\)\.name: 'Alice' is not allowed"),
    ("lab_users/0/name", "root", r"^lab_users\[0\] \(root\)\.name: 'root' is an account of the system"),
    ("lab_users/0/uid", 0, r"^lab_users\[0\] \(alice\)\.uid: expected a whole number from 1000"),
    (
        "lab_users/0/uid",
        2003,
        r"^lab_users\[1\] \(carol\)\.uid: the number 2003 is also that of lab_users",
    ),
    ("lab_users/0/group", "staff", r"^lab_users\[0\] \(alice\)\.group: 'staff' is not in lab_groups"),
    ("lab_users/0/groups", ["docker"], r"^lab_users\[0\] \(alice\)\.groups: 'docker' is not in lab_groups"),
    ("lab_users/0/comment", "a:b", r"^lab_users\[0\] \(alice\)\.comment: a ':'"),
    ("lab_users/0/ssh_keys", ["x\ny z"], r"^lab_users\[0\] \(alice\)\.ssh_keys\[0\]: 'x.* is no public key"),
    (
        "lab_users/0/quota",
        {"hard": "100m"},
        r"^lab_users\[0\] \(alice\)\.quota\.soft: the soft limit 200M is above the hard limit 100M",
    ),
    ("lab_users/0/quota", {"hart": 1}, r"^lab_users\[0\] \(alice\)\.quota\.hart: unknown key"),
    (
        "lab_users/0/limits",
        {"containers": 0},
        r"^lab_projects: 1 containers are declared for alice, who may have 0",
    ),
    ("lab_shares/1/group", "nobodys", r"^lab_shares\[1\] \(vision\)\.group: 'nobodys' is not in lab_groups"),
    ("lab_shares/1/access", "public", r"^lab_shares\[1\] \(vision\)\.access: 'public' is not known"),
    ("lab_shares/1/name", "../etc", r"^lab_shares\[1\] \(../etc\)\.name: '\.\./etc' is not allowed"),
    (
        "lab_base_images/0/image",
        "debian",
        r"^lab_base_images\[0\] \(lab/python\): needs either 'image'",
    ),
    (
        "lab_base_images/0/name",
        "lab/2001/my-thesis",
        r"^lab_base_images\[0\] .*\.name: lab/<uid>",
    ),
    (
        "lab_projects/0/user",
        "mallory",
        r"^lab_projects\[0\] \(my-thesis\)\.user: 'mallory' is not in lab_users",
    ),
    (
        "lab_projects/0/name",
        "My Thesis",
        r"^lab_projects\[0\] \(My Thesis\)\.name: 'My Thesis' is not",
    ),
    (
        "lab_projects/0/base",
        "lab/nope",
        r"^lab_projects\[0\] \(my-thesis\)\.base: 'lab/nope' is not in",
    ),
    (
        "lab_projects/0/memory",
        "2g",
        r"^lab_projects\[0\] \(my-thesis\)\.memory: .* is above the limit of the user alice",
    ),
    (
        "lab_projects/0/files",
        {"../x": ""},
        r"^lab_projects\[0\] \(my-thesis\)\.files: '\.\./x' is not a path in the project",
    ),
    ("lab_projects/0/state", "running", r"^lab_projects\[0\] \(my-thesis\)\.state: 'running' is not known"),
    ("lab_projects/0/state", "restored", r"^lab_projects\[0\] \(my-thesis\)\.state: 'restored' is not known"),
    ("lab_projects/0/home", "/etc", r"^lab_projects\[0\] \(my-thesis\)\.home: '/etc' is not known"),
    ("lab_projects/0/ports", [8888], r"^lab_projects\[0\] \(my-thesis\)\.ports\[0\]: expected a mapping"),
    (
        "lab_projects/0/ports",
        [{"container": 80}],
        r"^lab_projects\[0\] \(my-thesis\)\.ports\[0\]\.host is missing",
    ),
    (
        "lab_projects/0/ports",
        [{"container": 80, "host": 80}],
        r"^lab_projects\[0\] \(my-thesis\)\.ports\[0\]\.host: expected a whole number from 1024",
    ),
    (
        "lab_projects/0/ports",
        [{"container": 80, "host": 8080, "address": "0.0.0.0"}],
        r"^lab_projects\[0\] \(my-thesis\)\.ports\[0\]\.address: unknown key",
    ),
    (
        "lab_projects/0/ports",
        [{"container": 80, "host": 8080}, {"container": 80, "host": 8081}],
        r"^lab_projects\[0\] \(my-thesis\)\.ports: the port of the container 80 is also that of",
    ),
    (
        "lab_base_images/0/files",
        "home/jovyan",
        r"^lab_base_images\[0\] \(lab/python\)\.files: .* plain absolute path",
    ),
    (
        "lab_base_images/0/files",
        "/home/../etc",
        r"^lab_base_images\[0\] \(lab/python\)\.files: .* plain absolute path",
    ),
    ("lab_retire_keep", -1, r"^lab_retire_keep: expected a whole number from 0"),
    ("lab_retire_size", "much", r"^lab_retire_size: 'much' is not a size"),
    ("lab_images_keep", 0, r"^lab_images_keep: expected a whole number from 1"),
    ("lab_lifecycle", 24, r"^lab_lifecycle: expected a mapping"),
    ("lab_lifecycle", {"notice_hours": 0}, r"^lab_lifecycle\.notice_hours: expected a whole number from 1"),
    ("lab_lifecycle", {"retire_hours": -1}, r"^lab_lifecycle\.retire_hours: expected a whole number from 0"),
    ("lab_lifecycle", {"extend_hours": "2d"}, r"^lab_lifecycle\.extend_hours: expected a whole number"),
    ("lab_lifecycle", {"extend_times": 1001}, r"^lab_lifecycle\.extend_times: expected a whole number"),
    ("lab_lifecycle", {"notice": 2}, r"^lab_lifecycle\.notice: unknown key"),
    ("lab_groups/0/limits/run_hours", -1, r"limits\.run_hours: expected a whole number from 0"),
    ("lab_users/0/limits", {"idle_hours": 1.5}, r"limits\.idle_hours: expected a whole number from 0"),
    ("lab_watermarks", 95, r"^lab_watermarks: expected a mapping"),
    ("lab_watermarks", {"warn": 96}, r"^lab_watermarks\.warn: 96 is above refuse, which is 95"),
    ("lab_watermarks", {"refuse": 101}, r"^lab_watermarks\.refuse: expected a whole number from 1 to 100"),
    ("lab_watermarks", {"contact": "a\nb"}, r"^lab_watermarks\.contact: a ':' or a control character"),
    ("lab_watermarks", {"stop": 1}, r"^lab_watermarks\.stop: unknown key. Use one of: contact, refuse, warn"),
    ("lab_quota_grace", 0, r"^lab_quota_grace: expected a whole number from 1 to 365"),
    ("lab_quota_default", {"hard": "1g"}, r"^lab_quota_default: ext4 has no default for unknown uids"),
    ("lab_quota_default", {"hard": "x"}, r"^lab_quota_default\.hard: 'x' is not a size"),
    (
        "lab_quota_default",
        {"soft": "2g", "hard": "1g"},
        r"^lab_quota_default\.soft: the soft limit 2G is above",
    ),
    ("lab_quota_default", {"size": "1g"}, r"^lab_quota_default\.size: unknown key"),
    ("lab_overcommit", "much", r"^lab_overcommit: expected a number from 0.1 to 1000"),
    ("lab_build_minutes", 0, r"^lab_build_minutes: expected a whole number from 1 to 1440"),
    ("lab_groups/0/limits/layers_size", 10, r"limits\.layers_size: 10 bytes hold nothing"),
    ("lab_groups/0/limits/layers_files", "1", r"limits\.layers_files: expected a whole number"),
    ("lab_groups/0/limits/images_size", -1, r"limits\.images_size: '-1' is not a size"),
    ("lab_groups/0/limits/data_size", 1, r"limits\.data_size: 1 bytes hold nothing"),
    ("lab_shares/0/size", 100, r"^lab_shares\[0\] \(datasets\)\.size: 100 bytes hold nothing"),
    ("lab_shares/0/size", "big", r"^lab_shares\[0\] \(datasets\)\.size: 'big' is not a size"),
    ("lab_package_cache", True, r"^lab_package_cache: expected a mapping"),
    ("lab_package_cache/index", None, r"^lab_package_cache\.index is missing"),
    ("lab_package_cache/index", 1, r"^lab_package_cache\.index: '1' is no plain URL of a folder"),
    ("lab_package_cache/index", "index.example.org/simple/", r"^lab_package_cache\.index: .* no plain URL"),
    ("lab_package_cache/index", "https://index.example.org/simple", r"Write it as .* with a '/' at its end"),
    (
        "lab_package_cache/index",
        "https://a:b@index.example.org/",
        r"^lab_package_cache\.index: .* no plain URL",
    ),
    (
        "lab_package_cache/index",
        "https://index.example.org/?a/",
        r"^lab_package_cache\.index: .* no plain URL",
    ),
    (
        "lab_package_cache/index",
        "https://index.example.org/../",
        r"^lab_package_cache\.index: .* no plain URL",
    ),
    (
        "lab_package_cache/index",
        'https://index.example.org/";/',
        r"^lab_package_cache\.index: .* no plain URL",
    ),
    (
        "lab_package_cache/index",
        "https://index.example.org/$a/",
        r"^lab_package_cache\.index: .* no plain URL",
    ),
    (
        "lab_package_cache/index",
        "https://index.example.org/\n",
        r"^lab_package_cache\.index: .* no plain URL",
    ),
    ("lab_package_cache/files", [], r"^lab_package_cache\.files is missing\. Name the URLs"),
    ("lab_package_cache/files", "https://x.example.org/", r"^lab_package_cache\.files: expected a list"),
    ("lab_package_cache/files", ["ftp://x.example.org/"], r"^lab_package_cache\.files: .* no plain URL"),
    (
        "lab_package_cache/files",
        ["https://x.example.org/a/", "https://x.example.org/"],
        r"^lab_package_cache\.files: https://x\.example\.org/a/ is part of another one",
    ),
    (
        "lab_package_cache/files",
        ["https://x.example.org/", "https://x.example.org/"],
        r"^lab_package_cache\.files: the URL https://x\.example\.org/ is also that of",
    ),
    ("lab_package_cache/apt", ["http://x.example.org"], r"^lab_package_cache\.apt: .* is no name of a host"),
    ("lab_package_cache/apt", ["localhost"], r"^lab_package_cache\.apt: 'localhost' is no name of a host"),
    (
        "lab_package_cache/apt",
        ["x.example.org", "x.example.org"],
        r"^lab_package_cache\.apt: the host x.* also",
    ),
    ("lab_package_cache/size", "lots", r"^lab_package_cache\.size: 'lots' is not a size"),
    ("lab_package_cache/size", 20, r"^lab_package_cache\.size: less than 100m"),
    ("lab_package_cache/port", 3142, r"^lab_package_cache\.port: expected a whole number from 1 to 1023"),
    ("lab_package_cache/port", 443, r"^lab_package_cache\.port: 443 is that of the hosts of apt"),
    ("lab_package_cache/address", "10.213.0.1", r"^lab_package_cache\.address: .* is no private address"),
    ("lab_package_cache/address", "10.213.0.0/24", r"^lab_package_cache\.address: .* is no private address"),
    ("lab_package_cache/address", "8.8.8.8/24", r"^lab_package_cache\.address: .* is no private address"),
    ("lab_package_cache/address", "127.0.0.1/8", r"^lab_package_cache\.address: .* is no private address"),
    ("lab_package_cache/address", "fe80::1/64", r"^lab_package_cache\.address: .* is no private address"),
    ("lab_package_cache/adress", "10.213.0.1/24", r"^lab_package_cache\.adress: unknown key"),
    ("lab_news", ["a"], r"^lab_news: expected text"),
    ("lab_news", "a\x1b[2J", r"^lab_news: holds a control character"),
    ("lab_news", "a" * 2001, r"^lab_news: more than 2000 characters"),
]


@pytest.mark.parametrize(
    ("path", "value", "message"), BAD_INPUT, ids=[f"{path}={value!r}"[:50] for path, value, _m in BAD_INPUT]
)
def test_bad_input_is_named_in_one_sentence(path: str, value: object, message: str) -> None:
    variables = inventory()
    _set(path, value)(variables)
    with pytest.raises(InvalidInput, match=message) as caught:
        policy.from_inventory(variables)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_what_is_kept_has_defaults_and_survives() -> None:
    checked, _keys = policy.from_inventory(inventory())
    assert (checked.retire_keep_days, checked.retire_size, checked.images_keep) == (7, 10 << 30, 3)
    variables = {**inventory(), "lab_retire_keep": 0, "lab_retire_size": "1g", "lab_images_keep": 5}
    variables["lab_projects"][0].update(home="persistent", ports=[{"container": 8888, "host": 18888}])
    variables["lab_base_images"][0]["files"] = "/home/jovyan"
    variables["lab_news"] = "Down on Monday.\n\nSee the wiki.\n"
    checked, _keys = policy.from_inventory(variables)
    assert (checked.retire_keep_days, checked.retire_size, checked.images_keep) == (0, 1 << 30, 5)
    assert checked.projects[0].ports == ((8888, 18888),)
    assert checked.news == policy.public(checked).news == "Down on Monday.\n\nSee the wiki."
    assert checked.base_images[0].folder == "python"
    plain = json.loads(json.dumps(policy.dump(checked)))
    assert policy.parse(plain) == checked
    # The policy of a server that was written before there were these.
    for key in ("retire_keep", "retire_size", "images_keep", "news"):
        del plain[key]
    assert policy.parse(plain).images_keep == 3


def test_what_is_said_of_disks_has_defaults_and_survives() -> None:
    checked, _keys = policy.from_inventory(inventory())
    disks = checked.disks
    assert (disks.warn, disks.refuse, disks.grace_days, disks.overcommit) == (85, 95, 7, 1.5)
    assert (disks.build_minutes, disks.default, disks.ask) == (240, None, "your admins")
    variables = {**inventory(), "lab_watermarks": {"warn": 50, "contact": "it@example.org"}}
    variables.update(lab_quota_grace=2, lab_overcommit=3, lab_build_minutes=30)
    variables["lab_quota_default"] = {"hard": "1g"}
    variables["lab_filesystems"]["home"]["fstype"] = "xfs"
    variables["lab_groups"][1]["quota"]["hard"] = "5g"
    variables["lab_groups"][0]["limits"].update(layers_size="5g", layers_files=100, images_size="9g")
    variables["lab_users"][0]["limits"] = {"data_size": "2t"}
    variables["lab_shares"][1]["size"] = "100g"
    checked, _keys = policy.from_inventory(variables)
    assert checked.disks.default == policy.Quota(0, 1 << 30, 0, 0)
    assert (checked.disks.warn, checked.disks.refuse, checked.disks.ask) == (50, 95, "it@example.org")
    alice = checked.users[0].limits
    assert (alice.layers_size, alice.layers_files, alice.images_size) == (5 << 30, 100, 9 << 30)
    assert alice.data_size == 2 << 40 and checked.shares[1].size == 100 << 30
    plain = json.loads(json.dumps(policy.dump(checked)))
    assert policy.parse(plain) == checked
    # The policy of a server that was written before there were these.
    for key in ("watermarks", "quota_grace", "quota_default", "overcommit", "build_minutes"):
        del plain[key]
    assert policy.parse(plain).disks == policy.DiskRules()


def test_a_default_of_xfs_takes_the_place_of_no_limit() -> None:
    variables = {**inventory(), "lab_quota_default": {"soft": "1g", "hard": "2g"}}
    variables["lab_filesystems"]["home"]["fstype"] = "xfs"
    with pytest.raises(InvalidInput, match=r"^lab_quota_default\.soft: carol has no limit of that kind"):
        policy.from_inventory(variables)


def test_the_package_cache_is_off_unless_it_is_declared() -> None:
    checked, _keys = policy.from_inventory(inventory())
    cache = checked.package_cache
    assert cache is not None
    assert (cache.size, cache.port, cache.host, cache.network) == (
        20 << 30,
        80,
        "10.213.0.1",
        "10.213.0.0/24",
    )
    variables = inventory()
    assert policy.from_inventory({**variables, "lab_package_cache": None})[0].package_cache is None
    del variables["lab_package_cache"]
    checked, _keys = policy.from_inventory(variables)
    assert checked.package_cache is None
    plain = json.loads(json.dumps(policy.dump(checked)))
    assert policy.parse(plain) == checked
    # The policy of a server that was written before there was one.
    del plain["package_cache"]
    assert policy.parse(plain) == checked


def test_the_playbook_finds_what_it_hands_on_of_the_package_cache() -> None:
    handed = policy_filter(inventory())["package_cache"]
    play = (Path(__file__).resolve().parents[2] / "playbooks/site.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"lab_policy\.package_cache\.(\w+)", play)) | {"bridge"} == set(handed)
    assert (handed["address"], handed["bridge"]) == ("10.213.0.1", "10.213.0.1/24")
    variables = inventory()
    del variables["lab_package_cache"]
    assert policy_filter(variables)["package_cache"] is None


def test_a_port_of_the_host_is_one_containers() -> None:
    variables = inventory()
    variables["lab_projects"][0]["ports"] = [{"container": 80, "host": 8080}]
    variables["lab_projects"].append(
        {"user": "carol", "name": "x", "ports": [{"container": 81, "host": 8080}]}
    )
    with pytest.raises(
        InvalidInput,
        match=r"^lab_projects\[1\] \(x\)\.ports: the port of the host 8080 is also that of",
    ):
        policy.from_inventory(variables)


def test_two_environments_do_not_share_a_folder() -> None:
    variables = inventory()
    variables["lab_base_images"] = [
        {"name": name, "archive": "a", "files": "/f"} for name in ("lab/python", "x/python:3")
    ]
    with pytest.raises(InvalidInput, match=r"files: the folder of files python is also that of"):
        policy.from_inventory(variables)


def test_a_user_may_not_have_the_name_of_a_group() -> None:
    variables = inventory()
    variables["lab_users"][1]["name"] = "students"
    with pytest.raises(
        InvalidInput,
        match=r"^lab_users\[1\] \(students\)\.name: the name students is also that of lab_groups\[0\]",
    ):
        policy.from_inventory(variables)


def test_a_share_of_a_group_that_nobody_has_is_refused() -> None:
    variables = inventory()
    variables["lab_users"][1].update(group="students", groups=[])
    with pytest.raises(
        InvalidInput, match=r"^lab_shares\[0\] \(datasets\)\.group: nobody is in the group 'researchers'"
    ):
        policy.from_inventory(variables)


def test_a_damaged_policy_file_fails_closed(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    with pytest.raises(HostError, match="is missing: this server is not provisioned"):
        policy.load(str(file))
    whole = json.dumps(policy.dump(policy.from_inventory(inventory())[0]))
    file.write_text(whole, encoding="utf-8")
    assert policy.load(str(file)).user("alice").uid == 2001
    for damaged in (whole[: len(whole) // 2], "", "[]", '{"format": 99}', "\0"):
        file.write_text(damaged, encoding="utf-8")
        with pytest.raises(HostError, match="cannot be used"):
            policy.load(str(file))


def test_the_template_of_an_inventory_is_valid() -> None:
    folder = Path(__file__).resolve().parents[2] / "inventories" / "template"
    variables: dict[str, Any] = {}
    for file in sorted((folder / "group_vars" / "lab_servers").glob("*.yml")):
        variables.update(yaml.safe_load(file.read_text(encoding="utf-8")))
    checked, _keys = policy.from_inventory(variables)
    assert [share.name for share in checked.shares_for(checked.user("ben"))] == ["ml"]
