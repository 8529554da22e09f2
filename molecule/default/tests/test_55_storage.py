"""Quotas on every file system, on ext4 and XFS alike, through our own library (A16, E3, E4, E7, E8, F7).

Small file systems in loop files stand beside those of the machine; what is read and set goes through the
installed library, as one program for each test, since each ssh command costs a second and more.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ALICE, Server

LIBRARY = "/usr/local/lib/lab-server/current"
FULL = "Disk quota exceeded"
ROOT = "/var/lib/lab-loops"
STRANGER, KNOWN = 47111, 47211

PREPARE = f"""
set -e
mkdir -p {ROOT}/ext4 {ROOT}/xfs {ROOT}/plain {ROOT}/lazy
truncate -s 96M {ROOT}/ext4.img {ROOT}/plain.img
truncate -s 320M {ROOT}/xfs.img {ROOT}/lazy.img
mke2fs -q -F -t ext4 -O quota,project -E quotatype=usrquota:prjquota {ROOT}/ext4.img
mke2fs -q -F -t ext4 -O ^quota,^project {ROOT}/plain.img
mkfs.xfs -q -f {ROOT}/xfs.img
mkfs.xfs -q -f {ROOT}/lazy.img
mount -o loop,usrquota,prjquota {ROOT}/ext4.img {ROOT}/ext4
mount -o loop,uquota,pquota {ROOT}/xfs.img {ROOT}/xfs
mount -o loop {ROOT}/plain.img {ROOT}/plain
mount -o loop {ROOT}/lazy.img {ROOT}/lazy
chmod 1777 {ROOT}/ext4 {ROOT}/xfs
"""
CLEAN = f"for name in ext4 xfs plain lazy; do umount {ROOT}/$name; done; rm -rf {ROOT}"

#: What each program begins with: the library, and a function that does something as another uid.
BEGIN = f"""
import errno, json, os, sys
sys.path.insert(0, {LIBRARY!r})
from _core import capacity, mounts, quota, quotable, quotaset, shares, sharesize
from _core.policy import Quota, Share
ROOT, STRANGER, KNOWN = {ROOT!r}, {STRANGER}, {KNOWN}

def as_uid(uid, function):
    '''Return the errno with which a function ends as that uid, 0 for none.'''
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
            function()
            code = 0
        except OSError as error:
            code = error.errno
        os.write(writer, str(code).encode()); os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    return int(os.read(reader, 16))

def fill(path, megabytes):
    def work():
        with open(path, 'wb', buffering=0) as file:
            for _ in range(megabytes):
                file.write(os.urandom(1 << 20))
    return work

def many(path, number):
    def work():
        for one in range(number):
            os.close(os.open(f'{{path}}-{{one}}', os.O_CREAT | os.O_WRONLY))
    return work

def reconcile(where, limits, **common):
    items = quotaset.reconcile(where, [quota.Wanted('known', KNOWN, limits)], project=True,
                               common=quotaset.Common(**common), places=[], check=False)
    return [item.as_dict() for item in items]

answer = {{}}
"""


def run(server: Server, program: str) -> dict[str, Any]:
    """Run a program on the machine as root; return what it put into ``answer``."""
    text = BEGIN + textwrap.dedent(program) + "\nprint(json.dumps(answer))\n"
    shown = server.root(f"python3 -I - <<'PROGRAM'\n{text}\nPROGRAM").out
    found: dict[str, Any] = json.loads(shown.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def loops(server: Server) -> Iterator[Server]:
    """Have four small file systems: two that hold quotas, and two that do not yet."""
    server.root(f"{CLEAN} 2>/dev/null || true")
    server.root(PREPARE)
    yield server
    server.root(CLEAN, check=False)


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_limits_hold_and_change_live_in_both_directions(loops: Server, fstype: str) -> None:
    seen = run(
        loops,
        f"""
        where = f'{{ROOT}}/{fstype}'
        small, large = Quota(0, 8 << 20, 0, 100), Quota(0, 24 << 20, 0, 100)
        answer['set'] = reconcile(where, small)
        answer['again'] = reconcile(where, small)
        answer['small'] = as_uid(KNOWN, fill(where + '/a', 12))
        answer['raised'] = reconcile(where, large)
        answer['large'] = as_uid(KNOWN, fill(where + '/a', 12))
        answer['lowered'] = reconcile(where, Quota(0, 4 << 20, 0, 100))
        answer['kept'] = os.stat(where + '/a').st_size
        answer['after'] = as_uid(KNOWN, fill(where + '/b', 1))
        answer['hard'] = quota.read(quota.device_of(where), quota.USER, KNOWN).quota.hard
        os.unlink(where + '/a')
        """,
    )
    assert [one["changed"] for one in seen["set"]] == [True, False]
    assert not any(one["changed"] for one in seen["again"])
    assert (seen["small"], seen["large"], seen["after"]) == (122, 0, 122)  # EDQUOT
    # Nothing is deleted; the warning names the user, and the limit is set.
    assert seen["kept"] == 12 << 20 and seen["hard"] == 4 << 20
    assert "known uses 12M of the homes, more than the new limit of 4M" in str(seen["lowered"][0]["notes"])


@pytest.mark.thorough
@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_the_number_of_files_is_limited(loops: Server, fstype: str) -> None:
    seen = run(
        loops,
        f"""
        where = f'{{ROOT}}/{fstype}'
        reconcile(where, Quota(0, 0, 0, 100))
        answer['before'] = quota.read(quota.device_of(where), quota.USER, KNOWN).inodes
        answer['within'] = as_uid(KNOWN, many(where + '/few', 90))
        answer['above'] = as_uid(KNOWN, many(where + '/more', 90))
        answer['there'] = len([name for name in os.listdir(where) if name.startswith(('few', 'more'))])
        answer['inodes'] = quota.read(quota.device_of(where), quota.USER, KNOWN).inodes
        for name in os.listdir(where):
            if name.startswith(('few', 'more')):
                os.unlink(where + '/' + name)
        """,
    )
    assert (seen["within"], seen["above"], seen["inodes"]) == (0, 122, 100)
    assert seen["before"] + seen["there"] == 100


@pytest.mark.thorough
def test_unknown_uids_have_the_default_of_xfs(loops: Server) -> None:
    seen = run(
        loops,
        """
        where, bounded = f'{ROOT}/xfs', Quota(0, 64 << 20, 0, 1000)
        first = reconcile(where, bounded, default=Quota(0, 8 << 20, 0, 50))
        answer['again'] = reconcile(where, bounded, default=Quota(0, 8 << 20, 0, 50))
        answer['first'] = first
        answer['stranger'] = as_uid(STRANGER, fill(where + '/s', 12))
        answer['files'] = as_uid(STRANGER + 1, many(where + '/f', 60))
        answer['known'] = as_uid(KNOWN, fill(where + '/k', 12))
        answer['root'] = as_uid(0, fill(where + '/r', 12))
        for name in os.listdir(where):
            os.unlink(where + '/' + name)
        reconcile(where, bounded)
        answer['without'] = as_uid(STRANGER + 2, fill(where + '/s', 12))
        try:
            reconcile(f'{ROOT}/ext4', bounded, default=Quota(0, 8 << 20, 0, 50))
        except Exception as error:
            answer['ext4'] = str(error)
        """,
    )
    assert seen["first"][1]["changed"] and not any(one["changed"] for one in seen["again"])
    assert (seen["stranger"], seen["files"], seen["known"], seen["root"]) == (122, 122, 0, 0)
    assert seen["without"] == 0
    assert "which has no default quota" in seen["ext4"]


@pytest.mark.thorough
@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_the_grace_is_set_and_the_time_left_is_known(loops: Server, fstype: str) -> None:
    seen = run(
        loops,
        f"""
        import time
        where = f'{{ROOT}}/{fstype}'
        answer['set'] = reconcile(where, Quota(2 << 20, 20 << 20, 0, 1000), grace_days=3)
        answer['again'] = reconcile(where, Quota(2 << 20, 20 << 20, 0, 1000), grace_days=3)
        answer['write'] = as_uid(KNOWN, fill(where + '/g', 4))
        os.sync()
        used = quota.read(quota.device_of(where), quota.USER, KNOWN)
        answer['left'] = used.space_until - time.time()
        os.unlink(where + '/g')
        """,
    )
    assert seen["set"][1]["changed"] and not any(one["changed"] for one in seen["again"])
    assert seen["write"] == 0
    assert 2.9 * 86400 < seen["left"] < 3.1 * 86400


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_a_share_has_a_size_and_df_shows_it(loops: Server, fstype: str) -> None:
    seen = run(
        loops,
        f"""
        where = f'{{ROOT}}/{fstype}/data'
        os.makedirs(where + '/vision', exist_ok=True)
        os.chmod(where, 0o755)
        fill(where + '/vision/old', 2)()
        share = Share('vision', 'admin', '', 16 << 20)
        def go(size):
            items = shares.reconcile(where, [Share('vision', 'admin', '', size)], mounted=False, check=False)
            return [item.as_dict() for item in items]
        answer['set'] = go(16 << 20)
        answer['again'] = go(16 << 20)
        os.sync()
        descriptor = os.open(where + '/vision', os.O_RDONLY)
        number = quota.get_project(descriptor)[0]
        answer['number'] = number
        answer['old'] = quota.read(quota.device_of(where), quota.PROJECT, number).used
        seen = os.statvfs(where + '/vision')
        answer['df'] = seen.f_frsize * seen.f_blocks
        os.chmod(where + '/vision', 0o777)
        answer['write'] = as_uid(STRANGER, fill(where + '/vision/new', 20))
        answer['lowered'] = go(8 << 20)
        answer['off'] = go(0)
        seen = os.statvfs(where + '/vision')
        answer['df_off'] = seen.f_frsize * seen.f_blocks
        """,
    )
    assert seen["set"][0]["changed"] and not seen["again"][0]["changed"]
    # What was there before counts, too.
    assert seen["number"] >= 100_000 and seen["old"] >= 2 << 20
    assert seen["df"] == 16 << 20 and seen["df_off"] > 16 << 20
    assert seen["write"] in (28, 122)  # ENOSPC is how XFS and ext4 answer for a project
    assert "more than its new size of 8M" in str(seen["lowered"][0]["notes"])


@pytest.mark.thorough
def test_what_cannot_hold_quotas_is_explained_and_then_made_able(loops: Server) -> None:
    program = """
        def why(name):
            mount = mounts.at(f'{ROOT}/{name}', mounts.read())
            features = frozenset()
            if mount.fstype == 'ext4':
                import subprocess
                shown = subprocess.run(['dumpe2fs', '-h', mount.source], capture_output=True, text=True)
                (line,) = [one for one in shown.stdout.splitlines() if one.startswith('Filesystem fea')]
                features = frozenset(line.split(':', 1)[1].split())
            counts = bool(quota.enforced(mount.source))
            seen = quotable.Found(mount.fstype, mount.source, mount.point, features, counts)
            found = quotable.obstacle(seen)
            return None if found is None else {'reason': found.reason, 'commands': list(found.commands)}
        for name in ('ext4', 'xfs', 'plain', 'lazy'):
            answer[name] = why(name)
        """
    seen = run(loops, program)
    assert seen["ext4"] is None and seen["xfs"] is None
    assert "ext4 without project and quota" in seen["plain"]["reason"]
    assert "mounted without uquota,pquota" in seen["lazy"]["reason"]
    # The commands are those that IT would run; of a loop file, the mount is by the file.
    device = loops.root(f"findmnt -no SOURCE {ROOT}/plain").out
    middle = [one for one in seen["plain"]["commands"] if not one.startswith(("umount", "mount"))]
    assert len(middle) == 2 and all(one.endswith(device) for one in middle)
    able = " && ".join(middle).replace(device, f"{ROOT}/plain.img").replace("e2fsck -f", "e2fsck -fy")
    again = "mount -o loop,usrquota,prjquota plain.img plain && mount -o loop,uquota,pquota lazy.img lazy"
    loops.root(f"umount {ROOT}/plain {ROOT}/lazy && cd {ROOT} && {able} && {again}")
    after = run(loops, program)
    assert after["plain"] is None and after["lazy"] is None


def test_writable_layers_are_bounded_on_dockers_disk(server: Server) -> None:
    limit = server.limits("alice")["layers_size"]
    assert limit > 0
    failed = server.inside(
        "my-thesis", ALICE, f"dd if=/dev/zero of=/var/tmp/big bs=1M count={(limit >> 20) + 64}", check=False
    )
    used = run(
        server,
        f"""
        used = quota.read(quota.device_of('/var/lib/docker'), quota.USER, {ALICE})
        answer['used'], answer['hard'] = used.used, used.quota.hard
        """,
    )
    server.inside("my-thesis", ALICE, "rm -f /var/tmp/big")
    assert failed.rc != 0 and FULL in failed.err
    assert used["hard"] == limit and used["used"] <= limit


@pytest.mark.thorough
def test_usage_and_images_are_shown_and_promises_are_compared(server: Server) -> None:
    told = json.loads(server.user("alice", "workspace usage --json").out)
    assert told["images"] > 0 and told["images_limit"] > 0
    assert told["layers_limit"] == server.limits("alice")["layers_size"]
    seen = run(
        server,
        """
        from _core import policy, storage
        made = policy.load()
        there = storage.spaces(made, mounts.read())
        answer['capacity'] = [capacity.shown(one) for one in capacity.survey(made, there)]
        """,
    )
    by_role = {one["role"]: one for one in seen["capacity"]}
    users = json.loads(server.root("cat /etc/lab-server/policy.json").out)["users"]
    assert by_role["home"]["promised"] == sum(user["quota"]["hard"] for user in users)
    assert all(one["level"] in ("ok", "unbounded", "overcommitted") for one in by_role.values())


def test_a_full_disk_refuses_builds_and_launches_and_says_who_to_ask(server: Server) -> None:
    # The watermark is lowered below what is in use, instead of a disk being filled.
    place = "/etc/lab-server/policy.json"
    lower = (
        f"python3 -c \"import json; p = json.load(open('{place}')); "
        "p['watermarks'].update(warn=1, refuse=1, contact='the-lab-desk'); "
        f"json.dump(p, open('{place}', 'w'))\""
    )
    server.root(f"cp -a {place} {place}.kept && {lower}")
    try:
        asked = "project init watermark && image-update watermark"
        failed = server.user("alice", asked, check=False)
    finally:
        server.root(f"mv {place}.kept {place}; rm -rf /home/.workspaces/alice/watermark")
    assert failed.rc != 0
    assert "from 1 % on nothing new is begun" in failed.text and "the-lab-desk" in failed.text
    assert "Traceback" not in failed.text
