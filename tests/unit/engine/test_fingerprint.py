"""What a Dockerfile starts from, and what makes a fingerprint new."""

from __future__ import annotations

import contextlib

import pytest
from ansible_collections.lab.server.plugins.module_utils._core.context import Member
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, LabError, Refused
from ansible_collections.lab.server.plugins.module_utils._core.fingerprint import (
    Instruction,
    base,
    canonical,
    check_triggers,
    fingerprint,
    instructions,
    labels,
    plain,
    sources,
    steps,
    variables,
)
from hypothesis import given
from hypothesis import strategies as st


def test_instructions():
    text = (
        "# syntax=x\n\nFROM a \\\n  # comment\n\n  AS b\nrun one \\  \n two\r\nFR\\\nOM x\nRUN y\\\\z\nCMD\n"
    )
    assert instructions(text) == [
        Instruction(3, "FROM", "a   AS b"),
        Instruction(7, "RUN", "one  two"),
        Instruction(9, "FROM", "x"),
        Instruction(11, "RUN", "y\\\\z"),
        Instruction(12, "CMD", ""),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "# escape=`\nFROM a",
        "  #escape = `\nFROM a",
        'RUN x <<-"E"',
        'RUN <<"1\\\\"\nx',
        # A separator that only one of two parsers takes for a space.
        "FROM a\nRUN true \\\n\x1c# y\nFROM b",
        "FROM a\nRUN true \\\r\r\nFROM b",
        "FROM\xa0a",
        "RUN y\\\\",
        'FROM a\nCOPY --"from"=b / /x',
        "FROM a\nCOPY --f\\rom=b / /x",
        "FROM a\nCOPY --chown=1 --'from'=b / /x",
        "ARG A=b C=$A\nFROM a",
        "ARG $N=b\nFROM a",
        "FROM a\n#x\nCO\\PY a b",
    ],
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
        ('ARG A="lab"\nARG C=python\nARG B=$A/$C\nFROM $B\n', ("lab/python",)),
        ("FROM scratch\nCOPY --from=nginx:1 /a /b", ("nginx:1",)),
        ("FROM a.b AS x\nFROM y\nCOPY --from=x /a /b\nCOPY --from=0 /a /b", ("a.b", "y")),
        ("FROM lab/2001/mine", ("lab/2001/mine",)),
        ("FROM x:1@sha256:" + "0" * 64, ("x:1@sha256:" + "0" * 64,)),
        ("\ufeffFROM y", ("y",)),
    ],
)
def test_sources(text, found):
    assert tuple(sources(text, {}, 2001)) == found


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
        "FROM y\nONBUILD RUN x",
        "FROM y\nADD http://169.254.169.254/x /x",
        "ARG U=http://h/x\nFROM y\nARG U\nADD $U /x",
        'FROM y\nADD ["git@h:x", "/x"]',
        "ARG HTTP_PROXY=http://mine\nFROM y",
        "FROM 127.0.0.1:8080/x",
        "FROM localhost/x",
        "FROM y\nCOPY --from=[::1]:80/x / /",
        "FROM",
        "FROM a b",
        "RUN x",
        "",
    ],
)
def test_refused(text):
    with pytest.raises((Refused, InvalidInput)):
        sources(text, {}, 2001)


def test_the_builder_gets_what_was_read():
    text = (
        "# syntax=evil/frontend\n# a comment\nARG B=lab/python\nFROM --platform=$P ${B} AS One\n\n"
        "RUN a \\\n# between\n  && b\r\nFROM one\nCOPY --from=one --chown=1:1 /a /b\nCMD\n"
    )
    assert canonical(text, {}) == (
        "ARG B=lab/python\nFROM --platform=$P lab/python AS one\nRUN a   && b\n"
        "FROM one\nCOPY --from=one --chown=1:1 /a /b\nCMD\n"
    )


def test_labels_are_one_line_whatever_their_values():
    values = {"b": 'a "$HOME" \\', "a": ""}
    assert labels(values) == 'LABEL a="" b="a \\"\\$HOME\\" \\\\"\n'


def test_what_is_put_in_follows_each_from():
    written = canonical(
        "ARG A=b\nFROM x AS y\nRUN a\nFROM y\n", {}, {"C": "/c", "B": "/b", "A": "/a"}, {"/run/l": ".l"}
    )
    more = "COPY .l /run/l\nARG B=/b\nARG C=/c\n"
    assert written == f"ARG A=b\nFROM x AS y\n{more}RUN a\nFROM y\n{more}"


CACHE = {"PIP_INDEX_URL": "http://10.213.0.1/simple/", "UV_INDEX_URL": "http://10.213.0.1/simple/"}


def test_every_stage_has_the_environment_of_the_build():
    text = "ARG B=lab/python\nFROM ${B} AS one\nRUN a\nFROM one\nRUN b\n"
    arguments = "ARG PIP_INDEX_URL=http://10.213.0.1/simple/\nARG UV_INDEX_URL=http://10.213.0.1/simple/\n"
    assert canonical(text, {}, CACHE) == (
        f"ARG B=lab/python\nFROM lab/python AS one\n{arguments}RUN a\nFROM one\n{arguments}RUN b\n"
    )
    # The builder counts them, and an error is told with a line that the user wrote.
    assert [(step.line, step.word) for step in (one.origin for one in steps(text, {}, CACHE))] == [
        *((1, "ARG"), (2, "FROM"), (2, "FROM"), (2, "FROM"), (3, "RUN")),
        *((4, "FROM"), (4, "FROM"), (4, "FROM"), (5, "RUN")),
    ]
    assert [step.origin for step in steps(text, {})] == instructions(text)


@pytest.mark.parametrize(
    "line",
    [
        "ARG PIP_INDEX_URL",
        "ARG PIP_INDEX_URL=https://x/",
        "ENV PIP_INDEX_URL=https://x/",
        "ENV A=b PIP_INDEX_URL='https://x/'",
        "ENV A=b \\\n  PIP_INDEX_URL=x",
        "ENV PIP_INDEX_URL https://x/",
        "env\tPIP_INDEX_URL\thttps://x/",
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_what_a_dockerfile_sets_itself_is_left_alone(line, before):
    text = f"{line}\nFROM lab/python\n" if before else f"FROM lab/python\nRUN a\n{line}\n"
    assert "PIP_INDEX_URL" in variables(text)
    written = canonical(text, {}, CACHE)
    assert "ARG PIP_INDEX_URL=http://10" not in written
    assert "ARG UV_INDEX_URL=http://10" in written


def test_what_only_names_a_variable_sets_none():
    text = "FROM lab/python\nENV A=$PIP_INDEX_URL\nENV B PIP_INDEX_URL\nRUN PIP_INDEX_URL=x true\n"
    assert variables(text) == {"A", "B"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("PIP_INDEX_URL", "a b"), ("PIP_INDEX_URL", "a\nRUN b"), ("http_proxy", "x"), ("A B", "c"), ("A", "\\")],
)
def test_an_environment_that_is_more_than_a_value_is_refused(name, value):
    with pytest.raises((InvalidInput, Refused)):
        canonical("FROM lab/python\n", {}, {name: value})


@given(st.text(alphabet="FROMfromARGCOPYadd --=$\\\"'\n\r\t #lab/20x{}:<|&[],1"))
def test_what_the_builder_gets_reads_the_same_again(text):
    with contextlib.suppress(LabError):
        written = canonical(text, {})
        assert tuple(sources(written, {}, 2001)) == tuple(sources(text, {}, 2001))
        assert canonical(written, {}) == written
        assert len(instructions(written)) == written.count("\n") == len(instructions(text))


@pytest.mark.parametrize(
    "trigger", ["COPY --from=x / /", "COPY --fr\\om=x / /", "FROM x", "RUN --mount=type=bind,from=x true"]
)
def test_an_image_that_reads_others_when_it_is_built_on(trigger):
    with pytest.raises(Refused):
        check_triggers("node", ["RUN npm install", trigger])
    check_triggers("node", ["COPY package.json /", "RUN npm install"])


def test_build_arguments_count():
    assert tuple(sources("ARG B=x\nFROM $B", {"B": "lab/python"}, 1)) == ("lab/python",)
    with pytest.raises(Refused):
        sources("ARG B=x\nFROM $B", {"B": "lab/2002/y"}, 2001)


@pytest.mark.parametrize(
    ("text", "stands_on"),
    [
        ("FROM lab/python", "lab/python"),
        ("FROM scratch\nCOPY --from=lab/python /a /b", ""),
        ("ARG B=lab/x\nARG C=$B:1\nFROM $C", "lab/x:1"),
        # What only lends files is not what the image stands on.
        ("FROM lab/tools AS t\nFROM lab/jupyter\nCOPY --from=t /a /b", "lab/jupyter"),
        ("FROM lab/jupyter AS One\nFROM one AS two\nFROM lab/x AS three\nFROM TWO", "lab/jupyter"),
        ("FROM lab/x\nARG B=y\nFROM $B", "error"),
    ],
)
def test_base(text, stands_on):
    if stands_on == "error":
        with pytest.raises(InvalidInput):
            base(text, {})
    else:
        assert base(text, {}) == stands_on


def test_a_source_is_told_with_its_first_line():
    text = "# a comment\nFROM y AS a\nFROM \\\n  x\nCOPY --from=y /a /b\nCOPY --from=z /a /b\n"
    assert sources(text, {}, 2001) == {"y": 2, "x": 3, "z": 6}


def test_base_follows_build_arguments():
    assert base("ARG B=x\nFROM $B", {"B": "lab/python"}) == "lab/python"


@given(st.text())
def test_base_is_one_of_the_sources(text):
    with contextlib.suppress(LabError):
        allowed = sources(text, {}, 2001)
        assert base(text, {}) in ("", *allowed)


@pytest.mark.parametrize(
    ("image", "short"),
    [
        ("lab/python", "lab/python"),
        ("lab/python:latest", "lab/python"),
        ("docker.io/lab/python:3", "lab/python:3"),
        ("index.docker.io/lab/python:latest", "lab/python"),
        ("example.org/lab/python", "example.org/lab/python"),
    ],
)
def test_plain(image, short):
    assert plain(image) == short


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
