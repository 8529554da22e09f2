# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The troubles that lab users meet, found before they hurt: what the facts mean.

``Account`` and ``Project`` are plain facts, gathered once (``symptoms``). Every check is a small function of
them, named in a table; nothing here looks at anything else.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from . import context, fingerprint, keeping, names
from .errors import LabError
from .policy import CONTAINER_HOME, HOST_HOME
from .quota import Usage
from .sizes import format_size
from .spec import WORKSPACE
from .terminal import duration

OK, WARN, BAD, UNKNOWN = VERDICTS = ("ok", "warn", "bad", "unknown")

_FEW = 3
# Of a quota, as in 'workspace usage'; of a build context, what is worth a word.
_HIGH, _FULL = 0.80, 0.95
_LARGE_BYTES, _LARGE_FILES = 100 << 20, 10_000
# Places of the host that no container has. Others (/usr, /opt) its image has, or not.
_HOST_ONLY = tuple(f"/{place}/" for place in ("home", "root", "tmp", "var/tmp", "mnt", "media"))


# Facts


@dataclass(frozen=True)
class Account:
    """What is seen of a user and the whole workspace.

    ``link`` is where ~/workspace leads: "" when it is missing, None when it is no link. ``usage`` is None
    where it cannot be told, and ``usage_problem`` says why. ``halves`` is what was broken off.
    """

    user: str
    uid: int
    workspace: str
    data_root: str
    bases: tuple[str, ...]
    link: str | None
    usage: Usage | None
    usage_problem: str = ""
    halves: tuple[str, ...] = ()


@dataclass(frozen=True)
class Link:
    """A symbolic link: its path below the project, its target, and whether anything is there."""

    path: str
    target: str
    reaches: bool


@dataclass(frozen=True)
class Project:
    """What is seen of a project. What is None, or has a problem, could not be told.

    ``container`` is as the broker tells it, None for none, and so is ``lost`` (container-lost); ``mounted``
    says whether its container sees the workspace. Texts of files are None where there is none. ``changed``
    is when one of them that make the image changed last (seconds since 1970), and which. ``weights`` holds
    (name, bytes, files) of what goes into a build, ``packages`` those of a kept home.
    """

    name: str
    container: Mapping[str, Any] | None = None
    container_problem: str = ""
    lost: Mapping[str, Any] | None = None
    lost_problem: str = ""
    mounted: bool | None = None
    dockerfile: str | None = None
    dockerfile_problem: str = ""
    requirements: str | None = None
    changed: tuple[float, str] = (0.0, "")
    weights: tuple[tuple[str, int, int], ...] = ()
    weights_complete: bool = True
    weights_problem: str = ""
    git: bool = False
    git_owners: tuple[int, ...] = ()
    gitignore: str = ""
    data: bool = False
    links: tuple[Link, ...] = ()
    foreign: tuple[str, ...] = ()
    exposed: tuple[str, ...] = ()
    complete: bool = True
    home: str = CONTAINER_HOME
    packages: tuple[str, ...] = ()

    @property
    def running(self) -> bool:
        """Whether its container runs."""
        return bool(self.container) and str((self.container or {}).get("status")) == "running"


# Verdicts


@dataclass(frozen=True)
class Finding:
    """What a check says: a verdict, the evidence, and what to do (empty where nothing is)."""

    verdict: str
    evidence: str
    fix: str = ""


def _some(items: Sequence[str], count: int = _FEW) -> str:
    shown = ", ".join(names.printable(item) for item in items[:count])
    return f"{shown} and {len(items) - count} more" if len(items) > count else shown


def _times(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _link(account: Account) -> Finding:
    wanted = account.workspace
    make = f"ln -s {wanted} ~/workspace"
    if account.link is None:
        return Finding(
            BAD,
            "~/workspace is no link, so no container sees what is in it",
            f"mv ~/workspace ~/workspace-old && {make}, then move the files over",
        )
    if not account.link:
        return Finding(BAD, "~/workspace is missing; your files are safe", make)
    if posixpath.normpath(account.link) != wanted:
        return Finding(
            BAD, f"~/workspace leads to {names.printable(account.link)}", f"rm ~/workspace && {make}"
        )
    return Finding(OK, f"~/workspace leads to {wanted}")


def _quota(account: Account) -> Finding:
    usage = account.usage
    if usage is None:
        return Finding(UNKNOWN, account.usage_problem or "the quota cannot be read")
    limits = usage.quota
    kinds = (
        ("space", usage.used, limits.soft, limits.hard, format_size),
        ("files", usage.inodes, limits.inodes_soft, limits.inodes_hard, str),
    )
    findings = [_limit(*kind) for kind in kinds]
    worst = max(findings, key=lambda finding: (OK, WARN, BAD).index(finding.verdict))
    return worst if worst.verdict != OK else Finding(OK, "; ".join(finding.evidence for finding in findings))


def _limit(what: str, used: int, soft: int, hard: int, show: Callable[[int], str]) -> Finding:
    limit = hard or soft
    if not limit:
        return Finding(OK, f"{what}: no limit")
    evidence = f"{what}: {round(used / limit * 100)} % of {show(limit)} used"
    fix = "make room: workspace usage shows the largest folders; project archive packs what is finished"
    if used >= limit * _FULL:
        return Finding(BAD, evidence, fix)
    if soft and used > soft:
        return Finding(
            WARN, f"{evidence}, above the soft limit of {show(soft)}; there is a time of grace", fix
        )
    return Finding(WARN, evidence, fix) if used >= limit * _HIGH else Finding(OK, evidence)


def _halves(account: Account) -> Finding:
    if not account.halves:
        return Finding(OK, "nothing is half done")
    evidence = f"~/workspace/{keeping.STORE} has what was broken off: {_some(account.halves)}"
    return Finding(WARN, evidence, "it is put right by the next project archive, restore, rename or remove")


def _mounted(_account: Account, project: Project) -> Finding:
    if not project.container:
        return _no_container(project)
    if not project.running:
        return Finding(OK, "the container does not run")
    if project.mounted is None:
        return Finding(UNKNOWN, "no process of the container could be looked at")
    if project.mounted:
        return Finding(OK, f"{WORKSPACE} in the container is your workspace")
    return Finding(
        BAD,
        f"{WORKSPACE} in the container is not your workspace; what is written there is lost",
        f"save what you need, then {_anew(project)}",
    )


def _anew(project: Project) -> str:
    return f"container retire {project.name} && project launch {project.name}"


def _no_container(project: Project) -> Finding:
    if project.container_problem:
        return Finding(UNKNOWN, project.container_problem)
    return Finding(OK, "there is no container")


def _outside(_account: Account, project: Project) -> Finding:
    if not project.container:
        return _no_container(project)
    lost = (project.lost or {}).get("lost")
    if not isinstance(lost, Mapping):
        return Finding(UNKNOWN, project.lost_problem or "what is in the container cannot be told")
    paths, packages = ([str(one) for one in lost.get(key) or []] for key in ("paths", "packages"))
    files = int(lost.get("files") or 0)
    if not files:
        if not lost.get("complete", True):
            return Finding(UNKNOWN, "not all of the container could be looked at")
        return Finding(OK, "nothing is in the container that retiring it would lose")
    evidence = f"{_times(files, 'file')} ({format_size(int(lost.get('bytes') or 0))}) outside of {WORKSPACE}"
    evidence += f", such as {_some(paths)}" if paths else ""
    fix = f"copy what you need to {WORKSPACE}/{project.name}"
    if packages:
        evidence += f"; packages: {_some(packages)}"
        fix += f"; keep packages with: image-install {project.name} NAME"
    return Finding(WARN, evidence, fix)


def _dockerfile(account: Account, project: Project) -> Finding:
    if project.dockerfile is None:
        why = project.dockerfile_problem or "there is no Dockerfile"
        return Finding(BAD, why, f"project init {project.name} makes what is missing, and changes nothing")
    try:
        fingerprint.sources(project.dockerfile, {}, account.uid)
    except LabError as error:
        return Finding(BAD, error.message, error.hint)
    return Finding(OK, "it can be read, and says what it starts from")


def _base(account: Account, project: Project) -> Finding:
    try:
        sources = fingerprint.sources(project.dockerfile or "", {}, account.uid)
    except LabError:
        return Finding(UNKNOWN, "the Dockerfile does not say it")
    offered = {fingerprint.plain(base) for base in account.bases}
    here = f"use one that this server has: {', '.join(account.bases) or 'none so far; ask your admins'}"
    others = [image for image in map(fingerprint.plain, sources) if image not in offered]
    # The names lab/... are nobody else's and never fetched from elsewhere; own images have the uid in them.
    missing = [one for one in others if one.startswith("lab/") and not one.startswith(f"lab/{account.uid}/")]
    if missing:
        return Finding(BAD, f"{_some(missing)} is not on this server", here)
    fetched = [one for one in others if not one.startswith("lab/")]
    if fetched:
        return Finding(
            WARN, f"{_some(fetched)} is no base image of this server; a build has to fetch it", here
        )
    return Finding(
        OK, f"it starts from {_some([fingerprint.plain(image) for image in sources]) or 'nothing'}"
    )


def _requirements(_account: Account, project: Project) -> Finding:
    lines = [line.strip() for line in (project.requirements or "").splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#")]
    if not wanted:
        return Finding(OK, "requirements.txt asks for nothing")
    if project.dockerfile is None:
        return Finding(UNKNOWN, "there is no Dockerfile")
    if "requirements.txt" not in project.dockerfile:
        return Finding(
            WARN,
            f"the Dockerfile does not mention requirements.txt, which has {_times(len(wanted), 'line')}",
            "add: COPY requirements.txt /opt/ and RUN pip install -r /opt/requirements.txt",
        )
    return Finding(OK, f"the Dockerfile installs requirements.txt ({_times(len(wanted), 'line')})")


def _image(_account: Account, project: Project) -> Finding:
    if not project.container:
        return _no_container(project)
    when, path = project.changed
    created = project.container.get("created")
    if not isinstance(created, (int, float)) or not path:
        return Finding(UNKNOWN, "it is not known when the container was made")
    if when <= created:
        return Finding(OK, "Dockerfile and requirements.txt are older than the container")
    later = duration(when - created)
    return Finding(
        WARN,
        f"{path} changed {later} after the container was made, so its image may lack that",
        f"image-update {project.name}, then {_anew(project)}",
    )


def _container(_account: Account, project: Project) -> Finding:
    if not project.container:
        return _no_container(project)
    if not project.container.get("image_newer"):
        return Finding(OK, "it was made of the current image")
    return Finding(
        WARN,
        "there is a newer image than the one that it was made of",
        _anew(project),
    )


def _context(_account: Account, project: Project) -> Finding:
    if project.weights_problem:
        return Finding(UNKNOWN, project.weights_problem)
    size = sum(weight for _path, weight, _count in project.weights)
    files = sum(count for _path, _weight, count in project.weights)
    evidence = f"{format_size(size)} in {_times(files, 'file')} go into a build"
    too_large = size > context.BYTES_LIMIT or not project.weights_complete
    if not too_large and size <= _LARGE_BYTES and files <= _LARGE_FILES:
        return Finding(OK, evidence)
    ranked = sorted(project.weights, key=lambda one: (-one[1] / _LARGE_BYTES - one[2] / _LARGE_FILES, one[0]))
    folders = [path for path, weight, count in ranked if weight * 10 > size or count * 10 > files]
    fix = f"name what the image does not need in .dockerignore: {_some(folders)}"
    if too_large:
        return Finding(BAD, f"at least {evidence}, more than this server takes", fix)
    return Finding(WARN, evidence, fix)


def _ignored_data(_account: Account, project: Project) -> Finding:
    if not project.git:
        return Finding(OK, "it is no git repository")
    if not project.data:
        return Finding(OK, "there is no folder data")
    ignored = False
    for raw in project.gitignore.splitlines():
        line = raw.strip()
        pattern = re.sub(r"(/\*{1,2})?/?$", "", line.lstrip("!").lstrip("/"))
        if pattern and not line.startswith("#") and fnmatch.fnmatchcase("data", pattern):
            ignored = not line.startswith("!")
    if ignored:
        return Finding(OK, "git ignores data/")
    return Finding(WARN, "git does not ignore data/; one 'git add .' takes it in", "echo data/ >> .gitignore")


def _git_owner(account: Account, project: Project) -> Finding:
    others = sorted(set(project.git_owners) - {account.uid})
    if not project.git or not others:
        return Finding(OK, "git takes the repository for yours" if project.git else "it is no git repository")
    return Finding(
        WARN,
        f"the repository belongs to uid {others[0]}, so git says 'dubious ownership'",
        "ask your admins to give it to you; until then: "
        f"git config --global --add safe.directory {posixpath.join(account.workspace, project.name)}",
    )


def _leads_astray(account: Account, project: Project, link: Link) -> bool:
    """Say whether a link leads somewhere else, or nowhere, in the container."""
    target = link.target
    if not target.startswith("/"):
        where = posixpath.normpath(posixpath.join("/w", project.name, posixpath.dirname(link.path), target))
        return not (where + "/").startswith("/w/")
    own = (WORKSPACE, account.workspace, f"/home/{account.user}/workspace", account.data_root)
    if any((target + "/").startswith(place + "/") for place in own):
        return False
    if project.home == HOST_HOME and target.startswith(f"/home/{account.user}/"):
        return False
    return target.startswith(_HOST_ONLY)


def _links(account: Account, project: Project) -> Finding:
    astray = [f"{one.path} -> {one.target}" for one in project.links if _leads_astray(account, project, one)]
    if astray:
        return Finding(
            WARN,
            f"the container does not have what these lead to: {_some(astray)}",
            "move it to the workspace, and link to it from there: ln -s ../datasets/NAME",
        )
    nowhere = [f"{one.path} -> {one.target}" for one in project.links if not one.reaches]
    if nowhere:
        return Finding(WARN, f"these lead nowhere: {_some(nowhere)}", "remove them, or make them anew")
    return Finding(
        OK, f"{_times(len(project.links), 'link')}, and all lead somewhere" if project.links else "no links"
    )


def _owners(account: Account, project: Project) -> Finding:
    if not project.foreign:
        return _looked(project, f"all of it belongs to you (uid {account.uid})")
    return Finding(
        WARN,
        f"these belong to somebody else: {_some(project.foreign)}",
        "copy them (cp -r) and remove the others, or ask your admins to give them to you",
    )


def _secrets(_account: Account, project: Project) -> Finding:
    if not project.exposed:
        return _looked(project, "no secret can be read by all")
    files = " ".join(names.printable(path) for path in project.exposed[:_FEW])
    return Finding(
        WARN,
        f"everybody may read these, wherever they are copied to: {_some(project.exposed)}",
        f"cd ~/workspace/{project.name} && chmod 600 {files}",
    )


def _looked(project: Project, evidence: str) -> Finding:
    """Say that all is well, if there was time to see all."""
    return (
        Finding(OK, evidence)
        if project.complete
        else Finding(UNKNOWN, "there was not time to look at all files")
    )


def _local_packages(_account: Account, project: Project) -> Finding:
    if project.home == CONTAINER_HOME:
        return Finding(OK, "the home is the container's own")
    if not project.packages:
        return Finding(OK, "the kept home has no packages of its own")
    return Finding(
        WARN,
        f"packages in ~/.local come before those of the image: {_some(project.packages)}",
        "in the container: pip uninstall NAME; keep what you need with image-install",
    )


ACCOUNT_CHECKS: tuple[tuple[str, Callable[[Account], Finding]], ...] = (
    ("link", _link),
    ("quota", _quota),
    ("half done", _halves),
)

PROJECT_CHECKS: tuple[tuple[str, Callable[[Account, Project], Finding]], ...] = (
    ("mount", _mounted),
    ("outside", _outside),
    ("dockerfile", _dockerfile),
    ("base image", _base),
    ("packages", _requirements),
    ("image", _image),
    ("container", _container),
    ("build", _context),
    ("git data", _ignored_data),
    ("git owner", _git_owner),
    ("links", _links),
    ("owners", _owners),
    ("secrets", _secrets),
    ("kept home", _local_packages),
)


@dataclass(frozen=True)
class Result:
    """A finding, and what it is about; ``project`` is empty for the whole account."""

    project: str
    check: str
    finding: Finding


def examine(account: Account, projects: Iterable[Project]) -> list[Result]:
    """Return what every check says."""
    found = [Result("", check, judge(account)) for check, judge in ACCOUNT_CHECKS]
    return found + [
        Result(project.name, check, judge(account, project))
        for project in projects
        for check, judge in PROJECT_CHECKS
    ]
