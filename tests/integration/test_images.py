"""Images on a real engine: when they are built, what a failed build leaves, and what no build may see."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import containers, images
from ansible_collections.lab.server.plugins.module_utils._core.errors import (
    EngineError,
    InvalidInput,
    LabError,
    NotFound,
    Refused,
)
from ansible_collections.lab.server.plugins.module_utils._core.images import WantedBaseImage, WantedImage


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
    thesis.write("new", "")
    assert changed()
    (thesis.path / "new").unlink()
    assert images.build(engine, policy, alice, "thesis", check=True, build_args={"A": "b"}).changed
    assert not changed()


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
    with pytest.raises(Refused):
        images.build(engine, policy, alice, "thesis")


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
        promise = images.base_images(engine, [wanted], check=True)[0]
        deed = images.base_images(engine, [wanted], check=False)[0]
        assert deed == promise
        assert deed.changed
        assert not deed.failed
        assert not images.base_images(engine, [wanted], check=False)[0].changed
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
    assert images.base_images(engine, [replace(wanted, archive="/gone")], check=True)[0].changed
    absent = images.base_images(engine, [replace(wanted, archive="/gone")], check=False)[0]
    assert absent.failed
    assert "/gone" in absent.message
    damaged = images.base_images(engine, [replace(wanted, sha256="0" * 64)], check=False)[0]
    assert damaged.failed
    assert "damaged" in damaged.message
    assert images.base_images(engine, [wanted], check=False)[0].changed
    assert not images.base_images(engine, [replace(wanted, archive="/gone")], check=False)[0].changed
    docker("rmi", "lab-test/base")


def test_an_archive_that_was_copied_for_it_is_removed_once_it_was_used(engine, docker, archive, tmp_path):
    copied = tmp_path / images.archive_name("lab-test/base")
    shutil.copy(archive, copied)
    digests = {"lab-test/base": hashlib.sha256(copied.read_bytes()).hexdigest()}
    listed = [{"name": "lab-test/base", "archive": "/on/the/controller.tar", "image": ""}]
    wanted = images.wanted_base_images(listed, archives=str(tmp_path), digests=digests)
    assert images.base_images(engine, wanted, check=True)[0].changed
    assert copied.exists()
    assert images.base_images(engine, wanted, check=False)[0].changed
    assert not copied.exists()
    assert Path(archive).exists()
    assert not images.base_images(engine, wanted, check=False)[0].changed
    docker("rmi", "lab-test/base")


def test_base_image_that_cannot_be(engine, root):
    wanted = [
        WantedBaseImage("lab-test/none", archive=str(root / "nothing.tar")),
        WantedBaseImage("lab/2001/x", image="x"),
        WantedBaseImage("lab-test/both", image="x", archive="y"),
        WantedBaseImage("lab-test/none", image="lab-test/never-heard-of"),
    ]
    results = images.base_images(engine, wanted, check=False)
    assert [result.failed for result in results] == [True] * 4
    assert "nothing.tar" in results[0].message


def test_base_image_on_a_bare_host(root):
    result = images.base_images(None, [WantedBaseImage("lab/x", archive="/nothing")], check=True)[0]
    assert (result.changed, result.failed) == (True, False)
