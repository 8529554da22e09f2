"""The device files of GPUs: which group a container needs to open them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import gpufiles
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError
from test_lease_model import policy

LAB = policy()
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device files")


def device(folder: Path, name: str, mode: int, gid: int) -> None:
    """Make a file of the device that /dev/null is."""
    os.mknod(folder / name, 0o020600, os.makedev(1, 3))
    os.chown(folder / name, 0, gid)
    os.chmod(folder / name, mode)


@ROOT_ONLY
def test_the_group_that_alone_may_open_them_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpufiles, "FOLDER", str(tmp_path))
    assert gpufiles.gids() == ()
    device(tmp_path, "nvidiactl", 0o666, 4195)
    # None of these is opened by what computes, or is no device file at all.
    device(tmp_path, "nvidia-modeset", 0o660, 4196)
    device(tmp_path, "sda", 0o660, 6)
    (tmp_path / "nvidia9").write_text("")
    (tmp_path / "nvidia8").symlink_to("sda")
    assert gpufiles.gids() == ()
    device(tmp_path, "nvidia0", 0o660, 4195)
    device(tmp_path, "nvidia-uvm", 0o660, 4195)
    assert gpufiles.gids() == (4195,)
    device(tmp_path, "nvidia1", 0o600, 4195)
    assert gpufiles.gids() == (0, 4195)


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="cannot be read"):
        gpufiles.gids(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("gids", "gpus", "found"),
    [((), "1", ()), ((4195,), "1", (4195,)), ((4195,), "", ()), ((2001,), "1", ()), ((0,), "", ())],
)
def test_a_container_with_gpus_needs_it_unless_it_has_it(
    monkeypatch: pytest.MonkeyPatch, gids: tuple[int, ...], gpus: str, found: tuple[int, ...]
) -> None:
    monkeypatch.setattr(gpufiles, "gids", lambda: gids)
    spec = specs.decide(LAB, LAB.users[0], "train", own=specs.OwnWishes(gpus=gpus))
    assert gpufiles.further_groups(LAB, spec) == found


@pytest.mark.parametrize(
    ("gid", "word"), [(0, "root alone"), (2002, "gid 2002"), (3101, "gid 3101"), (3000, "gid 3000")]
)
def test_a_group_of_other_lab_users_is_given_to_nobody(
    monkeypatch: pytest.MonkeyPatch, gid: int, word: str
) -> None:
    """Of user0: 2002 is the private group of another, 3101 a group of others, 3000 that of all."""
    monkeypatch.setattr(gpufiles, "gids", lambda: (gid,))
    spec = specs.decide(LAB, LAB.users[0], "train", own=specs.OwnWishes(gpus="1"))
    with pytest.raises(HostError, match=word) as error:
        gpufiles.further_groups(LAB, spec)
    assert "device_gid" in error.value.hint
