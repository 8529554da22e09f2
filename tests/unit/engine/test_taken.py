"""Which files of a context count: all that a build could take, and no more where that is known for sure."""

from __future__ import annotations

import contextlib
import fnmatch

import pytest
from ansible_collections.lab.server.plugins.module_utils._core.context import Member
from ansible_collections.lab.server.plugins.module_utils._core.errors import LabError
from ansible_collections.lab.server.plugins.module_utils._core.taken import taken
from hypothesis import given
from hypothesis import strategies as st

FILES = (
    ".dockerignore",
    "Dockerfile",
    "a b",
    "data/raw",
    "requirements.txt",
    "results/1/log",
    "setup.py",
    "src/lib/deep.py",
    "src/main.py",
    "src/notes.txt",
    "srcs/x",
)
ALWAYS = {".dockerignore", "Dockerfile"}
FOLDERS = ("data", "results", "results/1", "src", "src/lib", "srcs")
CONTEXT = [
    *(Member(path, "d", True, "") for path in FOLDERS),
    *(Member(path, "f", False, path) for path in FILES),
]


def counted(line: str, *more: Member, triggers: bool = False) -> set[str]:
    """Return the files that count for a Dockerfile with these instructions, without those that always do."""
    found = taken([*CONTEXT, *more], f"FROM x AS one\n{line}\n", triggers=triggers)
    files = {member.path for member in found if member.kind == "f"}
    assert files >= ALWAYS
    return files - ALWAYS


ALL = set(FILES) - ALWAYS
SRC = {path for path in FILES if path.startswith("src/")}


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("RUN true", set()),
        ("COPY requirements.txt /x", {"requirements.txt"}),
        ("copy ./requirements.txt setup.py /x/", {"requirements.txt", "setup.py"}),
        ("ADD /requirements.txt /x", {"requirements.txt"}),
        ("COPY src /x", SRC),
        ("COPY src/ /x", SRC),
        ("COPY /./src/. /x", SRC),
        ("COPY src//lib /x", {"src/lib/deep.py"}),
        ("COPY sr /x", set()),
        ("COPY *.py /x/", {"setup.py"}),
        ("COPY src/*.py /x/", {"src/main.py"}),
        # A folder that matches is taken with all that is in it; '*' does not cross a '/'.
        ("COPY src/* /x/", SRC),
        ("COPY s*/main.py /x/", {"src/main.py"}),
        ("COPY src? /x/", {"srcs/x"}),
        ("COPY * /x/", ALL),
        ("COPY --chown=1:1 --link setup.py /x", {"setup.py"}),
        ("COPY --chown=1:1\tsetup.py\t/x", {"setup.py"}),
        ("COPY --from=one /src /x", set()),
        ("COPY --from= setup.py /x", {"setup.py"}),
        ("COPY --from=one . /x\nCOPY setup.py .", {"setup.py"}),
        ('COPY ["a b", "setup.py", "/x/"]', {"a b", "setup.py"}),
        ("RUN cp /src /x\nCMD src", set()),
        ("RUN --mount=type=cache,target=/x true", set()),
        ("RUN cat <<EOF\nCOPY . /x\nEOF", set()),
        ("COPY <<'EOF' /x\nsrc\nEOF", set()),
        ("COPY <<EOF setup.py <<E2 /x/\nsrc\nEOF\nE2\nCOPY src/lib /x", {"setup.py", "src/lib/deep.py"}),
        ("ADD --link <<EOF /x\nCOPY . /x\nEOF", set()),
    ],
)
def test_what_counts(line, files):
    assert counted(line) == files


@pytest.mark.parametrize(
    "line",
    [
        "COPY . /x",
        "COPY ./ /x",
        "COPY / /x",
        "COPY setup.py . /x/",
        'COPY ["./", "/x"]',
        # What is not known for sure.
        "ARG A=src\nCOPY $A /x",
        "COPY src/../data /x",
        "COPY '.' /x",
        'COPY "src" /x',
        "COPY s\\rc /x",
        "COPY [a-z]* /x/",
        "COPY **/x /x/",
        'COPY ["src", "/x"] more',
        'COPY ["src", 1]',
        "COPY [src /x",
        "COPY src",
        "ADD --from=one setup.py /x\nADD . /x",
    ],
)
def test_all_counts(line):
    assert counted(line) == ALL


def test_what_the_base_image_does_by_itself_can_take_anything():
    assert counted("COPY setup.py /x", triggers=True) == ALL
    assert counted("RUN true", triggers=True) == ALL


@pytest.mark.parametrize(
    ("line", "link", "everything"),
    [
        ("COPY model /x", "model", True),
        ("COPY model/best /x", "model", True),
        ("COPY m* /x/", "model", True),
        ("COPY m*/best /x/", "model", True),
        ("COPY src /x", "model", False),
        # Inside a folder that is taken a link stays a link.
        ("COPY src /x", "src/model", False),
        ("COPY src/model /x", "src/model", True),
        ("COPY models /x", "model", False),
    ],
)
def test_a_link_that_is_followed_makes_everything_count(line, link, everything):
    found = counted(line, Member(link, "l", False, "/data"))
    assert (found == ALL) == everything


def test_the_target_of_a_link_that_is_taken_counts():
    link = Member("src/model", "l", False, "/data")
    assert link in taken([*CONTEXT, link], "FROM x\nCOPY src /x\n")


words = st.sampled_from(
    [
        ".",
        "src",
        "s*",
        "*",
        "*.py",
        "src/*",
        "src/m*",
        "*/main.py",
        "?rc",
        "./src",
        "/srcs",
        "data/raw",
        "$A",
        "a",
    ]
)


@given(st.lists(st.lists(words, min_size=1, max_size=3), max_size=3))
def test_whatever_a_pattern_matches_counts(copies):
    """Against fnmatch of each path and each folder above it, with as many parts as the pattern has."""
    text = "FROM x\n" + "".join(f"COPY {' '.join(sources)} /x/\n" for sources in copies)
    found = {member.path for member in taken(CONTEXT, text)}
    for pattern in (word.lstrip("./") for sources in copies for word in sources):
        for member in CONTEXT:
            parts = member.path.split("/")
            depth = len(pattern.split("/"))
            above = "/".join(parts[:depth])
            matches = len(parts) >= depth and all(
                fnmatch.fnmatchcase(one, other) for one, other in zip(above.split("/"), pattern.split("/"))
            )
            assert member.path in found or not (matches or not pattern)


@given(st.text(alphabet="FROMxCOPYAD \n\t[]\"'*?/.$\\,-=ab"))
def test_taken_is_total_and_keeps_the_order(text):
    with contextlib.suppress(LabError):
        found = taken(CONTEXT, f"FROM x\n{text}")
        assert found == [member for member in CONTEXT if member in found]
