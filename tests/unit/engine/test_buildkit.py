"""What only BuildKit knows, as the classic builder gets it: it means the same, and nothing else."""

from __future__ import annotations

import contextlib
import json
import re

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import buildkit
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, LabError, Refused
from ansible_collections.lab.server.plugins.module_utils._core.fingerprint import (
    canonical,
    inline_files,
    instructions,
    shell_of,
    sources,
    steps,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

SH = ["/bin/sh", "-c"]


def written(text: str, **more) -> list[str]:
    """Return the lines that the builder gets for instructions of a stage, without its FROM."""
    return canonical(f"FROM x\n{text}\n", {}, **more).splitlines()[1:]


def command(text: str, **more) -> list[str]:
    """Return the words of the exec form that the builder gets for a RUN, the only instruction of a stage."""
    (line,) = written(text, **more)
    assert line.isascii()
    assert line.isprintable()
    assert "<" not in line
    return json.loads(line[len("RUN ") :])


# Caches and flags


@pytest.mark.parametrize(
    "flags",
    [
        "--mount=type=cache,target=/root/.cache/pip",
        "--mount=target=/root/.cache/uv,sharing=locked,TYPE=Cache,id=u,mode=0755,uid=1,gid=2",
        "--mount=type=cache,dst=/var/cache/apt --mount=type=cache,destination=/var/lib/apt,ro",
        "--network=default --mount=type=cache,target=$HOME/.cache --security=sandbox",
    ],
)
def test_a_cache_is_left_out_and_nothing_is_kept_in_its_place(flags):
    quiet = ["ARG PIP_NO_CACHE_DIR=1", "ARG UV_NO_CACHE=1"]
    assert written(f"RUN {flags}  pip install x") == [*quiet, "RUN pip install x"]
    assert written(f'RUN {flags} ["pip", "x"]') == [*quiet, 'RUN ["pip", "x"]']
    again = written(f"RUN a\nRUN {flags} b\nRUN {flags} c\nFROM y\nRUN {flags} d")
    assert again == ["RUN a", *quiet, "RUN b", "RUN c", "FROM y", *quiet, "RUN d"]


def test_what_the_dockerfile_says_of_caches_itself_stays():
    mount = "RUN --mount=type=cache,target=/c a"
    assert written(f"ENV UV_NO_CACHE=0\n{mount}")[1:] == ["ARG PIP_NO_CACHE_DIR=1", "RUN a"]
    assert written(f"{mount}\nARG PIP_NO_CACHE_DIR\nENV UV_NO_CACHE=0")[0] == "RUN a"
    assert written("RUN --network=default a") == ["RUN a"]


def test_an_error_is_told_with_the_line_of_the_user():
    text = "FROM x\n\nRUN --mount=type=cache,target=/c \\\n  a\nRUN <<EOF\nfalse\n\nEOF\nRUN b\n"
    assert [(step.origin.line, step.origin.word) for step in steps(text, {})] == [
        *((1, "FROM"), (3, "RUN"), (3, "RUN"), (3, "RUN"), (5, "RUN"), (9, "RUN"))
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("RUN --mount=type=bind,target=/x a", "type bind is not supported. Take what the step needs.*COPY"),
        ("RUN --mount=target=/x a", "type bind"),
        ("RUN --mount=type=cache,type=bind,target=/x a", "type bind"),
        ("RUN --mount a", "type bind"),
        ("RUN --mount=type=bind,from=lab/2002/x,target=/x a", "type bind"),
        ("RUN --mount=type=secret,id=k a", "Never put a secret into an image"),
        ("RUN --mount=type=ssh a", "type ssh"),
        ("RUN --mount=type=tmpfs,target=/x a", "remove at the end of the step"),
        ("RUN --mount=type=cache,target=/x,from=y a", "Write it as --mount=type=cache,target=/path"),
        ("RUN --mount=type=cache,target=/x,source=y a", "Write it as"),
        ("RUN --mount=type=cache a", "Write it as"),
        ("RUN --mount=type=$T,target=/x a", "Write it as"),
        ("RUN --mount=type=cache,target=/x,more a", "Write it as"),
        ("RUN --mount=type=cache,target=/x --mount=type=ssh a", "type ssh"),
        ('RUN --mount="type=cache,target=/x" a', "not plain"),
        ("RUN --network=none a", "network=none is not supported"),
        ("RUN --network=host a", "network=host is not supported"),
        ("RUN --network a", "network= is not supported"),
        ("RUN --security=insecure a", "security is not supported"),
        ("RUN --device=nvidia.com/gpu=all a", "device is not supported"),
        ("COPY --chmod=755 a /b", "RUN chmod"),
        ("ADD --chmod=755 a /b", "RUN chmod"),
        ("COPY --parents a /b", "--parents is not supported"),
        ("COPY --exclude=*.txt a /b", "dockerignore"),
        ("ADD --checksum=sha256:1 a /b", "--checksum is not supported"),
        ("COPY --link=maybe a /b", "neither true nor false"),
    ],
)
def test_what_cannot_be_left_out_is_told_with_its_line_and_what_to_do(line, said):
    with pytest.raises(InvalidInput, match=f"Dockerfile line 3: .*{said}"):
        sources(f"FROM x\n\n{line}\n", {}, 2001)


@pytest.mark.parametrize("link", ["--link", "--link=true", "--link=false"])
def test_a_linked_copy_is_a_copy(link):
    assert written(f"COPY {link}  --chown=1:2 a  b /c\nADD --chown=1 {link} a /c") == [
        "COPY --chown=1:2 a  b /c",
        "ADD --chown=1 a /c",
    ]
    assert written(f'COPY {link} ["a b", "/c"]') == ['COPY ["a b", "/c"]']
    assert sources(f"FROM y\nCOPY {link} --from=z a /b", {}, 1) == {"y": 1, "z": 2}
    with pytest.raises(Refused):
        sources(f"FROM y\nCOPY {link} --from=lab/2002/z a /b", {}, 1)


# Here-documents of RUN


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RUN <<EOF\nset -e\n  echo \"$A\" 'b' \\\n\tc\nEOF", "set -e\n  echo \"$A\" 'b' \\\n\tc\n"),
        ("RUN <<-EOF\n\t\ta\n\t b\n\tEOF", "a\n b\n"),
        ("RUN <<'E.O-F_1'\na\nE.O-F_1", "a\n"),
        ('RUN <<"EOF"\n# a comment\n\nFROM lab/2002/x\nEOF', "# a comment\n\nFROM lab/2002/x\n"),
        ("RUN <<EOF\nEOF", ""),
        ("RUN 3<<EOF\na\nEOF", "a\n"),
        ("run \\\n  # c\n <<EOF\n# escape=`\nEOF", "# escape=`\n"),
        ("RUN <<EOF\r\na\nEOF\r", "a\n"),
        ("RUN <<EOF\n EOF\nEOF2\nEOF", " EOF\nEOF2\n"),
        ("RUN <<EOF\n\u00e9 \U0001f600 \u2028 \u00a0\nEOF", "\u00e9 \U0001f600 \u2028 \u00a0\n"),
        # More than the opening: the shell reads the whole again.
        ("RUN <<EOF sh -x\na\nEOF", "<<EOF sh -x\na\nEOF"),
        ("RUN python3 - <<'EOF' > /o\nx = 1 << 2\nEOF", "python3 - <<'EOF' > /o\nx = 1 << 2\nEOF"),
        ("RUN a <<-A 3<<B && c\n\tx\n\tA\n\ty\nB", "a <<-A 3<<B && c\n\tx\nA\n\ty\nB"),
        ("RUN cat <<A <<A\n1\nA\n2\nA", "cat <<A <<A\n1\nA\n2\nA"),
        ("RUN cat <<EOF >${OUT:-/o}\nEOF", "cat <<EOF >${OUT:-/o}\nEOF"),
        # What only looks so, and is a command as it stands.
        ("RUN echo \"<<EOF\" '<<X' \\<<EOF", "echo \"<<EOF\" '<<X' \\<<EOF"),
        ("RUN cat <<<a", "cat <<<a"),
        ("RUN echo $((1<<2))", "echo $((1<<2))"),
        ('RUN cat <<EOF "\\"it\'s"\nEOF', 'cat <<EOF "\\"it\'s"\nEOF'),
    ],
)
def test_a_here_document_becomes_an_argument_of_the_shell(text, said):
    assert command(text) == [*SH, said]
    assert command(f"RUN --network=default {text[4:]}" if text.startswith("RUN") else text) == [*SH, said]
    assert [item.word for item in instructions(f"FROM x\n{text}\nCMD y")] == ["FROM", "RUN", "CMD"]


def test_an_exec_form_has_no_here_document():
    assert command('RUN ["cat", "<<EOF"]') == ["cat", "<<EOF"]
    assert command('RUN ["sh", "-c", "cat <<A\\nx\\nA"]') == ["sh", "-c", "cat <<A\nx\nA"]
    assert written('RUN ["cat", "<\u00e9"]') == ['RUN ["cat", "<\u00e9"]']


@pytest.mark.parametrize("tabs", ["", "-"])
def test_a_script_is_run_by_what_its_first_line_names(tabs):
    *shell, said = command(f"RUN <<{tabs}EOF\n#!/usr/bin/env python3\nprint(1)\nEOF_\nEOF")
    assert shell == SH
    assert ">\"$1/EOF\" <<'EOF' && chmod 755" in said
    assert said.count("\n#!/usr/bin/env python3\nprint(1)\nEOF_\nEOF\n") == 1
    assert command("RUN <<-EOF\n\t#!/bin/a\nEOF") == command("RUN <<EOF\n#!/bin/a\nEOF")
    # The shell of a command reads it as any other.
    assert command("RUN cat <<EOF\n#!/bin/a\nEOF") == [*SH, "cat <<EOF\n#!/bin/a\nEOF"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RUN <<EOF\na", "no line ends the here-document EOF"),
        ("RUN <<EOF\na\n EOF\n", "no line ends"),
        ("RUN <<EOF\na\nEOF \n", "no line ends"),
        ("RUN <<EOF <<X\na\nEOF\n", "here-document X"),
        ("RUN echo $((1 <<2 ))\n", "cannot be read|no line ends"),
        ("RUN cat<<EOF\nEOF\n", "a space before"),
        ("RUN cat << EOF\nEOF\n", "right after it"),
        ("RUN cat <<- EOF\nEOF\n", "right after it"),
        ("RUN cat <<$E\n$E\n", "right after it"),
        ("RUN cat <<E'O'F\nEOF\n", "right after it"),
        ("RUN cat <<\\EOF\nEOF\n", "right after it"),
        ("RUN cat <<EOF>x\nEOF\n", "right after it"),
        ("RUN cat <<EOF;\nEOF\n", "right after it"),
        ("RUN cat <<<<EOF\nEOF\n", "right after it"),
        ("RUN echo $((1<< 2)) <<EOF\nEOF\n", "right after it"),
        ("RUN echo it's <<EOF\nEOF\n", "cannot be read for sure"),
        ("RUN cat <<EOF >${X#y}\nEOF\n", "cannot be read for sure"),
        ('RUN [1, "<<EOF"]\n', "cannot be read for sure"),
        ("ENV A=<<EOF\nEOF\n", "for RUN and COPY"),
        ("CMD <<EOF\nEOF\n", "for RUN and COPY"),
        ("COPY <<EOF <<EOF /x/\nEOF\nEOF\n", "cannot be read for sure"),
        ("COPY a <<EOF\nEOF\n", "cannot be read for sure"),
        ("COPY 3<<EOF /x\nEOF\n", "cannot be read for sure"),
        ('COPY <<EOF "/x"\nEOF\n', "cannot be read for sure"),
        ('COPY ["<<EOF", "/x"]\nEOF\n', "cannot be read for sure"),
        ("COPY --from=y <<EOF /x\nEOF\n", "a step of its own"),
        ("ADD a <<EOF /x/\nEOF\n", "a step of its own"),
        ("COPY <<EOF /x\n$A\nEOF\n", "Write <<'EOF'"),
        ("COPY <<EOF /x\na\\b\nEOF\n", "Write <<'EOF'"),
        ("COPY --chmod=u+x <<EOF /x\nEOF\n", "RUN chmod"),
        ("COPY --chmod=755 <<EOF a /x/\nEOF\n", "RUN chmod"),
        ("RUN <<EOF\n" + "x" * 66_000 + "\nEOF\n", "too long"),
        ("RUN <<EOF\n" + "\u00e9" * 12_000 + "\nEOF\n", "too long"),
        ("RUN a \\\n" + "x" * 66_000, "too long"),
    ],
)
def test_what_is_not_surely_read_is_refused_with_its_line(text, said):
    with pytest.raises(InvalidInput, match=f"Dockerfile line 2: .*(?:{said})"):
        instructions(f"FROM x\n{text}")


@pytest.mark.parametrize("sign", ["\0", "\r", "\x1b", "\x7f", "\ufffd"])
def test_what_is_no_text_is_refused_with_the_line_that_has_it(sign):
    with pytest.raises(InvalidInput, match="Dockerfile line 4: in a here-document"):
        instructions(f"FROM x\nRUN <<EOF\na\nb{sign}c\nEOF\n")


def test_the_longest_here_document_is_as_long_as_a_line_of_the_builder_may_be():
    for length in range(64_900, 65_100):
        with contextlib.suppress(InvalidInput):
            assert len(written("RUN <<EOF\n" + "x" * length + "\nEOF")[0]) < 65_100
    assert command("RUN <<EOF\n" + "x" * 64_900 + "\nEOF")[2] == "x" * 64_900 + "\n"


# The shell


def test_the_shell_is_the_one_of_the_stage():
    def shells(text: str, **images) -> list[list[str]]:
        lines = canonical(text.replace("HERE", "RUN <<EOF\na\nEOF"), {}, shells=images).splitlines()
        return [json.loads(line[4:])[:-1] for line in lines if line.startswith("RUN")]

    bash = 'SHELL ["/bin/bash", "-o", "pipefail", "-c"]'
    said = ["/bin/bash", "-o", "pipefail", "-c"]
    assert shells(f"FROM x\nHERE\n{bash}\nHERE\nFROM x\nHERE\n") == [SH, said, SH]
    assert shells(f"FROM x AS One\n{bash}\nFROM one AS two\nHERE\nFROM TWO\nHERE\n") == [said, said]
    assert shells("FROM x AS y\nHERE\nFROM y\nHERE\nFROM z\nHERE", x=["/b", "-c"]) == [["/b", "-c"]] * 2 + [
        SH
    ]
    # A stage hides an image of its name.
    assert shells("FROM x AS y\nFROM y\nHERE", y=["/b"]) == [SH]
    # A shell that runs nothing alone is left where it is not needed.
    assert canonical(f"FROM x\n{bash}\nRUN a\n", {}).endswith(f"{bash}\nRUN a\n")


@pytest.mark.parametrize("shell", ["SHELL /bin/sh -c", "SHELL []", "SHELL [1]", "SHELL"])
def test_without_a_known_shell_no_here_document_is_run(shell):
    text = f"FROM x\n{shell}\nRUN <<EOF\na\nEOF\n"
    with pytest.raises(InvalidInput, match="line 3: nobody can tell which shell"):
        canonical(text, {})
    with pytest.raises(InvalidInput, match="line 2: nobody can tell which shell"):
        canonical("FROM x\nRUN <<EOF\na\nEOF\n", {}, shells={"x": None})
    assert canonical("FROM x\nRUN a\n", {}, shells={"x": None}) == "FROM x\nRUN a\n"


def test_the_shell_of_an_image():
    assert shell_of({}) == shell_of({"Shell": None, "OnBuild": None}) == buildkit.SHELL
    assert shell_of({"Shell": ["/bin/bash", "-c"]}) == ["/bin/bash", "-c"]
    assert shell_of({"OnBuild": ["RUN a"]}) == buildkit.SHELL
    assert shell_of({"OnBuild": ['Shell ["/bin/bash", "-c"]'], "Shell": ["/bin/sh"]}) is None


# Here-documents of COPY


def test_a_here_document_of_copy_becomes_a_file_of_ours():
    text = "FROM x\nCOPY --link --chmod=0755 --chown=1:2 <<'EOF' /bin/it\n#!/bin/sh\necho \"$1\" \\\nEOF\n"
    text += "COPY a <<-b.txt <<C ./d/\n\tb\n\tb.txt\nC\nADD <<E /e\nFROM lab/2002/x\nE\n"
    assert canonical(text, {}).splitlines()[1:] == [
        "COPY --chown=1:2 .lab-server-here/2/EOF /bin/it",
        "COPY a .lab-server-here/6/b.txt .lab-server-here/6/C ./d/",
        "COPY .lab-server-here/10/E /e",
    ]
    assert inline_files(text) == {
        ".lab-server-here/2/EOF": ('#!/bin/sh\necho "$1" \\\n', 0o755),
        ".lab-server-here/6/b.txt": ("b\n", 0o644),
        ".lab-server-here/6/C": ("", 0o644),
        ".lab-server-here/10/E": ("FROM lab/2002/x\n", 0o644),
    }
    assert [*sources(text, {}, 2001)] == ["x"]
    assert inline_files("FROM x\nRUN <<EOF\na\nEOF\nCOPY a /b\n") == {}


# Properties


class Lexer:
    """Takes a line apart as BuildKit's lexer does; ``joins``: as newer versions, which keep "<<  x" together.

    ValueError where it finds no words. Source: moby/buildkit, frontend/dockerfile/shell/lex.go, with
    RawQuotes, RawEscapes and SkipUnsetEnv.
    """

    def __init__(self, line: str, *, joins: bool) -> None:
        self._line, self._at, self._joins = line, 0, joins
        self._special = {"$": self._dollar, "'": self._single, '"': self._double, "\\": self._escaped}
        if joins:
            self._special["<"] = self._possible_document

    def words(self) -> list[str]:
        words = [""]
        while self._peek():
            plain = self._peek() not in self._special
            said = self._next()
            if plain and said.isspace():
                words.append("")
            else:
                words[-1] += said
        return [word for word in words if word]

    def _peek(self) -> str:
        return self._line[self._at : self._at + 1]

    def _take(self) -> str:
        self._at += 1
        return self._line[self._at - 1 : self._at]

    def _next(self) -> str:
        return self._special.get(self._peek(), self._take)()

    def _until(self, end: str) -> str:
        found = ""
        while self._peek() != end:
            if not self._peek():
                raise ValueError
            found += self._next()
        return found + self._take()

    def _name(self) -> str:
        found = re.compile(r"[0-9]+|[@*#?$!-]|[A-Za-z_][A-Za-z0-9_]*|").match(self._line, self._at)
        self._at = found.end()
        return found.group()

    def _dollar(self) -> str:
        self._take()
        if self._peek() != "{":
            return "$" + self._name()
        self._take()
        if self._peek() in ("", "{", "}", ":"):
            raise ValueError
        name, sign = self._name(), self._take()
        if sign == "}":
            return f"${{{name}}}"
        if sign != ":" or self._peek() not in ("+", "-"):
            raise ValueError
        return f"${{{name}:{self._take()}{self._until('}')}"

    def _single(self) -> str:
        end = self._line.index("'", self._at + 1) + 1
        found, self._at = self._line[self._at : end], end
        return found

    def _double(self) -> str:
        found = self._take()
        while self._peek() != '"':
            if not self._peek():
                raise ValueError
            if self._peek() == "$":
                found += self._dollar()
                continue
            found += self._take()
            if found[-1] == "\\" and self._peek() in ('"', "$", "\\"):
                found += self._take()
        return found + self._take()

    def _escaped(self) -> str:
        return self._take() + self._take()

    def _possible_document(self) -> str:
        found = self._take()
        if self._peek() == "<":
            found += self._take()
            while self._peek() in (" ", "\t"):
                found += self._take()
        return found


def buildkits_documents(line: str, *, joins: bool) -> list[tuple[str, bool]]:
    """Return (what follows "<<", whether tabs go) of each here-document that BuildKit finds in a line."""
    found: list[tuple[str, bool]] = []
    try:
        words = Lexer(line, joins=joins).words()
    except ValueError:
        return found
    for word in words:
        match = re.fullmatch(r"(\d*)<<(-?)([^<]*)", word)
        if match is not None and match.group(3).strip():
            found.append((match.group(3).strip(), bool(match.group(2))))
    return found


PARTS = (
    *(" ", " <<E ", " <<-'E' ", ' 1<<"a" ', "<<", "<<-", "<", "E", "1", "a", "'", '"', "\\", "\t"),
    *("$", "$((", "))", "${A}", "${A:-b}", "${A-b}", "${A#b}", "${", "}", ">o", ";", "#", "-"),
)


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PARTS), min_size=2, max_size=8).map("".join), st.booleans())
@example("$((1<<2))", True)
@example("$(( 1<<2 )) <<E", True)
@example("$((<< <<E ", True)
def test_what_is_read_is_what_every_buildkit_reads(text, joins):
    # As many ends of each as there may be openings; what follows them is no matter here.
    ends = ("E", "1E", "a", "1", "11", "aa", "EE") * 8
    there = [(name.strip("'\""), tabs) for name, tabs in buildkits_documents(f"a{text} b", joins=joins)]
    with contextlib.suppress(InvalidInput):
        read = buildkit.documents("RUN", f"a{text} b", iter(enumerate(ends)), "here")
        assert [(one.name, one.tabs) for one in read] == there


names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
bodies = st.lists(
    st.one_of(
        st.text(st.characters(exclude_characters="\n")),
        st.sampled_from(
            ["FROM lab/2002/x", "EOF", "\\", "a \\", "# escape=`", '"]', "RUN <<EOF", "\tEOF", "#!/x"]
        ),
    )
)


@given(
    names, bodies, st.sampled_from(["", "-"]), st.sampled_from(["", "'", '"']), st.sampled_from(["", "cat "])
)
@example("EOF", ["a\\", "<<EOF"], "", "", "")
@example("EOF", ["#!/bin/sh", "EOF_", "\\u003c"], "", "'", "")
def test_nothing_of_a_body_is_anything_but_its_text(name, lines, tabs, quote, before):
    text = f"FROM x\nRUN {before}<<{tabs}{quote}{name}{quote}\n" + "".join(f"{line}\n" for line in lines)
    text += f"{name}\nCOPY --from=y /a /b\n"
    if any((line.lstrip("\t") if tabs else line).rstrip("\r") == name for line in lines):
        return
    with contextlib.suppress(InvalidInput):
        body = "".join(f"{line}\n" for line in lines)
        lines_of = canonical(text, {}).split("\n")
        assert len(lines_of) == 4
        assert (lines_of[0], lines_of[2:]) == ("FROM x", ["COPY --from=y /a /b", ""])
        assert lines_of[1].isascii()
        assert lines_of[1].isprintable()
        assert "<" not in lines_of[1]
        assert lines_of[1].startswith('RUN ["/bin/sh", "-c", "')
        assert lines_of[1].endswith('"]')
        said = json.loads(lines_of[1][4:])[2]
        content = re.sub(r"(?m)^\t+", "", body) if tabs else body
        if before:
            assert said == f"{before}<<{tabs}{quote}{name}{quote}\n{body}{name}"
        else:
            assert said == content or (content.startswith("#!") and said.count(content) == 1)
        assert [item.word for item in instructions("\n".join(lines_of))] == ["FROM", "RUN", "COPY"]
        assert canonical("\n".join(lines_of), {}) == "\n".join(lines_of)
        assert [*sources(text, {}, 2001)] == [*sources("\n".join(lines_of), {}, 2001)] == ["x", "y"]


@given(
    st.text(alphabet="RUNCOPYADDFM --linkmountype=cache,targ/xfrom<EO'\"\\\n$[]{}()\t1"),
)
def test_the_whole_is_total_and_reads_the_same_again(text):
    with contextlib.suppress(LabError):
        made = canonical(f"FROM x\n{text}", {})
        assert "<<" not in re.sub(r"<<<+", "", made)
        assert canonical(made, {}) == made
        assert len(instructions(made)) == made.count("\n")
        assert [*sources(made, {}, 2001)] == [*sources(f"FROM x\n{text}", {}, 2001)]
        for path in inline_files(f"FROM x\n{text}"):
            assert re.fullmatch(r"\.lab-server-here/[0-9]+/[A-Za-z0-9_][A-Za-z0-9_.-]*", path)
