"""Names are matched whole, rejected and never normalised."""

from __future__ import annotations

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import names
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput
from hypothesis import given
from hypothesis import strategies as st


@given(st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z"), st.integers(1000, 59999))
def test_a_container_name_is_read_back(project: str, uid: int) -> None:
    assert names.parse_container_name(names.container_name(project, uid)) == (project, uid)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-a",
        "a-",
        "A",
        "a_b",
        "a.b",
        "a/b",
        "..",
        "a\n",
        "a b",
        "é",
        "a" * 33,
        None,
        7,
        b"a",
        "a\0",
        "٣",
        "a._.1",
    ],
)
def test_a_wrong_name_is_rejected(name: object) -> None:
    for check in (names.project_name, names.share_name, names.user_name, names.group_name):
        with pytest.raises(InvalidInput):
            check(name)


@given(st.text())
def test_what_is_printed_holds_no_control_characters(text: str) -> None:
    assert names.printable(text).isprintable()


@pytest.mark.parametrize("name", ["root", "docker", "lab", "1alice"])
def test_an_account_of_the_system_is_no_lab_user(name: str) -> None:
    with pytest.raises(InvalidInput):
        names.user_name(name)


@pytest.mark.parametrize("name", ["a._.", "a._.x", "._.1", "a._.1\n", "a._.1._.2", "a.1", "a._.٣"])
def test_what_is_not_the_name_of_a_lab_container_is_rejected(name: str) -> None:
    with pytest.raises(InvalidInput):
        names.parse_container_name(name)


@pytest.mark.parametrize(
    "image", ["lab/python", "registry.example.org:5000/a/b:1.2", "debian", "a@sha256:" + "0" * 64]
)
def test_an_image_reference_is_accepted(image: str) -> None:
    assert names.image_reference(image) == image


@pytest.mark.parametrize(
    "image", ["", "Lab/python", "-v", "a b", "a:", "/a", "a//b", "a@sha256:0", "--privileged", "a\n"]
)
def test_a_wrong_image_reference_is_rejected(image: str) -> None:
    with pytest.raises(InvalidInput):
        names.image_reference(image)
