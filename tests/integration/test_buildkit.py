"""What only BuildKit knows, built by the real classic builder: what ran, what it left, what failed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import containers, images
from ansible_collections.lab.server.plugins.module_utils._core import engine as engines
from ansible_collections.lab.server.plugins.module_utils._core.errors import EngineError, InvalidInput

BODY = """\
set -e
A='it''s "$B" \\$C'
echo "$A" `echo two` \\
  "conti\
nued" 'é \U0001f600 \u2028' >/out
FROM=lab/2002/x
echo 'RUN <<EOF' "]" '\\u003c' \\\\ >>/out
\techo --from=lab/2002/net /x >>/out
cat <<IN >>/out
in $FROM
IN
"""
SAID = """\
its "$B" \\$C two continued é \U0001f600 \u2028
RUN <<EOF ] \\u003c \\
--from=lab/2002/net /x
in lab/2002/x
"""


@pytest.fixture
def built(engine, policy, alice, thesis, tiny, inside):
    """Return a function that builds a Dockerfile and runs a command in a container of the image."""

    def build(dockerfile: str, show: str) -> str:
        thesis.write("Dockerfile", f"FROM {tiny}\n{dockerfile}")
        containers.launch(engine, policy, alice, "thesis")
        return inside(alice, "thesis", show)

    return build


@pytest.mark.parametrize("opening", ["<<EOF", "<<'EOF'", "<<-EOF", '3<<-"EOF"'])
def test_a_body_is_run_as_it_stands(built, opening):
    assert built(f"RUN {opening}\n{BODY}EOF\n", "cat /out") == SAID


def test_what_more_stands_beside_is_the_shells(built):
    text = (
        "ENV B=b\nRUN cat <<A - <<'C' >/one && echo end >>/one\nlost\nA\n$B \\\nC\n"
        "RUN <<EOF sh -e\necho $0 $B >/two\nEOF\n"
        "RUN cat >/three <<-A\n\t\t$B \\$B\n\tA\n"
        "RUN echo $((1<<2)) \"<<X\" '<<Y' >/four\n"
        'RUN ["sh", "-c", "cat <<A >/five\\n$B\\nA"]\n'
    )
    assert built(text, "cat /one /two /three /four /five") == "$B \\\nend\n/bin/sh b\nb $B\n4 <<X <<Y\nb\n"


def test_the_shell_is_the_one_of_the_stage_or_of_its_image(built, engine, docker, tiny):
    # It runs what it is given and says by which words.
    shell = ["/bin/sh", "-c", 'echo "via $0" >>/via; eval "$1"', "mine"]
    classic = {**os.environ, "DOCKER_BUILDKIT": "0"}
    base = f"FROM {tiny}\nSHELL {json.dumps(shell)}\n".encode()
    docker("build", "-q", "-t", "lab-test/shell", "-", input=base, env=classic)
    assert engine.inspect_image("lab-test/shell")["Config"]["Shell"] == shell
    stages = (
        "RUN <<EOF\ntouch /no-via\nEOF\n"
        "FROM lab-test/shell AS one\nRUN <<EOF\necho body >>/via\nEOF\n"
        'FROM one AS two\nRUN <<EOF\necho again >>/via\nEOF\nSHELL ["/bin/sh", "-ec"]\n'
        "RUN <<EOF\necho $0 plain >>/via\nEOF\n"
    )
    assert built(stages, "cat /via") == "via mine\nbody\nvia mine\nagain\n/bin/sh plain\n"
    docker("rmi", "-f", "lab-test/shell")


@pytest.mark.parametrize(("user", "place"), [("", "/dev/pipes"), ("USER 2001:2001\n", "/tmp/tmp.")])
def test_a_script_is_run_by_what_its_first_line_names_and_leaves_nothing(built, docker, url, user, place):
    script = "#!/bin/sh -e\necho \"$0 $# $HOME\" '$x' \\\\ >/made/out\n"
    text = "RUN mkdir -m 777 /made; ln -s busybox /bin/mktemp\n"
    said = built(f"{text}ENV HOME=/h\n{user}RUN <<'EOF'\n{script}EOF\n", "cat /made/out")
    assert said.startswith(place)
    assert said.endswith("/EOF 0 /h $x \\\n")
    made = docker("create", "lab/2001/thesis", "true").strip()
    try:
        whole = subprocess.run([engines.DOCKER, "-H", url, "export", made], capture_output=True, check=True)
    finally:
        docker("rm", made)
    with tarfile.open(fileobj=io.BytesIO(whole.stdout)) as archive:
        there = archive.getnames()
    assert "made/out" in there
    assert [name for name in there if "EOF" in name or name.startswith(("tmp/", "dev/pipes"))] == []


def test_a_script_that_fails_fails_the_step_with_its_line(engine, policy, alice, thesis, tiny):
    thesis.write("Dockerfile", f"FROM {tiny}\n\nRUN <<EOF\n#!/bin/sh\necho this is why >&2\nexit 7\nEOF\n")
    with pytest.raises(EngineError, match=r"line 3 of its Dockerfile \(RUN <<EOF\) failed: this is why"):
        images.build(engine, policy, alice, "thesis")
    thesis.write("Dockerfile", f"FROM {tiny}\n\nRUN <<EOF\n#!/bin/sh\nexit 7\nEOF\n")
    with pytest.raises(EngineError, match=r"\(RUN <<EOF\) failed: The command returned a non-zero code: 7"):
        images.build(engine, policy, alice, "thesis")


def test_a_body_that_fails_is_told_with_its_line(engine, policy, alice, thesis, tiny):
    mount = "--mount=type=cache,target=/root/.cache/pip"
    thesis.write(
        "Dockerfile", f"FROM {tiny}\nRUN {mount} true\n\nRUN <<EOF\necho it broke\nfalse\nEOF\nRUN true\n"
    )
    with pytest.raises(EngineError, match=r"line 4 of its Dockerfile \(RUN <<EOF\) failed: it broke\."):
        images.build(engine, policy, alice, "thesis")
    thesis.write("Dockerfile", f"FROM {tiny}\nCOPY <<A <<B /d/\n1\nA\n2\nB\nRUN {mount} false\n")
    with pytest.raises(EngineError, match=rf"line 7 of its Dockerfile \(RUN {mount} false\)"):
        images.build(engine, policy, alice, "thesis")
    thesis.write("Dockerfile", f"FROM {tiny}\nRUN --mount=type=secret,id=x true\n")
    with pytest.raises(InvalidInput, match=r"Dockerfile line 2: .*type secret"):
        images.build(engine, policy, alice, "thesis")


def test_another_body_is_another_image(engine, policy, alice, thesis, tiny):
    def build(body: str) -> str:
        thesis.write("Dockerfile", f"FROM {tiny}\nRUN <<EOF\n{body}\nEOF\nCOPY <<'X' /x\n{body}\nX\n")
        return images.build(engine, policy, alice, "thesis").facts["fingerprint"]

    first = build("echo one")
    assert build("echo two") != first
    assert build("echo one") == first
    # What is in the folder and no step takes counts for nothing.
    thesis.write("more", "x")
    assert not images.build(engine, policy, alice, "thesis").changed


def test_a_cache_is_left_out_and_pip_and_uv_keep_none(built):
    text = (
        "RUN --mount=type=cache,target=/root/.cache/pip,sharing=locked --mount=type=cache,target=/c"
        ' --network=default echo "$PIP_NO_CACHE_DIR$UV_NO_CACHE" >/out\n'
        "RUN --mount=type=cache,target=/c <<EOF\nls -d /c >>/out 2>&1 || echo none >>/out\nEOF\n"
    )
    said = built(text, "cat /out; env")
    assert said.startswith("11\n")
    assert "none\n" in said
    # It is a matter of the build: the image and its containers have it no more.
    assert "NO_CACHE" not in said.split("none\n")[1]


def test_a_copy_of_a_here_document_is_a_file_with_its_mode_and_owner(built, thesis):
    # What the project has in the place of our files, or of a folder above them, is not in the build.
    (thesis.path / ".lab-server-here").symlink_to("word")
    thesis.write("a.txt", "context\n")
    text = (
        "COPY --link --chmod=0755 --chown=12:34 <<'EOF' /bin/it\n#!/bin/sh\necho \"run $0\" '\\' é\nEOF\n"
        "COPY <<-plain.txt a.txt <<two /d/\n\tone\n\tplain.txt\ntwo\nADD <<E /e\nFROM lab/2002/x\nE\n"
        "COPY <<'E' /d\nin the folder\nE\nCOPY --link a.txt /b\n"
    )
    said = built(
        text, "/bin/it; ls -ln /bin/it /e | cut -c1-40; cat /d/plain.txt /d/a.txt /d/two /e /d/E /b; ls -A /d"
    )
    lines = said.splitlines()
    assert lines[0] == "run /bin/it \\ é"
    assert lines[1].split()[:4] == ["-rwxr-xr-x", "1", "12", "34"]
    assert lines[2].split()[:4] == ["-rw-r--r--", "1", "0", "0"]
    assert lines[3:] == [
        *("one", "context", "FROM lab/2002/x", "in the folder", "context"),
        *("E", "a.txt", "plain.txt", "two"),
    ]


def test_the_longest_body_is_built(built):
    # A byte is one, and every "<" of the last line six of the line that the builder reads.
    text = "x" * 40_000 + "\n" + "<" * 4_000
    assert built(f"RUN cat <<'EOF' | wc >/out\n{text}\nEOF\n", "cat /out").split() == ["2", "2", "44002"]


def test_a_line_as_long_as_we_let_it_be_is_one_that_the_builder_reads(built):
    assert built(f"RUN true {'x' * 64_990}\nRUN touch /end\n", "ls /end") == "/end\n"
