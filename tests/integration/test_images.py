"""Images on a real engine: when they are built, what a failed build leaves, and what no build may see."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    asuser,
    baseimages,
    collecting,
    containers,
    context,
    freeze,
    images,
    imagesizes,
    report,
    taken,
    watermarks,
)
from ansible_collections.lab.server.plugins.module_utils._core.baseimages import WantedBaseImage
from ansible_collections.lab.server.plugins.module_utils._core.diskrules import DiskRules
from ansible_collections.lab.server.plugins.module_utils._core.engine import DOCKER
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    EngineError,
    HostError,
    InvalidInput,
    LabError,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.images import WantedImage


def test_built_once(engine, policy, alice, thesis):
    promise = images.build(engine, policy, alice, "thesis", check=True)
    assert images.project_images(engine) == {}
    lines = []
    deed = images.build(engine, policy, alice, "thesis", progress=lines.append)
    assert deed == promise
    assert deed.changed
    assert any(line.startswith("Step 1/") for line in lines)
    again = images.build(engine, policy, alice, "thesis")
    assert not again.changed
    assert again.facts == deed.facts
    assert engine.inspect_image(deed.facts["image"])["Id"] == engine.inspect_image("lab/2001/thesis")["Id"]


def test_what_the_fingerprint_covers(engine, policy, alice, thesis, tiny):
    thesis.write(".dockerignore", "data\n")
    images.build(engine, policy, alice, "thesis")

    def changed() -> bool:
        return images.build(engine, policy, alice, "thesis", check=True).changed

    thesis.write("data/raw", "much\n")
    os.utime(thesis.path / "word", (1, 1))
    assert not changed()
    (thesis.path / "word").chmod(0o755)
    assert changed()
    (thesis.path / "word").chmod(0o644)
    assert not changed()
    # What no instruction takes is no part of the image.
    thesis.write("new", "")
    assert not changed()
    thesis.write("Dockerfile", f"FROM {tiny}\nCOPY . /all\n")
    images.build(engine, policy, alice, "thesis")
    thesis.write("new", "more\n")
    assert changed()
    thesis.write("new", "")
    assert images.build(engine, policy, alice, "thesis", check=True, build_args={"A": "b"}).changed
    assert not changed()


CONTEXT = (
    ".hidden",
    "a b",
    "data/raw/1",
    "main.py",
    "requirements.txt",
    "src/lib/deep.py",
    "src/code.py",
    "src/notes.txt",
    "srcs/x",
)


@pytest.mark.parametrize(
    ("lines", "exact"),
    [
        ("COPY requirements.txt /got/", True),
        ("COPY ./requirements.txt /main.py /got/", True),
        ("ADD src /got/", True),
        ("COPY src/ /got/src/\nCOPY *.txt /got/", True),
        ("COPY src/*.py /got/", True),
        ("COPY src? sr?s/* /got/", True),
        ("COPY * /got/", True),
        ("COPY s*/code.py data//raw/. /got/", True),
        ('COPY ["a b", "main.py", "/got/"]', True),
        ("COPY . /got/", True),
        ("COPY --chown=1:1\tmain.py\t/got/", True),
        ("COPY link /got/", False),
        ("COPY src/../main.py /got/", False),
        ("COPY [a-m]* /got/", False),
        ('COPY "main.py" /got/', False),
        ("ARG A=main.py\nCOPY $A /got/", False),
    ],
)
def test_what_counts_is_what_the_builder_takes(
    engine, policy, alice, thesis, tiny, docker, url, lines, exact
):
    """Each file says its own name, so the image tells which of them the builder took."""
    for name in CONTEXT:
        thesis.write(name, name)
    (thesis.path / "link").symlink_to("src")
    dockerfile = f"FROM {tiny}\n{lines}\n"
    thesis.write("Dockerfile", dockerfile)
    images.build(engine, policy, alice, "thesis")
    made = docker("create", "lab/2001/thesis", "true").strip()
    try:
        copied = subprocess.run(
            [DOCKER, "-H", url, "cp", f"{made}:/got", "-"], capture_output=True, check=True
        ).stdout
    finally:
        docker("rm", made)
    with tarfile.open(fileobj=io.BytesIO(copied)) as archive:
        took = {archive.extractfile(one).read().decode() for one in archive if one.isreg()} & set(CONTEXT)
    assert took
    who = asuser.identity(policy, alice)
    with context.packed(who, policy.workspace(alice), "thesis") as packed:
        counted = {member.path for member in taken.taken(packed.members, dockerfile)} & set(CONTEXT)
    assert took <= counted
    assert counted == (took if exact else set(CONTEXT))


def test_files_that_go_back_need_no_build(engine, policy, alice, thesis):
    first = images.build(engine, policy, alice, "thesis")
    thesis.write("word", "two\n")
    images.build(engine, policy, alice, "thesis")
    thesis.write("word", "one\n")
    lines = []
    back = images.build(engine, policy, alice, "thesis", progress=lines.append)
    assert back.changed
    assert lines == []
    assert back.facts == first.facts


def test_a_broken_dockerfile_keeps_the_old_image(engine, policy, alice, thesis, tiny, docker):
    images.build(engine, policy, alice, "thesis")
    before = engine.inspect_image("lab/2001/thesis")["Id"]
    dangling = set(docker("images", "-aq").split())
    thesis.write("Dockerfile", f"# note\nFROM {tiny}\n\nRUN touch /made \\\n  && true\nRUN false\n")
    with pytest.raises(EngineError, match=r"line 6 of its Dockerfile \(RUN false\)"):
        images.build(engine, policy, alice, "thesis")
    assert engine.inspect_image("lab/2001/thesis")["Id"] == before
    assert set(docker("images", "-aq").split()) == dangling
    assert docker("ps", "-aq") == ""
    launched = containers.launch(engine, policy, alice, "thesis")
    assert "older one" in launched.facts["notes"][0]


def test_an_instruction_that_is_none(engine, policy, alice, thesis, tiny):
    thesis.write("Dockerfile", f"FROM {tiny}\nRUNN true\n")
    with pytest.raises(EngineError, match="line 2"):
        images.build(engine, policy, alice, "thesis")


def test_a_missing_base_is_told(engine, policy, alice, thesis, tiny):
    thesis.write("Dockerfile", "FROM lab/nothing\n")
    with pytest.raises(EngineError, match=f"lab/nothing.*Base images here: {tiny}"):
        images.build(engine, policy, alice, "thesis")


@pytest.mark.parametrize(
    "line",
    [
        "FROM lab/2002/net",
        "FROM docker.io/lab/2002/net:latest",
        "ARG X=2002\nFROM lab/${X}/net",
        "FROM lab-test/tiny\nCOPY --from=lab/2002/net /word /stolen",
        "FROM lab-test/tiny\nCOPY --FROM=lab/2002/net /word /stolen",
        "FROM lab-test/tiny AS a\nFROM a\nONBUILD COPY --from=lab/2002/net /word /stolen",
    ],
)
def test_no_image_of_another_user(engine, policy, alice, bob, thesis, tiny, line, project_of):
    net = project_of(bob, "net")
    net.write("Dockerfile", f"FROM {tiny}\nCOPY word /word\n")
    net.write("word", "bob's\n")
    images.build(engine, policy, bob, "net")
    thesis.write("Dockerfile", f"{line}\n")
    # InvalidInput: a line that builders may read in more than one way is refused as such.
    with pytest.raises((Refused, InvalidInput)):
        images.build(engine, policy, alice, "thesis")
    assert (2001, "thesis") not in images.project_images(engine)


def test_no_image_by_its_id(engine, policy, alice, bob, thesis, tiny):
    image = engine.inspect_image(tiny)["Id"]
    for name in (image, image[7:], image[7:19], image[7:8]):
        thesis.write("Dockerfile", f"FROM {name}\n")
        with pytest.raises(Refused, match="id of an image"):
            images.build(engine, policy, alice, "thesis")


def test_own_image_and_stages(engine, policy, alice, thesis, tiny, project_of):
    thesis.write(
        "Dockerfile",
        f"FROM {tiny} AS one\nRUN touch /made\nFROM {tiny}\n"
        "COPY --from=one /made /made\nCOPY --from=0 /made /again\n",
    )
    assert images.build(engine, policy, alice, "thesis").changed

    project_of(alice, "next").write("Dockerfile", "FROM lab/2001/thesis\n")
    assert images.build(engine, policy, alice, "next").changed


@pytest.mark.parametrize("kind", ["link", "fifo", "folder", "huge", "binary", "missing", "folder-link"])
def test_a_dockerfile_that_is_none(engine, policy, alice, thesis, kind):
    path = thesis.path / "Dockerfile"
    path.unlink()
    if kind == "link":
        path.symlink_to("/etc/shadow")
    elif kind == "fifo":
        os.mkfifo(path)
        os.chown(path, 2001, 2001)
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        path.touch()
        os.truncate(path, 1 << 40)
    elif kind == "binary":
        path.write_bytes(bytes(range(256)))
    elif kind == "folder-link":
        thesis.path.rename(thesis.path.parent / "elsewhere")
        thesis.path.symlink_to("elsewhere")
    with pytest.raises((InvalidInput, NotFound)) as caught:
        images.build(engine, policy, alice, "thesis")
    assert "root:" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_and_others_in_the_context(engine, policy, alice, bob, thesis, tiny, inside, root):
    secret = root / "home/.workspaces/bob/secret"
    secret.write_text("bob's")
    os.chown(secret, 2002, 2002)
    (thesis.path / "stolen").symlink_to(secret)
    (thesis.path / "shadow").symlink_to("/etc/shadow")
    (thesis.path / "folder").symlink_to("/root")
    os.mkfifo(thesis.path / "fifo")
    thesis.write("Dockerfile", f"FROM {tiny}\nCOPY . /all/\n")
    containers.launch(engine, policy, alice, "thesis")
    shown = inside(alice, "thesis", "ls /all; ls -ld /all/stolen; cat /all/shadow /all/stolen 2>&1 || true")
    assert "fifo" not in shown
    assert "-> " in shown
    assert "No such file" in shown
    assert "bob's" not in shown


def test_a_file_that_the_user_may_not_read(engine, policy, alice, thesis):
    (thesis.path / "closed").write_text("root's own")
    (thesis.path / "closed").chmod(0o600)
    with pytest.raises(LabError, match="closed: permission denied"):
        images.build(engine, policy, alice, "thesis")
    thesis.write(".dockerignore", "closed\n")
    assert images.build(engine, policy, alice, "thesis").changed


def test_too_large(engine, policy, alice, thesis):
    (thesis.path / "big").touch()
    os.truncate(thesis.path / "big", 1 << 40)
    with pytest.raises(Refused, match="dockerignore"):
        images.build(engine, policy, alice, "thesis")


def test_labels_of_the_dockerfile_do_not_count(engine, policy, alice, thesis, tiny):
    thesis.write("Dockerfile", f'FROM {tiny}\nLABEL lab.server.owner="2002" lab.server.fingerprint="x"\n')
    result = images.build(engine, policy, alice, "thesis")
    image = images.project_images(engine)[2001, "thesis"]
    assert image.fingerprint == result.facts["fingerprint"]


def test_list(engine, policy, alice, thesis):
    wanted = [WantedImage("alice", "gone"), WantedImage("alice", "thesis"), WantedImage("nobody", "x")]
    results = images.reconcile_images(engine, policy, wanted, check=False)
    assert [result.failed for result in results] == [True, False, True]
    assert results[1].changed
    # The folder of a declared project may not be there yet when a play is checked.
    results = images.reconcile_images(engine, policy, wanted[:2], check=True)
    assert [result.failed for result in results] == [False, False]
    assert [result.changed for result in results] == [True, False]


# A context that is not read again


def test_an_unchanged_context_is_not_read(engine, policy, alice, thesis, monkeypatch):
    for number in range(100):
        thesis.write(f"src/{number}.py", f"{number}\n")
    thesis.write("Dockerfile", "FROM lab-test/tiny\nCOPY src /src\n")
    # Older than two seconds, so that a change would show.
    time.sleep(2.1)
    first = images.build(engine, policy, alice, "thesis")
    reads = []
    packed = context.packed
    monkeypatch.setattr(context, "packed", lambda *place, **how: (reads.append(1), packed(*place, **how))[1])
    for check in (True, False):
        again = images.build(engine, policy, alice, "thesis", check=check)
        assert not again.changed
        assert again.facts == first.facts
    assert reads == []
    # Same size and time: only the kernel's own time of change tells.
    path = thesis.path / "src/7.py"
    status = path.stat()
    path.write_text("8\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert images.build(engine, policy, alice, "thesis", check=True).changed
    assert len(reads) == 1
    # A file that no instruction takes is read once, and is then known to change nothing.
    path.write_text("7\n")
    thesis.write("result", "saved\n")
    time.sleep(2.1)
    for number in (2, 2):
        assert not images.build(engine, policy, alice, "thesis").changed
        assert len(reads) == number


def test_another_base_image_is_seen_without_reading(engine, policy, alice, thesis, docker, file_system):
    docker("import", "-", "lab-test/moving", input=file_system())
    thesis.write("Dockerfile", "FROM lab-test/moving\n")
    time.sleep(2.1)
    images.build(engine, policy, alice, "thesis")
    assert not images.build(engine, policy, alice, "thesis").changed
    docker("import", "-c", "ENV A=b", "-", "lab-test/moving", input=file_system())
    assert images.build(engine, policy, alice, "thesis", check=True).changed
    docker("rmi", "-f", "lab-test/moving")


def test_a_full_disk_keeps_the_old_image(engine, policy, alice, thesis, root):
    images.build(engine, policy, alice, "thesis")
    before = engine.inspect_image("lab/2001/thesis")["Id"]
    thesis.write("big", "x" * 4_000_000)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "none", str(root / "state/tmp")], check=True
    )
    try:
        with pytest.raises(HostError, match="disk of the server is full"):
            images.build(engine, policy, alice, "thesis")
    finally:
        subprocess.run(["umount", str(root / "state/tmp")], check=True)
    assert engine.inspect_image("lab/2001/thesis")["Id"] == before
    assert os.listdir(root / "state/tmp") == []


def test_above_its_limit_an_image_is_refused_before_a_name_moves(engine, policy, alice, thesis, docker, tiny):
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN dd if=/dev/zero of=/one bs=1024 count=3072\n")
    images.build(engine, policy, alice, "thesis")
    held = imagesizes.held(engine, policy, alice)
    # The base image is nobody's own, and what was written is.
    assert 3 << 20 <= held.size < 4 << 20
    bounded = replace(alice, limits=replace(alice.limits, images_size=5 << 20))
    before = engine.inspect_image("lab/2001/thesis")["Id"]
    there = set(docker("images", "-aq").split())
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN dd if=/dev/zero of=/two bs=1024 count=4096\n")
    with pytest.raises(Refused, match=r"would hold 7M together, and may hold 5M: the new one was not kept"):
        images.build(engine, policy, bounded, "thesis")
    assert engine.inspect_image("lab/2001/thesis")["Id"] == before
    assert set(docker("images", "-aq").split()) == there
    # Of two images that share a step, the step counts once.
    shared = f"FROM {tiny}\nRUN dd if=/dev/zero of=/one bs=1024 count=3072\nRUN touch /more\n"
    thesis.write("Dockerfile", shared)
    assert images.build(engine, policy, bounded, "thesis").changed
    assert imagesizes.held(engine, policy, bounded).size < 4 << 20
    assert (
        imagesizes.by_owner(engine, policy, engine.images())[2001]
        == imagesizes.held(engine, policy, alice).size
    )
    # A base image that has another name by now is nobody's own all the same.
    unnamed = replace(policy, base_images=())
    assert imagesizes.held(engine, unnamed, bounded).size < 4 << 20
    full = replace(alice, limits=replace(alice.limits, images_size=2 << 20))
    thesis.write("word", "two\n")
    thesis.write("Dockerfile", f"FROM {tiny}\nCOPY word /word\n")
    with pytest.raises(
        Refused, match=r"nothing was built\. Older images that can go: image remove thesis --to"
    ):
        images.build(engine, policy, full, "thesis")


def test_a_disk_above_its_watermark_begins_nothing(engine, policy, alice, thesis, root):
    images.build(engine, policy, alice, "thesis")
    full = replace(policy, docker_root=str(root), disks=DiskRules(warn=0, refuse=0, contact="the desk"))
    # What needs nothing new is no build.
    assert not images.build(engine, full, alice, "thesis").changed
    thesis.write("word", "two\n")
    with pytest.raises(Refused, match=r"from 0 % on nothing new is begun\..* Ask the desk"):
        images.build(engine, full, alice, "thesis")
    with pytest.raises(Refused, match="from 0 % on nothing new is begun"):
        containers.launch(engine, full, alice, "thesis")
    warned = replace(full, disks=DiskRules(warn=0, refuse=100, contact="the desk"))
    assert any(
        "Ask the desk for more" in note
        for note in images.build(engine, warned, alice, "thesis").facts["notes"]
    )


def test_a_build_that_has_to_end_keeps_the_old_image_and_names_the_line(
    engine, policy, alice, thesis, tiny, monkeypatch
):
    images.build(engine, policy, alice, "thesis")
    before = engine.inspect_image("lab/2001/thesis")["Id"]
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN sleep 120\n")
    monkeypatch.setattr(watermarks, "watch", lambda _policy: "it was stopped, as the disk was full")
    with pytest.raises(
        EngineError, match=r"line 2 of its Dockerfile \(RUN sleep 120\) failed: it was stopped"
    ):
        images.build(engine, policy, alice, "thesis")
    assert engine.inspect_image("lab/2001/thesis")["Id"] == before
    assert engine.containers() == []


def test_what_builds_left_is_collected(engine, policy, alice, thesis, docker, tiny):
    for word in ("one", "two", "three"):
        thesis.write("word", word)
        images.build(engine, replace(policy, images_keep=9), alice, "thesis")
    few = replace(policy, images_keep=2)
    # As a build leaves it that was killed.
    classic = {**os.environ, "DOCKER_BUILDKIT": "0"}
    docker("build", "-q", "-", input=f"FROM {tiny}\nRUN touch /left\n".encode(), env=classic)
    now = time.time()
    told = collecting.collect(engine, few, now, check=True)
    assert len(told.gone) == 1 and told.problems == ()
    assert collecting.collect(engine, few, now, check=False) == told
    assert len(images.history(engine, alice, "thesis")) == 2
    later = collecting.collect(engine, few, now + 2 * 86400, check=False)
    assert later.gone and not engine.nameless()
    assert len(images.history(engine, alice, "thesis")) == 2


# Older images


def version(thesis, number: int) -> None:
    thesis.write("word", f"{number}\n")


def test_as_many_are_kept_as_the_policy_says(engine, policy, alice, thesis, docker):
    policy = replace(policy, images_keep=2)
    before = docker("images", "-q", "--filter", "dangling=true")
    for number in range(4):
        version(thesis, number)
        promise = images.build(engine, policy, alice, "thesis", check=True)
        assert images.build(engine, policy, alice, "thesis") == promise
    kept = images.history(engine, alice, "thesis")
    assert [(one.current, one.in_use, one.base) for one in kept] == [
        (True, False, "lab-test/tiny"),
        (False, False, "lab-test/tiny"),
    ]
    assert all(one.size > 0 and one.created > 1_700_000_000 for one in kept)
    names = docker("images", "lab/2001/thesis", "--format", "{{.Tag}}").split()
    assert sorted(names) == sorted(["latest", *(one.fingerprint[:12] for one in kept)])
    # What had a name has none, and is gone with its layers.
    assert docker("images", "-q", "--filter", "dangling=true") == before


def test_the_image_of_a_container_stays(engine, policy, alice, thesis, inside):
    policy = replace(policy, images_keep=1)
    version(thesis, 0)
    containers.launch(engine, policy, alice, "thesis")
    for number in range(1, 3):
        version(thesis, number)
        images.build(engine, policy, alice, "thesis")
    assert [(one.current, one.in_use) for one in images.history(engine, alice, "thesis")] == [
        (True, False),
        (False, True),
    ]
    assert not images.prune(engine, policy, alice, "thesis").changed
    assert inside(alice, "thesis", "cat /word").strip() == "0"
    for container in engine.containers():
        engine.remove(container["Id"])
    promise = images.prune(engine, policy, alice, "thesis", check=True)
    assert len(images.history(engine, alice, "thesis")) == 2
    assert images.prune(engine, policy, alice, "thesis") == promise
    assert [one.current for one in images.history(engine, alice, "thesis")] == [True]


def test_images_that_nothing_uses_are_removed_and_no_others(engine, policy, alice, bob, thesis, docker):
    images.build(engine, policy, alice, "thesis")
    made = containers.launch(engine, policy, alice, "thesis")
    for word in ("two", "three"):
        thesis.write("word", f"{word}\n")
        images.build(engine, policy, alice, "thesis")
    found = images.history(engine, alice, "thesis")
    older = next(one for one in found if not one.current and not one.in_use)
    used = next(one for one in found if one.in_use)
    assert len(found) == 3 and list(images.listing(engine, alice)) == ["thesis"]
    assert images.listing(engine, bob) == {}
    with pytest.raises(NotFound):
        images.remove(engine, policy, bob, "thesis")
    with pytest.raises(Refused, match="A container was made"):
        images.remove(engine, policy, alice, "thesis", [used.fingerprint])
    promise = images.remove(engine, policy, alice, "thesis", check=True)
    done = images.remove(engine, policy, alice, "thesis")
    assert done == promise
    assert [one["fingerprint"] for one in done.facts["removed"]] == [older.fingerprint]
    assert not images.remove(engine, policy, alice, "thesis").changed
    # With its container gone nothing holds the first one.
    engine.remove(made.facts["id"])
    done = images.remove(engine, policy, alice, "thesis", everything=True)
    assert len(done.facts["removed"]) == 2
    assert images.history(engine, alice, "thesis") == []
    assert docker("images", "-q", "lab/2001/thesis") == ""
    assert containers.launch(engine, policy, alice, "thesis").facts["status"] == "created"


def test_an_image_on_which_another_stands_keeps_its_layers(engine, policy, alice, thesis, project_of):
    policy = replace(policy, images_keep=1)
    version(thesis, 0)
    images.build(engine, policy, alice, "thesis")
    project_of(alice, "next").write("Dockerfile", "FROM lab/2001/thesis\n")
    images.build(engine, policy, alice, "next")
    version(thesis, 1)
    assert "remove" in images.build(engine, policy, alice, "thesis").actions
    assert images.history(engine, alice, "next")[0].base == "lab-test/tiny"
    containers.launch(engine, policy, alice, "next")
    assert "next._.2001" in [info.name for info in containers.listing(engine, policy, alice)]


def test_back_and_forth(engine, policy, alice, thesis):
    version(thesis, 0)
    old = images.build(engine, policy, alice, "thesis")
    version(thesis, 1)
    new = images.build(engine, policy, alice, "thesis")
    wanted = [WantedImage("alice", "thesis")]
    for changed in (True, False):
        promise = images.reconcile_images(engine, policy, wanted, check=True, state="rolled_back")
        deed = images.reconcile_images(engine, policy, wanted, check=False, state="rolled_back")
        assert promise == deed
        assert (deed[0].changed, deed[0].failed) == (changed, False)
        assert deed[0].facts == {**old.facts, "pinned": True}
    assert images.project_images(engine)[2001, "thesis"].fingerprint == old.facts["fingerprint"]
    kept = images.build(engine, policy, alice, "thesis")
    assert (kept.changed, kept.facts) == (False, deed[0].facts)
    forth = images.rollback(engine, policy, alice, "thesis", new.facts["fingerprint"][:10])
    assert forth.facts == new.facts
    assert not images.build(engine, policy, alice, "thesis").changed
    images.rollback(engine, policy, alice, "thesis")
    version(thesis, 2)
    assert images.build(engine, policy, alice, "thesis").actions == ["build", "tag"]
    with pytest.raises(NotFound, match="no image 0123"):
        images.rollback(engine, policy, alice, "thesis", "0123")


# The packages in an image


PYTHON = """\
#!/bin/sh
echo user==$(id -u)
echo flags=$*
touch /made && echo writable
ls /workspace
ls /sys/class/net
"""


@pytest.fixture
def with_python(thesis, tiny):
    """Return a function that gives the project's image a python3 that is this shell script."""

    def write(script: str, more: str = "") -> None:
        thesis.write("python3", script)
        (thesis.path / "python3").chmod(0o755)
        thesis.write("Dockerfile", f"FROM {tiny}\nCOPY python3 /bin/python3\n{more}")

    return write


def test_packages_are_recorded(engine, policy, alice, with_python, docker, root, url):
    volumes = docker("volume", "ls", "-q")
    with_python(
        PYTHON,
        'VOLUME /var/cache\nUSER root\nENTRYPOINT ["/bin/false"]\nCMD ["x"]\nHEALTHCHECK CMD false\n'
        'LABEL lab.server.base="lab/secret" lab.server.owner="2002" lab.server.kind="base"\n',
    )
    images.build(engine, policy, alice, "thesis")
    newest = images.history(engine, alice, "thesis")[0]
    assert newest.base == "lab-test/tiny"
    assert images.packages(alice, "thesis", newest) == (
        "user==2001",
        "flags=-m pip --disable-pip-version-check freeze",
        "lo",
    )
    (shown,) = report.server(policy, url, packages=True)["images"]
    assert shown["packages"] == images.packages(alice, "thesis", newest)
    assert report.server(policy, url)["images"][0]["packages"] is None
    file = root / f"state/locks/2001/thesis/{newest.fingerprint[:12]}.txt"
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (0, 0o600)
    assert docker("ps", "-aq") == ""
    assert docker("volume", "ls", "-q") == volumes


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\nsleep 60\n",
        "#!/bin/sh\nwhile true; do echo 0123456789012345678901234567890123456789; done\n",
        "#!/bin/sh\necho a==1\nexit 1\n",
        "no program at all",
    ],
)
def test_a_python_that_is_none_keeps_no_build(
    engine, policy, alice, with_python, docker, script, monkeypatch
):
    monkeypatch.setattr(freeze, "_SECONDS", 2.0)
    with_python(script)
    began = time.monotonic()
    assert images.build(engine, policy, alice, "thesis").changed
    assert time.monotonic() - began < 30
    assert images.packages(alice, "thesis", images.history(engine, alice, "thesis")[0]) is None
    assert docker("ps", "-aq") == ""


def test_what_a_broken_off_run_left_is_in_nobodys_way(engine, policy, alice, with_python, docker, tiny):
    docker("create", "--name", "thesis._.2001.packages", tiny, "true")
    with_python(PYTHON)
    images.build(engine, policy, alice, "thesis")
    assert images.packages(alice, "thesis", images.history(engine, alice, "thesis")[0])
    assert docker("ps", "-aq") == ""


def test_a_requirement_that_does_not_exist(engine, policy, alice, with_python):
    with_python("#!/bin/sh\necho 'ERROR: No matching distribution found for nosuch==1' >&2\nexit 1\n")
    images.build(engine, policy, alice, "thesis")
    before = engine.inspect_image("lab/2001/thesis")["Id"]
    with_python(
        "#!/bin/sh\necho 'ERROR: No matching distribution found for nosuch==1' >&2\nexit 1\n",
        "RUN python3 -m pip install nosuch==1\n",
    )
    with pytest.raises(
        EngineError, match=r"line 3 .*pip install nosuch==1\) failed: ERROR: No matching .*nosuch==1\."
    ) as caught:
        images.build(engine, policy, alice, "thesis")
    assert "\n" not in str(caught.value)
    assert engine.inspect_image("lab/2001/thesis")["Id"] == before


# The same lock gives the same packages


def write_wheel(folder: Path, version: str, name: str = "tinytool") -> None:
    """Write a wheel of a package with one module in it (PEP 427)."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"version = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


@pytest.fixture
def learner(alice):
    """Return the user with the memory that pip needs."""
    return replace(alice, limits=replace(alice.limits, memory=1 << 30))


@pytest.fixture
def with_wheels(thesis, python):
    """Return the folder of wheels of a project whose requirements name no version."""
    thesis.write("requirements.txt", "tinytool\n")
    thesis.write(
        "Dockerfile",
        f"FROM {python}\nCOPY wheels /wheels\nCOPY requirements.txt /requirements.txt\n"
        "RUN python3 -m pip install --no-index --find-links /wheels -r /requirements.txt\n",
    )
    folder = thesis.path / "wheels"
    write_wheel(folder, "1.0")
    return folder


def test_the_same_lock_gives_the_same_packages(engine, policy, learner, thesis, with_wheels, docker, inside):
    def built(**options):
        done = images.build(engine, policy, learner, "thesis", **options)
        return done, images.packages(learner, "thesis", images.history(engine, learner, "thesis")[0])

    first, listed = built()
    assert listed == ("tinytool==1.0",)

    # A newer one is there, and another package with it: locked, the old version stays.
    write_wheel(with_wheels, "2.0")
    write_wheel(with_wheels, "5.0", "othertool")
    thesis.write("requirements.txt", "tinytool\nothertool\n")
    promise = images.build(engine, policy, learner, "thesis", locked=True, check=True)
    locked, listed = built(locked=True)
    assert locked == promise
    assert locked.facts["lock"] == {
        "image": first.facts["fingerprint"][:12],
        "packages": 1,
        "left_out": [],
        "broken": [],
    }
    assert listed == ("othertool==5.0", "tinytool==1.0")
    assert not built(locked=True)[0].changed
    assert not built()[0].changed

    # The image is lost with all that was kept of its build, and there is an even newer wheel on offer.
    docker("rmi", "-f", engine.inspect_image("lab/2001/thesis")["Id"])
    assert built(locked=True)[1] == listed

    # The image has a file of the lock, which no container shows; its environment has nothing of it.
    image = engine.inspect_image("lab/2001/thesis")
    assert not [one for one in image["Config"].get("Env") or [] if "CONSTRAINT" in one]
    shown = docker("run", "--rm", "--network=none", "lab/2001/thesis", "cat", freeze.LOCK_PLACE)
    assert shown.splitlines() == list(listed)
    containers.launch(engine, policy, learner, "thesis")
    assert inside(learner, "thesis", "ls -A /run") == ""

    # Without the lock, and with every step done again, what is newest comes.
    anew, listed = built(rebuild=True)
    assert anew.facts["fingerprint"] == locked.facts["fingerprint"]
    assert listed == ("othertool==5.0", "tinytool==2.0")


def test_a_lock_that_the_requirements_contradict(engine, policy, learner, thesis, with_wheels):
    images.build(engine, policy, learner, "thesis")
    before = engine.inspect_image("lab/2001/thesis")["Id"]
    write_wheel(with_wheels, "2.0")
    thesis.write("requirements.txt", "tinytool==2.0\n")
    with pytest.raises(EngineError, match=r"line 4 of its Dockerfile .*it was a locked build"):
        images.build(engine, policy, learner, "thesis", locked=True)
    assert engine.inspect_image("lab/2001/thesis")["Id"] == before
    assert images.build(engine, policy, learner, "thesis").changed


@pytest.mark.thorough
def test_a_lock_that_is_not_kept_is_told(engine, policy, learner, thesis, with_wheels, python):
    """A Dockerfile can take the constraints away, or pay no heed to them; that it did is in the result."""
    (thesis.path / ".lab-server-lock.txt").symlink_to("/etc/shadow")
    images.build(engine, policy, learner, "thesis")
    write_wheel(with_wheels, "2.0")
    begin = f"FROM {python}\nENV PIP_CONSTRAINT=/none\nRUN touch /none\nCOPY wheels /wheels\n"
    pip = "RUN python3 -m pip install --no-index"
    thesis.write("Dockerfile", f"{begin}{pip} --find-links /wheels tinytool\n")
    told = images.build(engine, policy, learner, "thesis", locked=True).facts
    assert told["lock"]["broken"] == ["tinytool 1.0 -> 2.0"]
    assert "The lock was not kept: tinytool 1.0 -> 2.0." in told["notes"][0]

    thesis.write("Dockerfile", f"{begin}{pip} /wheels/tinytool-1.0-py3-none-any.whl\n")
    told = images.build(engine, policy, learner, "thesis", locked=True).facts
    assert told["lock"]["broken"][0].startswith("tinytool 2.0 -> file:///wheels/tinytool-1.0")
    # From a file: no constraint can say it, and the next build is told so.
    write_wheel(with_wheels, "3.0")
    told = images.build(engine, policy, learner, "thesis", locked=True).facts
    assert told["lock"]["packages"] == 0
    assert told["lock"]["left_out"][0].startswith("tinytool @ file:///wheels/tinytool-1.0")


# Base images


@pytest.fixture
def archive(root, docker, tiny):
    path = root / "tiny.tar"
    docker("tag", tiny, "lab-test/source")
    docker("save", "-o", str(path), "lab-test/source")
    return str(path)


@pytest.fixture
def certificate(root):
    path = root / "campus.crt"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            str(root / "key"),
            "-out",
            str(path),
            "-subj",
            "/CN=campus",
        ],
        check=True,
        capture_output=True,
    )
    return str(path)


def test_base_image_from_archive(engine, docker, archive, certificate):
    plain = WantedBaseImage("lab-test/base", archive=archive, environment=(("A", 'b "$c'),))
    with_ca = WantedBaseImage("lab-test/base", archive=archive, ca_certificates=(certificate,))
    for wanted in (plain, with_ca):
        promise = baseimages.base_images(engine, [wanted], check=True)[0]
        deed = baseimages.base_images(engine, [wanted], check=False)[0]
        assert deed == promise
        assert deed.changed
        assert not deed.failed
        assert not baseimages.base_images(engine, [wanted], check=False)[0].changed
        if wanted is plain:
            assert (
                docker("run", "--rm", "--network=none", "lab-test/base", "sh", "-c", "echo $A").strip()
                == 'b "$c'
            )
    shown = docker("run", "--rm", "--network=none", "lab-test/base", "sh", "-c", "cat $PIP_CERT")
    assert "BEGIN CERTIFICATE" in shown
    docker("rmi", "lab-test/base")


def test_a_known_archive_is_needed_only_to_make_the_image(engine, docker, archive):
    digest = hashlib.sha256(Path(archive).read_bytes()).hexdigest()
    wanted = WantedBaseImage("lab-test/base", archive=archive, sha256=digest)
    assert baseimages.base_images(engine, [replace(wanted, archive="/gone")], check=True)[0].changed
    absent = baseimages.base_images(engine, [replace(wanted, archive="/gone")], check=False)[0]
    assert absent.failed
    assert "/gone" in absent.message
    damaged = baseimages.base_images(engine, [replace(wanted, sha256="0" * 64)], check=False)[0]
    assert damaged.failed
    assert "damaged" in damaged.message
    assert baseimages.base_images(engine, [wanted], check=False)[0].changed
    assert not baseimages.base_images(engine, [replace(wanted, archive="/gone")], check=False)[0].changed
    docker("rmi", "lab-test/base")


def test_an_archive_that_was_copied_for_it_is_removed_once_it_was_used(engine, docker, archive, tmp_path):
    copied = tmp_path / baseimages.archive_name("lab-test/base")
    shutil.copy(archive, copied)
    digests = {"lab-test/base": hashlib.sha256(copied.read_bytes()).hexdigest()}
    listed = [{"name": "lab-test/base", "archive": "/on/the/controller.tar", "image": ""}]
    wanted = baseimages.wanted_base_images(listed, archives=str(tmp_path), digests=digests)
    assert baseimages.base_images(engine, wanted, check=True)[0].changed
    assert copied.exists()
    assert baseimages.base_images(engine, wanted, check=False)[0].changed
    assert not copied.exists()
    assert Path(archive).exists()
    assert not baseimages.base_images(engine, wanted, check=False)[0].changed
    docker("rmi", "lab-test/base")


def test_base_image_that_cannot_be(engine, root):
    wanted = [
        WantedBaseImage("lab-test/none", archive=str(root / "nothing.tar")),
        WantedBaseImage("lab/2001/x", image="x"),
        WantedBaseImage("lab-test/both", image="x", archive="y"),
        WantedBaseImage("lab-test/none", image="lab-test/never-heard-of"),
    ]
    results = baseimages.base_images(engine, wanted, check=False)
    assert [result.failed for result in results] == [True] * 4
    assert "nothing.tar" in results[0].message


def test_base_image_on_a_bare_host(root):
    result = baseimages.base_images(None, [WantedBaseImage("lab/x", archive="/nothing")], check=True)[0]
    assert (result.changed, result.failed) == (True, False)
