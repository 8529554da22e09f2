"""What a Dockerfile starts from, and what makes a fingerprint new."""

from __future__ import annotations

import contextlib

import pytest
from ansible_collections.lab.server.plugins.module_utils._core.context import Member
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, LabError, Refused
from ansible_collections.lab.server.plugins.module_utils._core.fingerprint import (
    Instruction,
    fingerprint,
    instructions,
    sources,
)
from hypothesis import given
from hypothesis import strategies as st


def test_instructions():
    text = (
        "# syntax=x\n\nFROM a \\\n  # comment\n\n  AS b\nrun one \\  \n two\r\nFR\\\nOM x\nRUN y\\\\\nCMD\n"
    )
    assert instructions(text) == [
        Instruction(3, "FROM", "a   AS b"),
        Instruction(7, "RUN", "one  two"),
        Instruction(9, "FROM", "x"),
        Instruction(11, "RUN", "y\\\\"),
        Instruction(12, "CMD", ""),
    ]


@pytest.mark.parametrize(
    "text", ["# escape=`\nFROM a", "  #escape = `\nFROM a", "FROM a\nRUN <<EOF\nFROM b\nEOF", 'RUN x <<-"E"']
)
def test_what_is_read_in_more_than_one_way(text):
    with pytest.raises(InvalidInput):
        instructions(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FROM lab/python", ("lab/python",)),
        ("from --platform=linux/amd64 lab/python as x\nFROM x\n", ("lab/python",)),
        ("ARG B=lab/python\nFROM ${B}\n", ("lab/python",)),
        ("ARG B\nFROM ${B:-lab/python}\n", ("lab/python",)),
        ('ARG A="lab" C=python\nARG B=$A/$C\nFROM $B\n', ("lab/python",)),
        ("FROM scratch\nCOPY --from=nginx:1 /a /b", ("nginx:1",)),
        ("FROM a.b AS x\nFROM y\nCOPY --from=x /a /b\nCOPY --from=0 /a /b", ("a.b", "y")),
        ("FROM lab/2001/mine", ("lab/2001/mine",)),
        ("FROM x:1@sha256:" + "0" * 64, ("x:1@sha256:" + "0" * 64,)),
        ("FROM y\nRUN --mount=type=bind,from=x,target=/x true", ("y", "x")),
        ("\ufeffFROM y", ("y",)),
    ],
)
def test_sources(text, found):
    assert sources(text, {}, 2001) == found


@pytest.mark.parametrize(
    "text",
    [
        "FROM lab/2002/x",
        "FROM LAB/2002/x",
        "FROM docker.io/lab/2002/x",
        "\ufeffFROM lab/2002/x\nFROM y",
        "FROM y AS lab/2002/x\nFROM lab/2002/x",
        "FROM y\x0cAS z\nFROM lab/2002/x",
        "FR\\\nOM lab/2002/x\nFROM y",
        'ARG A=la"b/20"02/x\nFROM $A',
        "ARG A=lab\\/2002/x\nFROM $A",
        "ARG A=lab/2002\nFROM ${A}/x",
        "FROM y\nCOPY --from=lab/2002/x /a /b",
        'FROM y\nCOPY --from="lab/2002/x" /a /b',
        "FROM y\nARG A=lab/2002/x\nCOPY --from=$A /a /b",
        "FROM y\nONBUILD COPY --from=lab/2002/x /a /b",
        "FROM y\nRUN --mount=type=bind,from=lab/2002/x,target=/x cp -r /x /y",
        "FROM y\nCOPY --from=1 /a /b",
        "FROM sha256:0123",
        "FROM cafe",
        "FROM ${A-lab/2002/x}",
        "FROM",
        "FROM a b",
        "RUN x",
        "",
    ],
)
def test_refused(text):
    with pytest.raises((Refused, InvalidInput)):
        sources(text, {}, 2001)


def test_build_arguments_count():
    assert sources("ARG B=x\nFROM $B", {"B": "lab/python"}, 1) == ("lab/python",)
    with pytest.raises(Refused):
        sources("ARG B=x\nFROM $B", {"B": "lab/2002/y"}, 2001)


@given(st.text())
def test_sources_is_total(text):
    with contextlib.suppress(LabError):
        sources(text, {}, 2001)


members = st.builds(Member, st.text(), st.sampled_from("dfl"), st.booleans(), st.text())


@given(st.lists(members, unique_by=lambda member: member.path), st.dictionaries(st.text(), st.text()))
def test_the_order_does_not_count(found, arguments):
    assert fingerprint(found, arguments, {}) == fingerprint(reversed(found), arguments, {})


@given(members, members)
def test_each_part_counts(one, other):
    assert (fingerprint([one], {}, {}) == fingerprint([other], {}, {})) == (one == other)


def test_bases_and_arguments_count():
    plain = fingerprint([], {}, {"a": "1"})
    assert (
        len(
            {plain, fingerprint([], {}, {"a": "2"}), fingerprint([], {"a": "1"}, {}), fingerprint([], {}, {})}
        )
        == 4
    )
