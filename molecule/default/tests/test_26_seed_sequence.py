"""A lab user's day at a real terminal: bob logs in by ssh and types (A1 to A9, A15, A16, A18).

In the order of the documents: a checkpoint that is kept and one that is lost, a package that is lost and then
baked in, a dataset that projects share by a link, a full quota, and 'where did my files go'.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pexpect
import pytest
from conftest import BOB, MACHINES, PATIENCE, Server

PROJECT = "~/workspace/seeds"
COLUMNS = 80
# Controls of terminals (ECMA-48): colours and cursors, titles, and the choice of a keypad.
CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07|\x1b[=>]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Screen:
    """A terminal of 80 columns with a login shell of a lab user."""

    def __init__(self, user: str) -> None:
        config = MACHINES / os.environ["LAB_VM_NAME"] / "ssh_config"
        # A connection of its own: one that is shared would keep the terminal open when this ends.
        options = ["-F", str(config), "-o", "ControlPath=none", "-tt", "-l", user, "server"]
        environment = {**os.environ, "TERM": "xterm-256color"}
        self._terminal = pexpect.spawn(
            "ssh", options, dimensions=(24, COLUMNS), encoding="utf-8", timeout=PATIENCE, env=environment
        )
        self.greeting = self._until_prompt()
        # A shell that shows nothing of its own, so that what is on the screen is what the commands say.
        self._terminal.sendline("exec env PS1= bash --norc --noediting")
        self._terminal.sendline("stty -echo")
        self.type("true")

    def _until_prompt(self) -> str:
        """Wait for a shell that asks; return what was shown before."""
        self._terminal.expect(r"\$ (\x1b\[[?0-9;]*[a-z])*$")
        return str(self._terminal.before)

    def type(self, command: str, *, code: int | None = 0) -> str:
        """Type a command; return what it shows, with all controls. ``code``: how it must end, or None."""
        self._terminal.sendline(f'{command}; echo "EN""D:$?."')
        self._terminal.expect(r"END:([0-9]+)\.\r\n")
        shown, ended = str(self._terminal.before), int(self._terminal.match.group(1))
        assert code in (None, ended), f"{command}: exit status {ended}\n{shown}"
        return shown

    def read(self, command: str, *, code: int | None = 0) -> str:
        """Type a command of ours; return what people read of it. No line of it is wider than the terminal."""
        shown = plain(self.type(command, code=code))
        widest = max(shown.splitlines(), key=len, default="")
        assert len(widest) <= COLUMNS, f"{command}: {widest!r} has {len(widest)} columns"
        assert "Traceback" not in shown
        return shown

    def enter(self, command: str) -> str:
        """Type a command that ends in a shell of the container; return what was said before that one asks."""
        self._terminal.sendline(f'{command}; echo "LE""FT."')
        return plain(self._until_prompt())

    def leave(self) -> None:
        """Leave the shell of the container; what is typed before it ended would be lost."""
        self._terminal.sendline("exit")
        self._terminal.expect(r"LEFT\.\r\n")

    def close(self) -> None:
        """Hang up."""
        self._terminal.close(force=True)


def plain(shown: str) -> str:
    """Return what was shown without colours; a line that updates itself counts as so many lines."""
    return CONTROL.sub("", shown.replace("\r\n", "\n").replace("\r", "\n"))


def words(shown: str) -> str:
    """Return what was shown as words with one space between, wherever its lines were broken."""
    return " ".join(plain(shown).split())


@pytest.fixture(scope="module")
def screen(server: Server) -> Iterator[Screen]:
    """Bob's terminal, and a small project of his with a Dockerfile."""
    server.user("bob", f"rm -rf {PROJECT} ~/workspace/datasets ~/workspace/filler")
    typed = Screen("bob")
    typed.read("project init seeds --base lab/python")
    typed.type(f"echo FROM lab/python > {PROJECT}/Dockerfile")
    yield typed
    typed.close()
    server.user("bob", "container retire seeds; image remove seeds --all --yes", check=False)
    server.user("bob", f"rm -rf {PROJECT} ~/workspace/datasets ~/workspace/filler")


def test_a_login_is_greeted(screen: Screen) -> None:
    # What the distribution says before that has its own width.
    _before, ours, greeting = plain(screen.greeting).partition("Welcome to")
    assert ours and "Bob Student" in greeting and "of 250M" in greeting
    # The last of it is the shell's own prompt.
    assert max(len(line) for line in greeting.splitlines()[:-1]) <= COLUMNS


def test_what_is_in_the_workspace_is_kept_and_all_else_is_lost(screen: Screen) -> None:
    screen.type("mkdir -p ~/workspace/datasets/imagenet && echo tabby > ~/workspace/datasets/imagenet/labels")
    screen.type(f"ln -s ../datasets/imagenet {PROJECT}/imagenet")
    said = words(screen.enter("project launch seeds"))
    assert "kept: /workspace" in said and "lost when you retire" in said
    inside = plain(
        screen.type(
            "pwd; ls ~/workspace/; cat imagenet/labels; "
            "mkdir -p models; echo w | tee models/checkpoint.pt ~/checkpoint.pt > /dev/null; "
            "workspace where models/checkpoint.pt ~/checkpoint.pt imagenet/labels; "
            "pip install --quiet --no-input iniconfig && "
            'python3 -c \'import iniconfig; print("imp" + "orted")\''
        )
    )
    screen.leave()
    for wanted in (r"^/workspace/seeds$", r"\bdatasets\b.*\bseeds\b", r"^tabby$", r"^imported$"):
        assert re.search(wanted, inside, re.MULTILINE), inside
    verdicts = re.findall(r"^(kept|lost) +(\S+)$", inside, re.MULTILINE)
    assert verdicts == [
        ("kept", "models/checkpoint.pt"),
        ("lost", "/home/bob/checkpoint.pt"),
        ("kept", "imagenet/labels"),
    ]
    retired = words(screen.read("container retire seeds"))
    assert "Your workspace is untouched" in retired and "iniconfig" in retired


def test_a_package_of_the_dockerfile_is_there_for_ever(screen: Screen, server: Server) -> None:
    look = "ls models ~; cat imagenet/labels; python3 -c 'import iniconfig; print(1 + 1)'"
    assert "in a new container" in words(screen.read("project launch seeds --detach"))
    again = screen.type(f'container exec seeds -- sh -c "{look}"', code=1)
    assert "checkpoint.pt" in again and "tabby" in again and again.count("checkpoint.pt") == 1
    assert "ModuleNotFoundError" in again
    screen.type(f"echo 'RUN pip install --no-cache-dir iniconfig' >> {PROJECT}/Dockerfile")
    updated = words(screen.read("image-update seeds"))
    assert "container retire seeds" in updated
    screen.read("container retire seeds && project launch seeds --detach")
    assert "2" in plain(screen.type(f'container exec seeds -- sh -c "{look}"')).split()
    assert server.root("stat -c %u:%g /home/.workspaces/bob/seeds/models/checkpoint.pt").out == f"{BOB}:{BOB}"


@pytest.mark.thorough
def test_a_full_quota_is_told_and_cleaned_up(screen: Screen) -> None:
    screen.type("mkdir ~/workspace/filler && fallocate -l 235M ~/workspace/filler/old-checkpoints")
    full = "dd if=/dev/zero of=results/metrics bs=1M count=30"
    assert "Disk quota exceeded" in screen.type(f"container exec seeds -- {full}", code=1)
    usage = screen.read("workspace usage")
    assert re.search(r"(9[5-9]|100) % +\S+ of 250M", usage) and "~/workspace/filler" in usage
    # What was there is there; the commands that help work with nothing left.
    assert screen.type(f"cat {PROJECT}/models/checkpoint.pt").split() == ["w"]
    assert "quota" in screen.read("project doctor seeds", code=None)
    screen.type(f"rm -r ~/workspace/filler {PROJECT}/results/metrics")
    assert not re.search(r"(9[5-9]|100) %  \S+ of 250M", screen.read("workspace usage"))


@pytest.mark.thorough
def test_where_did_my_files_go(screen: Screen) -> None:
    told = screen.read(f"workspace where {PROJECT}/models/checkpoint.pt ~/checkpoint.pt /tmp", code=4)
    assert re.search(r"^kept +/home/bob/workspace/seeds/models/checkpoint.pt$", told, re.MULTILINE)
    screen.type("container exec seeds -- sh -c 'echo lost > ~/results.csv'")
    examined = screen.read("project doctor seeds", code=None)
    assert "/home/bob/results.csv" in examined


@pytest.mark.parametrize("plainly", ["", "NO_COLOR=1", "TERM=dumb"])
def test_every_screen_has_80_columns_with_and_without_colour(screen: Screen, plainly: str) -> None:
    commands = ["project doctor seeds", "workspace usage", "workspace where ~/workspace"]
    if not plainly:
        commands += ["project list", "project status seeds", "container list", "image history seeds"]
    shown = [screen.type(f"{plainly} {command}", code=None) for command in commands]
    for command, text in zip(commands, shown):
        widest = max(plain(text).splitlines(), key=len)
        assert len(widest) <= COLUMNS, f"{command}: {widest!r}"
        assert bool(COLOUR.search(text)) is (not plainly) or command not in commands[:3], command
        assert "\x1b" not in text or plainly != "TERM=dumb", command
