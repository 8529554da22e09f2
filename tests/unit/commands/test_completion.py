# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Completion, in the shells themselves: what is offered where, from what folders, and how fast."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    cli,
    completion,
    greeting,
    install,
    interface,
    keeping,
)
from ansible_collections.lab.server.plugins.module_utils._core.policy import BaseImage, Policy

IMAGES = ["lab/python", "lab/torch:2.1", "lab/torch:2.2"]
KEPT = ["a-b-20260303-000000"]
BASH, ZSH = shutil.which("bash"), shutil.which("zsh")
needs_bash = pytest.mark.skipif(not BASH, reason="bash is not installed here")
needs_zsh = pytest.mark.skipif(not ZSH, reason="zsh is not installed here")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home whose workspace holds projects, and folders whose names are traps."""
    names = [
        "thesis",
        "thesis-2",
        "essay",
        "not a project",
        "$(touch pwned)",
        "`touch pwned`",
        "a\nb",
        "-x",
        "*",
    ]
    for name in [*names, "Upper", ".hidden"]:
        (tmp_path / "workspace" / name).mkdir(parents=True)
    (tmp_path / "workspace/file").touch()
    for place, kept in {
        ".archive": ["old-20260202-000000.tar.gz", "essay-20260202-000000.tar.gz", "$(touch pwned).tar.gz"],
        ".trash": ["old-20260101-000000", *KEPT, "thesis-20260101-000000", "x", "`touch pwned`"],
    }.items():
        for name in kept:
            (tmp_path / "workspace" / place / name).mkdir(parents=True)
    return tmp_path


Offer = Callable[..., list[str]]


@pytest.fixture
def offer(home: Path) -> Offer:
    """Return a function that says what bash offers behind a beginning of a line."""

    def offered(line: str, *more: str, begin: str = "") -> list[str]:
        program = next(one for one in interface.programs() if one.page == line.split()[0])
        script = completion.bash(program, IMAGES, "# mark")
        function = f"_lab_server_{program.page.replace('-', '_')}"
        lines = "".join(
            f"COMP_LINE={shlex.quote(one)}; COMP_POINT=${{#COMP_LINE}}; {function}\n" for one in (line, *more)
        )
        done = subprocess.run(
            [
                BASH or "bash",
                "--norc",
                "-u",
                "-c",
                f"{begin}{script}\n{lines}printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            ],
            env={"PATH": "/nowhere", "HOME": str(home), "LANG": "C.UTF-8"},
            cwd=home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert not (home / "pwned").exists()
        return [word for word in done.stdout.splitlines() if word]

    return offered


@needs_bash
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("project ", [one.words[1] for one in cli.COMMANDS if one.words[0] == "project"]),
        ("project la", ["launch"]),
        ("project x", []),
        ("project nosuch ", []),
        ("project -", ["-h", "--help"]),
        ("project launch ", ["essay", "thesis", "thesis-2"]),
        ("project launch the", ["thesis", "thesis-2"]),
        ("project launch --detach the", ["thesis", "thesis-2"]),
        ("project launch thesis ", []),
        ("project launch $(", []),
        ("project launch `", []),
        ("project launch *", []),
        ("project launch --de", ["--detach"]),
        ("project launch thesis --js", ["--json"]),
        ("project launch -- --j", []),
        ("project-launch th", ["thesis", "thesis-2"]),
        ("project init x --type ", ["ml", "cv", "nlp", "stats", "custom"]),
        ("project init x --type=c", ["cv", "custom"]),
        ("project init --type ml ess", ["essay"]),
        ("project init x --base ", IMAGES),
        # Of a word with a colon readline replaces what is behind it.
        ("project init x --base lab/torch:", ["2.1", "2.2"]),
        ("project-init x --base=lab/torch:2.1", ["2.1"]),
        ("container retire --dry", ["--dry-run"]),
        ("image-install thesis ", []),
        ("image-install thesis numpy --b", ["--bake"]),
        ("lab sha", ["share"]),
        ("lab share ", ["list", "show", "publish", "verify", "retract"]),
        ("lab share pu", ["publish"]),
        ("lab share nosuch ", []),
        ("lab share retract datasets iris --dr", ["--dry-run"]),
        ("lab-share ve", ["verify"]),
        ("workspace where ", []),  # readline offers files
        ("image rollback thesis --to ", []),
        ("image show thesis --to ", []),
        ("image remove thesis --to ", []),
        ("project restore ", ["old", "old-20260101-000000", "old-20260202-000000.tar.gz", "a-b", *KEPT]),
        ("project-restore a-b-", KEPT),
        ("project import f.tar.gz ", []),
        ("project rename thesis ", []),
        ("lab backup --server ", []),
        ("workspace usage --", ["--all", "--help", "--json"]),
        ("  project   launch   es", ["essay"]),
    ],
)
def test_what_bash_offers(offer: Offer, line: str, offered: list[str]) -> None:
    assert sorted(offer(line)) == sorted(offered)


@needs_bash
@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("project import ", "default"),
        ("project export thesis ", "default"),
        ("workspace where ", "default"),
        ("lab restore alice x --to ", "dirnames"),
        ("project launch ", ""),
    ],
)
def test_files_and_folders_are_left_to_bash(offer: Offer, line: str, option: str) -> None:
    # Outside of a completion there is none whose options could be set.
    said = "compopt() { printf '%s\\n' \"$2\"; }\n"
    assert [word for word in offer(line, begin=said) if word in ("default", "dirnames")] == [
        *([option] if option else [])
    ]


def test_what_is_offered_is_what_the_parsers_take(home: Path) -> None:
    """Of each kind all that would be offered, given to the parser's own type."""
    workspace = str(home / "workspace")
    kept = [one.project for one in keeping.kept(workspace)]
    samples = {
        completion._PROJECTS: ["thesis", "thesis-2", "x"],
        completion._IMAGES: IMAGES,
        completion._KEPT: [*kept, *KEPT],
        completion._FILES: ["results.csv", "/srv/data/a b"],
        completion._FOLDERS: ["/root/restored"],
    }
    kinds = set()
    for command in cli.COMMANDS:
        for action in cli.build_parser("-".join(command.words))._actions:
            shown = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
            kind = completion._kind(shown, [str(choice) for choice in action.choices or ()])
            kinds.add(kind)
            for word in samples.get(kind, ()) if action.nargs != 0 and callable(action.type) else ():
                assert action.type(word) == word, (command.words, shown)
    assert set(samples) <= kinds
    assert keeping.find(workspace, "a-b").path == f".trash/{KEPT[0]}" == keeping.find(workspace, KEPT[0]).path


@needs_bash
def test_bash_offers_all_that_the_parsers_take(offer: Offer) -> None:
    def look(one: interface.Interface) -> None:
        wanted = [spelling for option in one.options for spelling in option.spellings]
        assert offer(" ".join(one.words) + " -") == wanted and "--help" in wanted
        if one.commands:
            assert offer(" ".join(one.words) + " ") == [command.words[-1] for command in one.commands]
        for command in one.commands:
            look(command)

    for program in interface.programs():
        look(program)


@needs_bash
def test_a_tab_takes_less_than_a_tenth_of_a_second(offer: Offer, home: Path) -> None:
    for number in range(500):
        (home / f"workspace/p{number}").mkdir()
    # The processor's time: what else this computer does meanwhile is no part of it.
    before = os.times()
    assert len(offer("project launch p", *["project launch p"] * 19)) == 500
    after = os.times()
    took = after.children_user + after.children_system - before.children_user - before.children_system
    assert 0 < took / 20 < 0.1


# ---- zsh -------------------------------------------------------------------------------------------------


BEGIN = "autoload -Uz compinit; compinit -u -D; "


class Zsh:
    """A zsh on a terminal, with our completion; ``complete`` types a line and a TAB, and returns the line."""

    def __init__(self, home: Path, functions: Path, *options: str, begin: str = BEGIN, **more: str) -> None:
        self._ours, theirs = pty.openpty()
        variables = {"PATH": "/nowhere", "HOME": str(home), "TERM": "dumb", "LANG": "C.UTF-8", **more}
        self._process = subprocess.Popen(
            [ZSH or "zsh", *(options or ("-f", "-i"))],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=home,
            env=variables,
        )
        os.close(theirs)
        widget = 'show() { zle -I; print -r -- "LI""NE<$BUFFER>"; BUFFER= }'
        self._type(
            f"{widget}; zle -N show; bindkey '^X' show; fpath=({shlex.quote(str(functions))} $fpath); "
            f"{begin}LISTMAX=-1; bindkey '^I' complete-word; print READ''Y\n"
        )
        self.greeted = self._until("READY")

    def _type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def _until(self, word: str) -> str:
        shown, end = "", time.monotonic() + 30
        while word not in shown:
            assert select.select([self._ours], [], [], max(0, end - time.monotonic()))[0], shown
            shown += os.read(self._ours, 65536).decode(errors="replace")
        return shown

    def complete(self, line: str) -> str:
        """Return what becomes of a line by a TAB."""
        self._type(f"{line}\t\x18")
        shown = self._until("LINE<")
        while ">" not in shown.rpartition("LINE<")[2]:
            shown += self._until(">")
        return shown.rpartition("LINE<")[2].partition(">")[0]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        os.close(self._ours)


@pytest.fixture
def zsh(home: Path, tmp_path: Path) -> Iterator[Zsh]:
    """Return a zsh with our completion."""
    functions = tmp_path / "functions"
    functions.mkdir()
    (functions / "_lab-server").write_text(completion.zsh(interface.programs(), IMAGES, "# mark"))
    shell = Zsh(home, functions)
    yield shell
    shell.close()


@needs_zsh
def test_what_zsh_offers(zsh: Zsh, home: Path) -> None:
    (home / "results.csv").touch()
    for line, became in {
        "project lau": "project launch ",
        "project launch es": "project launch essay ",
        "project launch --det": "project launch --detach ",
        "project-launch es": "project-launch essay ",
        "project launch Up": "project launch Up",
        "project init x --ty": "project init x --type=",
        "project init x --type st": "project init x --type stats ",
        "project init x --base lab/p": "project init x --base lab/python ",
        "project-init x --base=lab/torch:2.2": "project-init x --base=lab/torch:2.2 ",
        "container reti": "container retire ",
        "image-install es": "image-install essay ",
        "image-install essay numpy --ba": "image-install essay numpy --bake ",
        "workspace where res": "workspace where results.csv ",
        "project import res": "project import results.csv ",
        "project export essay res": "project export essay results.csv ",
        "project restore a": "project restore a-b",
        "project restore a-b-": f"project restore {KEPT[0]} ",
        "project restore th": "project restore th",
        "project restore old-20260202": "project restore old-20260202-000000.tar.gz ",
        "image rollback essay --to lab": "image rollback essay --to lab",
        "lab restore alice x --to wor": "lab restore alice x --to workspace/",
        "workspace nosuch x": "workspace nosuch x",
    }.items():
        assert zsh.complete(line) == became
    assert not (home / "pwned").exists()


@needs_zsh
@pytest.mark.parametrize("own", ["", "autoload -Uz compinit; compinit -u -D; echo OWN\n"])
def test_a_login_shell_of_zsh_greets_once_and_completes(home: Path, tmp_path: Path, own: str) -> None:
    """It reads the lines of /etc/zsh/zlogin as a file of the user's, which comes at the same place."""
    profile, functions, files = tmp_path / "profile", tmp_path / "functions", tmp_path / "zsh"
    for folder in (functions, files):
        folder.mkdir()
    (functions / "_lab-server").write_text(completion.zsh(interface.programs(), IMAGES, "# mark"))
    profile.write_text('case $- in *i*) [ -n "${GREETED-}" ] || echo WEL""COME; export GREETED=1 ;; esac\n')
    (files / ".zshenv").write_text(f"fpath=({functions} $fpath)\n")
    (files / ".zshrc").write_text(own)
    (files / ".zlogin").write_text(greeting.ZLOGIN.replace(greeting.PROFILE_PATH, str(profile)))
    shell = Zsh(home, functions, "-l", "-i", begin="", ZDOTDIR=str(files), PATH=os.environ["PATH"])
    try:
        assert shell.greeted.count("WELCOME") == 1 and shell.greeted.count("OWN") == bool(own)
        assert shell.complete("project lau") == "project launch "
        assert shell.complete("container reti") == "container retire "
        assert (files / ".zcompdump").exists() == (not own)
    finally:
        shell.close()
    (files / ".zcompdump").unlink(missing_ok=True)
    # What a login shell runs for a program says nothing, and makes no file.
    words = [ZSH or "zsh", "-l", "-c", "echo $+functions[compdef]"]
    variables = {"HOME": str(home), "PATH": os.environ["PATH"], "ZDOTDIR": str(files)}
    done = subprocess.run(words, capture_output=True, text=True, env=variables, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n", "")
    assert not (files / ".zcompdump").exists()


# ---- what is installed -----------------------------------------------------------------------------------


def test_every_program_has_a_script_with_the_images_of_the_server(lab: Policy) -> None:
    found = completion.files(lab, install._MARK)
    assert set(found) == {
        *(f"{completion.BASH_DIRECTORY}/{name}" for name in cli.programs()),
        f"{completion.ZSH_DIRECTORY}/_lab-server",
    }
    for path, text in found.items():
        assert install._MARK in text[: install._MARK_WITHIN]
        assert "lab/python" in text and BaseImage.__name__ not in text, path
    assert found[f"{completion.ZSH_DIRECTORY}/_lab-server"].startswith("#compdef ")
