"""The power goes while something is done: no file is lost, and the same once more does it (D4, E6, H3).

A boot takes an emulated machine a minute and more, so these tests are for ``make test-all``, which sets
LAB_TEST_POWER_CUTS. They have a user of their own, frank, who has left at their end, and the shared data move
to the machine's spare disk and back.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest
from conftest import ALICE, INVENTORY, ROOT, PlayOutcome, Server
from test_60_desired_state import variables
from test_80_reboot import reachable

Play = Callable[..., PlayOutcome]

pytestmark = pytest.mark.skipif(
    not os.environ.get("LAB_TEST_POWER_CUTS"), reason="takes a quarter of an hour; make test-all runs it"
)

FRANK = 2006
WORKSPACE = "/home/.workspaces/frank"
SUMS = "find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"
DIRECTORY = "/home/.offboarded"
MOVE = "/var/lib/lab-server/data-move"
FLOWERS = "/home/carol/workspace/flowers"
DATASET = "/srv/data/datasets/flowers"
PUBLISH = (
    f"lab share publish datasets flowers --from {FLOWERS} --source doi:10.5072/example --licence CC0-1.0"
)


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Return a function that gives the argument of a play in which frank has that many MiB."""
    file = tmp_path_factory.mktemp("variables") / "frank.json"

    def arguments(megabytes: int) -> str:
        written = variables()
        quota = {"soft": f"{megabytes - 10}m", "hard": f"{megabytes}m"}
        frank = {"name": "frank", "uid": FRANK, "group": "students", "quota": quota}
        more = {"lab_backup": {"repository": "/backup"}, "backup_password": "0123456789abcdef" * 4}
        file.write_text(json.dumps({"lab_users": [*written["lab_users"], frank], **more}), encoding="utf-8")
        return f"@{file}"

    return arguments


@pytest.fixture(scope="module")
def files(server: Server, play: Play, inventory: Callable[..., str]) -> str:
    """Make frank and 60 MiB of files in his project; return the sum of their checksums."""
    server.root("mkdir -p -m 700 /backup")
    done = play("--tags", "users,commands,backup", "-e", inventory(200))
    assert done.rc == 0, done.text[-3000:]
    server.user(
        "frank",
        "mkdir -p ~/workspace/work/deep && cd ~/workspace/work && printf 'FROM lab/debian\n' > Dockerfile && "
        "head -c 40000000 /dev/urandom > large && head -c 20000000 /dev/urandom | split -b 50000 - deep/part-"
        " && sync",
    )
    return sums(server)


def sums(server: Server) -> str:
    """Return the checksum of the checksums of frank's project."""
    return server.root(f"cd {WORKSPACE}/work && {SUMS}").out


@contextmanager
def playing(*arguments: str, playbook: str = "lab.server.site") -> Iterator[Path]:
    """Run a play beside the test; yield the file of its output, and kill what is left of it at the end."""
    log = ROOT / ".vm" / "logs" / "power-cut.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(Path(sys.executable).with_name("ansible-playbook")), playbook, "-i", str(INVENTORY)]
    environment = {
        **os.environ,
        "ANSIBLE_HOME": str(ROOT / ".ansible"),
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield log
        finally:
            process.kill()
            process.wait()


def cut(server: Server, machine: Callable[..., None], begun: Callable[[], bool], what: str) -> None:
    """Pull the plug as soon as something has begun, and boot again."""
    end = time.monotonic() + 300
    while not begun():
        assert time.monotonic() < end, f"not begun within 300 s: {what}"
        time.sleep(0.2)
    machine("down")
    machine("start")
    server.wait(lambda: reachable(server), "ssh answers after the power cut", 400)
    # What the boot unit does is over before the next step, as it would be for a person.
    server.wait(
        lambda: server.root("systemctl is-system-running", check=False).out in ("running", "degraded"),
        "the machine has booted",
        400,
    )


def there(server: Server, folders: str, *tests: str) -> bool:
    """Tell whether a file is found below some folders, of which each may be missing."""
    found = server.root(f"find {folders} -type f {' '.join(tests)} -print -quit 2>/dev/null", check=False)
    return bool(found.out)


def hard(server: Server) -> int:
    """Return frank's hard limit in MiB, as the kernel has it."""
    return int(server.root(f"repquota -u -n -p /home | awk '$1 == \"#{FRANK}\" {{print $5}}'").out) >> 10


def nothing_changes(play: Play, arguments: Sequence[str], playbook: str = "lab.server.site") -> None:
    """Hold a play to its being done."""
    again = play(*arguments, playbook=playbook)
    assert again.rc == 0 and again.count("changed") == 0, again.text[-3000:]


def test_during_a_change_of_a_quota(
    server: Server,
    play: Play,
    machine: Callable[..., None],
    inventory: Callable[..., str],
    files: str,
) -> None:
    assert hard(server) == 200
    arguments = ("--tags", "users", "-e", inventory(240))
    with playing(*arguments) as log:
        # The kernel has the new limit, and nobody has told the play so yet, or it is a moment before.
        cut(
            server, machine, lambda: "[lab.server.users : " in log.read_text() and hard(server) == 240, "play"
        )
    assert hard(server) in (200, 240)
    assert sums(server) == files
    done = play(*arguments)
    assert done.rc == 0, done.text[-3000:]
    assert hard(server) == 240
    nothing_changes(play, arguments)


def test_while_a_project_is_archived(server: Server, machine: Callable[..., None], files: str) -> None:
    command = "runuser -l frank -c 'project archive work --yes'"
    server.root(f"systemd-run --quiet --unit=cut-archive bash -c {shlex.quote(command)}")
    begun = ("-name '*.part'", "-size +500k")
    cut(server, machine, lambda: there(server, f"{WORKSPACE}/.archive", *begun), "an archive")
    assert sums(server) == files
    server.user("frank", "project archive work --yes")
    assert server.root(f"ls -A {WORKSPACE}/.archive").out.endswith(".tar.gz")
    assert server.root(f"test -e {WORKSPACE}/work", check=False).rc != 0
    server.user("frank", "project restore work --yes")
    assert sums(server) == files


def test_while_a_user_is_backed_up(server: Server, machine: Callable[..., None], files: str) -> None:
    server.root("systemd-run --quiet --unit=cut-backup lab backup frank")
    begun = ("-path '*/frank/data/*'", "-size +500k")
    cut(server, machine, lambda: there(server, "/backup", *begun), "a backup")
    assert sums(server) == files
    server.root("lab backup frank")
    assert "frank" in server.root("lab drill frank").out
    server.root("rm -rf /root/restored && lab restore frank work --to /root/restored")
    restored = server.root(f"cd $(dirname $(find /root/restored -name Dockerfile)) && {SUMS}").out
    assert restored == files
    server.root("rm -rf /root/restored")


@pytest.fixture
def flowers(server: Server) -> Iterator[None]:
    """Let carol have published a small version of a dataset, and a large one be ready."""
    server.user("carol", f"mkdir -p {FLOWERS} && cd {FLOWERS} && echo 1,2 > few && {PUBLISH} --version 1.0")
    server.user("carol", f"cd {FLOWERS} && head -c 60000000 /dev/urandom | split -b 50000 - part- && sync")
    yield
    server.root(
        f"rm -rf {DATASET} /srv/data/datasets/CATALOGUE.md /srv/data/datasets/.publish.lock; "
        f"runuser -u carol -- rm -rf {FLOWERS}"
    )


def test_while_a_dataset_is_published(server: Server, machine: Callable[..., None], flowers: None) -> None:
    source = server.root(f"cd {FLOWERS} && {SUMS}").out
    whole = f"cd {DATASET}/current && sha256sum --check --quiet MANIFEST.sha256 && readlink {DATASET}/current"
    command = f"runuser -l carol -c '{PUBLISH} --version 2.0'"
    server.root(f"systemd-run --quiet --unit=cut-publish bash -c {shlex.quote(command)}")
    cut(
        server,
        machine,
        lambda: there(server, DATASET, "-path '*/.incoming-*'", "-name 'part-*'"),
        "publishing",
    )
    assert server.root(f"cd {FLOWERS} && {SUMS}").out == source
    # The version that was there is there, whole, and nothing of the new one has a name.
    assert server.user("alice", whole).out == "1.0"
    assert server.root(f"ls {DATASET}").out.split() == ["1.0", "current"]
    done = server.user("carol", f"{PUBLISH} --version 2.0 && lab share verify datasets flowers")
    assert "flowers 2.0 is as it was published." in done.out
    assert server.user("alice", whole).out == "2.0"
    assert server.root(f"ls -A {DATASET}").out.split() == ["1.0", "2.0", "current"]


def data(server: Server) -> str:
    """Return the checksum of the checksums, owners and modes of the shared data, and of their ACLs."""
    return server.root(
        "cd /srv/data && { find . -path ./lost+found -prune -o -printf '%p %U %G %m %y %l\\n' | sort; "
        "find . -type f -print0 | sort -z | xargs -0 -r sha256sum; find . -path ./lost+found "
        "-prune -o ! -type l -print0 | sort -z | xargs -0 getfacl -n 2>/dev/null; } | sha256sum"
    ).out


def disk(server: Server, path: str) -> str:
    """Return the disk that is mounted at a path, by the name that the inventory has for it."""
    source = server.root(f"findmnt -n -o SOURCE {path}").out
    return server.root(f"find /dev/disk/by-id -lname '*/{Path(source).name}' -name 'virtio-lab-*'").out


def running(server: Server, name: str) -> bool:
    """Tell whether a container runs."""
    return server.root(f"docker ps -q --filter name=^{name}$", check=False).out != ""


def test_while_the_shared_data_move(server: Server, play: Play, machine: Callable[..., None]) -> None:
    server.root(
        "mkdir -p /srv/data/datasets/cut/deep && cd /srv/data/datasets/cut && chown :students deep && "
        "chmod 2770 deep && head -c 90000000 /dev/urandom | split -b 900000 - deep/part- && "
        "ln deep/part-aa again && ln -s deep/part-ab link && "
        'python3 -c \'import os; os.setxattr("again", "user.note", b"kept")\' && sync'
    )
    before = data(server)
    server.user("alice", "project launch my-thesis --detach")
    container = f"my-thesis._.{ALICE}"
    filesystems = variables()["lab_filesystems"]
    old = filesystems["data"]["device"]
    new = "/dev/disk/by-id/virtio-lab-spare"
    declared = {**filesystems, "data": {"device": new, "fstype": "ext4", "create": True}}
    arguments = ("-e", json.dumps({"lab_filesystems": declared}))
    move = "lab.server.move_data"

    # Everybody works on while all is copied, so the old disk is in use after the cut.
    with playing(*arguments, playbook=move):
        cut(server, machine, lambda: there(server, f"{MOVE}/new", "-size +500k"), "a copy of the data")
    server.wait(lambda: running(server, container), "alice's container runs", 300)
    assert disk(server, "/srv/data") == old and data(server) == before

    # The old file system is read-only from the pause on; so the power goes there, or a moment later.
    with playing(*arguments, playbook=move):
        paused = "findmnt -n -o OPTIONS /srv/data | grep -q ^ro"
        cut(server, machine, lambda: server.root(paused, check=False).rc == 0, "the pause of a move")
    assert disk(server, "/srv/data") in (old, new) and data(server) == before

    done = play(*arguments, playbook=move)
    assert done.rc == 0, done.text[-3000:]
    assert disk(server, "/srv/data") == new and data(server) == before
    assert disk(server, f"{MOVE}/old") == old
    server.wait(lambda: running(server, container), "alice's container runs", 300)
    assert server.inside("my-thesis", ALICE, "ls /srv/data/datasets/cut").out
    nothing_changes(play, arguments, move)

    # And back: the one that was left is only brought up to date.
    done = play(*arguments, "-e", "data_move_release=true", playbook=move)
    assert done.rc == 0, done.text[-3000:]
    done = play(playbook=move)
    assert done.rc == 0, done.text[-3000:]
    assert disk(server, "/srv/data") == old and data(server) == before
    done = play("-e", "data_move_release=true", playbook=move)
    assert done.rc == 0, done.text[-3000:]
    assert server.root(f"findmnt {MOVE}/old", check=False).rc != 0
    server.root("rm -r /srv/data/datasets/cut")


def test_while_a_leaving_users_files_are_archived(
    server: Server,
    play: Play,
    machine: Callable[..., None],
    files: str,
) -> None:
    settings = {"lab_user": "frank", "offboarding_keep_days": 0}
    arguments = ("-e", json.dumps(settings))
    with playing(*arguments, playbook="lab.server.offboard"):
        begun = ("-name '.frank*.part'", "-size +500k")
        cut(server, machine, lambda: there(server, DIRECTORY, *begun), "an archive of a user who leaves")
    assert sums(server) == files
    done = play(*arguments, playbook="lab.server.offboard")
    assert done.rc == 0, done.text[-3000:]
    assert not there(server, DIRECTORY, "-name '*.part'")
    assert sums(server) == files
    nothing_changes(play, arguments, "lab.server.offboard")
    server.root(
        f"mkdir -m 700 /root/left && tar xzf {DIRECTORY}/frank-{FRANK}-workspace.tar.gz -C /root/left"
    )
    unpacked = server.root(f"cd $(dirname $(find /root/left -path '*work/Dockerfile')) && {SUMS}").out
    assert unpacked == files
    server.root("rm -rf /root/left")


def test_while_a_user_is_purged(server: Server, play: Play, machine: Callable[..., None], files: str) -> None:
    before = server.root(f"cd {DIRECTORY} && sha256sum frank-{FRANK}-*").out
    settings = {"lab_user": "frank", "offboarding_keep_days": 0, "offboarding_purge": True}
    arguments = ("-e", json.dumps(settings))
    with playing(*arguments, playbook="lab.server.offboard"):
        gone = f"test -e {WORKSPACE}/work/large"
        cut(server, machine, lambda: server.root(gone, check=False).rc != 0, "a purge")
    done = play(*arguments, playbook="lab.server.offboard")
    assert done.rc == 0, done.text[-3000:]
    assert server.root("getent passwd frank", check=False).rc != 0
    assert not there(server, f"{WORKSPACE} /home/frank")
    assert server.root(f"cd {DIRECTORY} && sha256sum frank-{FRANK}-*").out == before
    nothing_changes(play, arguments, "lab.server.offboard")
