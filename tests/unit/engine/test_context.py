"""What root accepts of a context that came from a user's child."""

from __future__ import annotations

import contextlib
import io
import tarfile

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import context
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, LabError, Refused
from hypothesis import given
from hypothesis import strategies as st


def archive(*members: tuple[str, bytes, bytes | str]) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as opened:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type = kind
            if isinstance(content, str):
                info.linkname, content = content, b""
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    buffer.seek(0)
    return buffer


FILE, FOLDER, LINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE
DOCKERFILE = ("Dockerfile", FILE, b"FROM x\n")


def test_good():
    members, text = context.check(
        archive(DOCKERFILE, ("a", FOLDER, b""), ("a/b", FILE, b"x"), ("a/l", LINK, "/etc/shadow"))
    )
    assert text == "FROM x\n"
    assert [(member.path, member.kind) for member in members] == [
        ("Dockerfile", "f"),
        ("a", "d"),
        ("a/b", "f"),
        ("a/l", "l"),
    ]
    assert members[3].content == "/etc/shadow"


@pytest.mark.parametrize(
    "members",
    [
        [("/etc/passwd", FILE, b"")],
        [("../x", FILE, b"")],
        [("a/../../x", FILE, b"")],
        [("./a", FILE, b"")],
        [("a", FILE, b"1"), ("a", FILE, b"2")],
        [("Dockerfile", FILE, b"FROM y")],
        [("a", LINK, "/"), ("a/b", FILE, b"")],
        [("a", FILE, b""), ("a/b", FILE, b"")],
        [("a", tarfile.LNKTYPE, "Dockerfile")],
        [("a", tarfile.CHRTYPE, b"")],
        [("a", tarfile.BLKTYPE, b"")],
        [("a", tarfile.FIFOTYPE, b"")],
    ],
)
def test_bad(members):
    with pytest.raises(InvalidInput):
        context.check(archive(DOCKERFILE, *members))


@pytest.mark.parametrize("member", [("Dockerfile", LINK, "x"), ("Dockerfile", FOLDER, b""), ("x", FILE, b"")])
def test_no_dockerfile(member):
    with pytest.raises(InvalidInput, match="Dockerfile"):
        context.check(archive(member))


def test_too_much(monkeypatch):
    monkeypatch.setattr(context, "FILES_LIMIT", 2)
    with pytest.raises(Refused):
        context.check(archive(DOCKERFILE, ("a", FILE, b""), ("b", FILE, b"")))
    monkeypatch.setattr(context, "FILES_LIMIT", 9)
    monkeypatch.setattr(context, "BYTES_LIMIT", 9)
    with pytest.raises(Refused):
        context.check(archive(DOCKERFILE, ("a", FILE, b"xyz")))


@given(st.binary(max_size=2000))
def test_garbage(data):
    with pytest.raises(LabError):
        context.check(io.BytesIO(data))


@given(st.integers(0, 3000))
def test_cut_off(length):
    whole = archive(DOCKERFILE, ("a", FILE, b"x" * 600)).getvalue()[:length]
    with contextlib.suppress(LabError):
        context.check(io.BytesIO(whole))
