# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Kept or lost: the verdict on the server, and that of the program in containers, in every shell there is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import homes, mounts, privatetmp, where
from ansible_collections.lab.server.plugins.module_utils._core.mounts import Mount
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, from_inventory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LIMITS = {"containers": 2, "cpus": 2, "memory": "1g", "pids": 512, "shm": "64m", "gpus": 0}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
# Debian's shell, that of small images, and the one that most images have besides: those that are here.
SHELLS = [words for words in (["dash"], ["busybox", "sh"], ["bash"], ["sh"]) if shutil.which(words[0])]


# ---- on the server ---------------------------------------------------------------------------------------


@pytest.fixture
def shared() -> Policy:
    """Return a policy with shares of every kind and a project whose home is that of the server."""
    checked, _keys = from_inventory(
        {
            "lab_groups": [
                {"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA},
                {"name": "vision", "gid": 3102, "limits": LIMITS, "quota": QUOTA},
            ],
            "lab_users": [
                {"name": "alice", "uid": 2001, "group": "students"},
                {"name": "carol", "uid": 2003, "group": "vision"},
            ],
            "lab_shares": [
                {"name": "datasets", "access": "read-only"},
                {"name": "class", "access": "group", "group": "students"},
                {"name": "lab-vision", "access": "group", "group": "vision"},
                {"name": "admin", "access": "admin"},
            ],
            "lab_base_images": [{"name": "lab/python", "archive": "python.tar"}],
            "lab_projects": [{"user": "carol", "name": "slides", "home": "host"}],
        }
    )
    return checked


def table(*lines: str) -> tuple[Mount, ...]:
    """Return mounts: the words of each line are point, type, options and root, as far as they are there."""
    found = []
    for line in ("/ ext4", *lines):
        point, fstype, options, root = (
            (*line.split(" "), "rw", "/")[:4] if line.count(" ") < 3 else line.split(" ")
        )
        found.append(Mount(point, "none", fstype, frozenset(options.split(",")), "0:1", root))
    return tuple(found)


@pytest.mark.parametrize(
    ("real", "kind"),
    [
        ("/home/.workspaces/alice", "workspace"),
        ("/home/.workspaces/alice/thesis/a", "workspace"),
        ("/home/.workspaces/alice2/thesis", "another"),
        ("/home/.workspaces/carol/x", "another"),
        ("/home/.workspaces", "server"),
        ("/home/.homes/alice/thesis/.bashrc", "kept_home"),
        ("/home/.homes/alice/thesis@opt+packages/x", "kept_folder"),
        ("/home/.homes/carol/slides", "another"),
        ("/home/alice/notes", "home"),
        ("/home/alice/sshfs/notes", "elsewhere"),
        ("/home/carol", "another"),
        ("/home", "server"),
        ("/srv/data", "shared"),
        ("/srv/data/README", "shared"),
        ("/srv/data/datasets/imagenet", "shared"),
        ("/srv/data/class/x", "group"),
        ("/srv/data/lab-vision/x", "unshared"),
        ("/srv/data/admin", "unshared"),
        ("/srv/database", "server"),
        ("/tmp/x", "temporary"),
        ("/tmpx", "server"),
        ("/var/tmp/x", "clutter"),
        ("/run/user/2001/x", "server_memory"),
        ("/dev/shm/x", "server_memory"),
        ("/dev/null", "kernel"),
        ("/proc/self/status", "kernel"),
        ("/etc/passwd", "server"),
        ("/", "server"),
    ],
)
def test_every_kind_of_place_on_the_server(shared: Policy, real: str, kind: str) -> None:
    mounted = table(
        "/home xfs", "/srv/data ext4", "/run tmpfs", "/dev devtmpfs", "/dev/shm tmpfs", "/proc proc",
        "/home/alice/sshfs fuse.sshfs",
    )  # fmt: skip  # read as a table, several to a line
    assert where.judge(shared, shared.user("alice"), where.Place(real), mounted) == kind


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/tmp/x", "own_temporary"), ("/var/tmp", "own_clutter"), ("/tmpx", "server"), ("/var/tmpx", "server")],
)
def test_temporary_files_of_ones_own_are_told(shared: Policy, path: str, kind: str) -> None:
    own = table("/home ext4", "/tmp ext4 rw /.tmp/tmp-alice", "/var/tmp ext4 rw /home/.tmp/var-tmp-alice")
    assert where.judge(shared, shared.user("alice"), where.Place(path), own) == kind
    for verdict, sentence in (where.KINDS["own_temporary"], where.KINDS["own_clutter"]):
        assert verdict == "lost" and "of yours" in sentence
    # A disk of its own, or a folder of another kind, is no user's.
    other = table("/tmp ext4", "/var/tmp ext4 rw /scratch")
    kinds = [
        where.judge(shared, shared.user("alice"), where.Place(one), other) for one in ("/tmp", "/var/tmp")
    ]
    assert kinds == ["temporary", "clutter"]


def test_how_long_they_stay_is_what_the_server_is_told() -> None:
    days = {point: days for point, (_name, days) in privatetmp.FOLDERS.items()}
    said = {point: where.KINDS[kind][1] for point, kind in where._OWN_TEMPORARY.items()}
    assert all(f"for {days[point]} days" in sentence for point, sentence in said.items()) and len(said) == 2


def test_who_has_the_home_of_the_server_in_a_container_is_told(shared: Policy) -> None:
    told = where.told(shared, shared.user("carol"), "/home/carol/none", table())
    assert told["why"] == [where.KINDS["home"][1], "Only containers of slides see it.", where.MISSING]
    told = where.told(shared, shared.user("alice"), "/home/alice/none", table())
    assert told["why"][1] == where.UNSEEN and told["verdict"] == "kept" and told["exists"] is False


def test_sentences_fit_80_columns_behind_the_verdict() -> None:
    assert all(len(sentence) <= 71 and "'" not in sentence for _verdict, sentence in where.KINDS.values())


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lab: Policy, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Return a function that runs ``workspace where`` as alice, whose workspace is a temporary folder."""
    from ansible_collections.lab.server.plugins.module_utils._core import calls, cli

    (tmp_path / "thesis").mkdir()
    monkeypatch.chdir(tmp_path / "thesis")
    monkeypatch.setattr(os, "getuid", lambda: 2001)
    monkeypatch.setattr(calls, "load", lambda path: lab)
    monkeypatch.setattr(Policy, "workspace", lambda policy, user: str(tmp_path))
    monkeypatch.setattr(mounts, "read", table)

    def command(*words: str) -> tuple[int, str, str]:
        code = cli.main(["workspace", "where", *words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def test_where_a_path_is_on_the_server_is_said(run: Any, tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J").touch()
    (tmp_path / "thesis/out").symlink_to("/usr/share")
    (tmp_path / "thesis/in").symlink_to("../a\x1b[2J")
    (tmp_path / "thesis/round").symlink_to("round")
    code, out, _err = run()
    assert (
        code == 0 and out == "kept     .\n         It is in your workspace, which outlives every container.\n"
    )
    code, out, _err = run("out", "in", "round", "none")
    assert code == 4 and "\x1b" not in out
    assert out.splitlines() == [
        "foreign  out",
        "         It is part of the server itself, and not yours to change.",
        "         A link leads to /usr/share",
        "kept     in",
        "         It is in your workspace, which outlives every container.",
        "         A link leads to ~/workspace/a\\x1b[2J",
        "nothing  round",
        "         Its links lead in a circle: there is no file behind them.",
        "kept     none",
        "         It is in your workspace, which outlives every container.",
        "         Nothing is there now.",
    ]
    code, out, _err = run("in", "--json")
    shown = json.loads(out)["paths"][0]
    assert code == 0 and shown["real"] == f"{tmp_path}/a\x1b[2J" and shown["verdict"] == "kept"
    code, out, err = run("")
    assert (code, out) == (2, "") and "empty path" in err and "Name a file or a folder" in err


def test_the_workspaces_own_link_is_nothing_to_tell(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "workspace").symlink_to("real")
    known = str(tmp_path / "workspace")
    assert where.resolve(f"{known}/x", known) == where.Place(f"{tmp_path}/real/x", exists=False)
    assert where.resolve(f"{known}/x").led is True


def test_a_closed_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    # To root no folder is closed.
    monkeypatch.setattr(os, "access", lambda path, mode: path != f"{tmp_path}/closed")
    place = where.resolve(f"{tmp_path}/closed/x/y")
    assert (place.exists, place.blocked, place.real) == (
        False,
        f"{tmp_path}/closed",
        f"{tmp_path}/closed/x/y",
    )


# ---- in a container --------------------------------------------------------------------------------------


def escaped(path: str) -> str:
    """Return a path as mountinfo has it (proc(5))."""
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in path)


class Inside:
    """A folder that stands for the root of a container: a tree, its mounts, and the program."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        tree = [
            *(
                "workspace/thesis/my models",
                "home/alice/.ssh",
                "home/bob/x",
                "srv/data/datasets",
                "srv/data/class",
            ),
            *(
                "run/user",
                "tmp",
                "proc/1",
                "var/cache/app",
                "etc",
                "odd/new\nline/x",
                "odd/back\\slash",
                "odd/a",
            ),
            "opt/packages/x",
            *("srv/data-old/x", "odd/star*", "odd/b c/d", "odd/-n"),
        ]
        for name in tree:
            (root / name).mkdir(parents=True)
        for name in ("etc/hosts", "etc/passwd", "etc/nvidia", "odd/new\nline/file", "workspace/-e"):
            (root / name).touch()
        links = {
            "home/alice/workspace": f"{root}/workspace",
            "workspace/thesis/data": "../../srv/data/datasets",
            "workspace/thesis/notes": f"{root}/home/alice/notes",
            "workspace/thesis/back": "../../workspace/thesis/data/../class",
            "workspace/loop": "thesis/loop",
            "workspace/thesis/loop": "../loop",
            "odd/tail\n": "new\nline/file",
            "odd/to-tail": "tail\n",
            "odd/dangling": "nowhere/at/all",
            "odd/dot": ".",
            "odd/file": "../etc/passwd",
            "odd/arrow -> x": "a -> b",
            **{f"odd/chain{n}": f"chain{n + 1}" for n in range(45)},
        }
        for name, target in links.items():
            (root / name).symlink_to(target)
        self.mounts = [
            ("", "/", "overlay", "rw"),
            ("/proc", "/", "proc", "rw"),
            ("/run", "/", "tmpfs", "rw"),
            ("/workspace", "/.workspaces/alice", "ext4", "rw"),
            ("/home/alice", "/.homes/alice/thesis", "ext4", "rw"),
            ("/home/alice/.ssh", "/", "tmpfs", "ro"),
            ("/home/bob", "/bob", "ext4", "rw"),
            ("/opt/packages", "/.homes/alice/thesis@opt+packages", "ext4", "rw"),
            ("/srv/data", "/srv/data", "ext4", "ro"),
            ("/srv/data/class", "/srv/data/class", "ext4", "rw"),
            ("/var/cache/app", "/volumes/0123/_data", "ext4", "rw"),
            ("/etc/hosts", "/containers/0123/hosts", "ext4", "rw"),
            ("/etc/nvidia", "/usr/bin/nvidia", "ext4", "ro"),
            ("/odd/new\nline", "/x", "ext4", "rw"),
            ("/odd/back\\slash", "/x", "ext4", "ro"),
            ("/odd/b c", "/volumes/x/_data", "ext4", "rw"),
            ("/odd/star*", "/", "tmpfs", "rw"),
        ]
        lines = [
            f"{number} 1 0:{number} {escaped(source)} {escaped(self.root + point)} {options},relatime "
            f"{'shared:1 master:2 ' if number % 2 else ''}- {kind} dev {options}\n"
            for number, (point, source, kind, options) in enumerate(self.mounts, 20)
        ]
        # Where nothing else is mounted the root of the file system is the container's.
        self.mountinfo = "19 1 0:19 / / rw - overlay none rw\n" + "".join(lines[1:])
        (root / "mountinfo").write_text(self.mountinfo)
        text = homes.programs()[".local/bin/workspace"]
        text = text.replace(mounts.MOUNTINFO, "\0")
        text = re.sub(r"(?<![*a-z.])/(?=workspace|home/|proc/)", f"{root}/", text).replace(
            "\0", f"{root}/mountinfo"
        )
        self.program = root.parent / "workspace-program"
        self.program.write_text(text)

    def run(self, shell: Sequence[str], *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the program in a shell, in the folder of the project."""
        return subprocess.run(
            [*shell, str(self.program), *words],
            cwd=options.pop("cwd", f"{self.root}/workspace/thesis"),
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
            **options,
        )

    def told(self, path: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """Return what the program should say, as the library has it."""
        with monkeypatch.context() as patch:
            patch.chdir(f"{self.root}/workspace/thesis")
            patch.setattr(where, "WORKSPACE", f"{self.root}/workspace")
            patch.setattr(where, "HOME_ROOT", f"{self.root}/home")
            place = where.resolve(path, f"{self.root}/home/alice/workspace")
            mount = mounts.holding(place.real, mounts.parse(self.mountinfo))
            kind = "loop" if place.loop else where.kind_inside(mount, os.path.isdir(mount.point))
        verdict, sentence = where.KINDS[kind]
        why = [sentence]
        if place.led and not place.loop:
            why.append(where.LEADS + place.real)
        if place.blocked:
            why.append(where.BLOCKED + place.blocked)
        elif not place.exists and not place.loop:
            why.append(where.MISSING)
        return {"path": path, "real": place.real, "exists": place.exists, "verdict": verdict, "why": why}


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> Inside:
    """Return the stand-in of a container."""
    return Inside(Path(os.path.realpath(tmp_path_factory.mktemp("container"))) / "root")


def words_of(inside: Inside) -> dict[str, str]:
    """Return paths of every sort, with the kind of place that each leads to."""
    root = inside.root
    return {
        f"{root}/workspace": "workspace",
        ".": "workspace",
        "my models": "workspace",
        "none": "workspace",
        "../none/../-e": "workspace",
        f"{root}/home/alice/workspace/thesis": "workspace",
        f"{root}/home/alice": "kept_home",
        f"{root}/home/alice/.ssh/id": "container_memory",
        f"{root}/home/bob/x": "home",
        f"{root}/opt/packages/x": "kept_folder",
        f"{root}/opt": "layer",
        f"{root}/srv/data": "shared",
        "data": "shared",
        "back": "group",
        f"{root}/srv/data/class/x": "group",
        f"{root}/srv/data-old/x": "layer",
        "notes": "kept_home",
        f"{root}/run/user": "container_memory",
        f"{root}/tmp": "layer",
        f"{root}/usr/bin": "layer",
        "/": "layer",
        f"{root}/proc/1": "kernel",
        f"{root}/var/cache/app": "volume",
        f"{root}/var/cache": "layer",
        f"{root}/etc/hosts": "layer",
        f"{root}/etc/nvidia": "server",
        f"{root}/odd/to-tail": "group",
        f"{root}/odd/new\nline": "group",
        f"{root}/odd/new": "layer",
        f"{root}/odd/back\\slash/x": "shared",
        f"{root}/odd/b c/d": "volume",
        f"{root}/odd/star*/x": "container_memory",
        f"{root}/odd/starx": "layer",
        f"{root}/odd/dangling": "layer",
        f"{root}/odd/arrow -> x": "layer",
        f"{root}/odd/file/x": "layer",
        "../loop": "loop",
        f"{root}/odd/chain0": "loop",
        f"{root}/odd/chain6": "layer",
    }


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_every_kind_of_place_in_a_container(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, shell: list[str]
) -> None:
    wanted = words_of(inside)
    done = inside.run(shell, "where", "--json", *wanted)
    assert done.stderr == "" and done.returncode == 4
    said = json.loads(done.stdout)["paths"]
    for one, (path, kind) in zip(said, wanted.items()):
        assert (one["verdict"], one["why"][0]) == where.KINDS[kind], one
        assert one == inside.told(path, monkeypatch)


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_without_readlink_ls_tells_where_a_link_leads(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: list[str]
) -> None:
    (tmp_path / "ls").symlink_to(shutil.which("ls") or "ls")
    program = shutil.which(shell[0]) or shell[0]
    paths = ["data", "back", "../loop", f"{inside.root}/odd/to-tail", f"{inside.root}/odd/arrow -> x"]
    # Debian's busybox prefers its own tools to those of PATH, so it finds readlink all the same.
    done = inside.run([program, *shell[1:]], "where", "--json", *paths, env={"PATH": str(tmp_path)})
    assert json.loads(done.stdout)["paths"] == [inside.told(path, monkeypatch) for path in paths]
    if shell[0] != "busybox":
        done = inside.run([program, *shell[1:]], "where", "data", env={"PATH": "/nowhere"})
        assert done.returncode == 1 and "neither readlink nor ls" in done.stderr


PARTS = st.sampled_from(
    [
        *("..", "..", ".", "", "workspace", "thesis", "my models", "data", "back", "notes", "loop", "home"),
        *("alice", ".ssh", "bob", "srv", "class", "datasets", "odd", "new\nline", "tail\n", "to-tail", "dot"),
        *("back\\slash", "star*", "b c", "d", "file", "dangling", "chain3", "chain9", "etc", "hosts", "none"),
        *("-n", "-e", "'", '"', "$(id)", "`id`", "%s", "\x07", "\u00e9", "\u202e", "[a-z]", "?", "*", " "),
    ]
)


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(st.tuples(st.booleans(), st.lists(PARTS, min_size=1, max_size=9)), min_size=1, max_size=30))
def test_any_path_is_judged_in_every_shell_as_the_library_does(
    inside: Inside, monkeypatch: pytest.MonkeyPatch, parts: list[tuple[bool, list[str]]]
) -> None:
    paths = [(inside.root + "/" if absolute else "./") + "/".join(names) for absolute, names in parts]
    wanted = [inside.told(path, monkeypatch) for path in paths]
    for shell in SHELLS:
        assert json.loads(inside.run(shell, "where", "--json", "--", *paths).stdout)["paths"] == wanted


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_what_people_see_in_a_container(inside: Inside, shell: list[str]) -> None:
    done = inside.run(shell, "where", "data", "a\x1b[2J\t\n\u009b\u00e9")
    assert done.stdout.splitlines() == [
        "kept     data",
        "         It is shared data, which IT keeps; containers can only read it.",
        f"         A link leads to {inside.root}/srv/data/datasets",
        "kept     a\\x1b[2J\\t\\n\\x9b\u00e9",
        "         It is in your workspace, which outlives every container.",
        "         Nothing is there now.",
    ]
    assert done.returncode == 4 and inside.run(shell, "where").returncode == 0


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_the_command_line_in_a_container(inside: Inside, shell: list[str]) -> None:
    for words in (["--help"], ["where", "x", "--help"]):
        done = inside.run(shell, *words)
        assert done.returncode == 0 and "example:" in done.stdout and "exit codes:" in done.stdout
        assert max(len(line) for line in done.stdout.replace(inside.root, "").splitlines()) <= 80
    for words in ([], ["usage"], ["where", "--what"], ["where", ""], ["where", "--", ""]):
        done = inside.run(shell, *words)
        assert done.returncode == 2 and done.stdout == "" and done.stderr
    assert inside.run(shell, "where", "--", "--json").stdout.startswith("kept     --json\n")


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_a_closed_folder_is_named_in_a_container(inside: Inside, shell: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        closed, program = Path(folder, "closed"), Path(folder, "program")
        closed.mkdir(mode=0o600)
        program.write_text(homes.programs()[".local/bin/workspace"])
        program.chmod(0o755)
        # To root no folder is closed, so it is somebody else who asks.
        other = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        if not other:
            closed.chmod(0)
        done = subprocess.run(
            [*shell, str(program), "where", f"{closed}/x"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **other,
        )
        assert (
            done.returncode == 4 and done.stdout.splitlines()[-1].strip() == f"You may not look into {closed}"
        )


def test_it_is_one_file_for_any_posix_shell() -> None:
    text = homes.programs()[".local/bin/workspace"]
    assert text.startswith("#!/bin/sh\n") and "@" not in text.replace('"$@"', "")
    assert "local " not in text and "[[ " not in text
