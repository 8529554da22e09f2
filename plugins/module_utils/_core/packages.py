# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Packages of the distribution, compared by one query of the package database.

Unlike Ansible's own module for apt this needs no bindings on the server, so a check on a bare machine tells
what would be installed, and an unchanged run does not open apt's cache, which takes seconds.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from . import hostfiles
from .errors import HostError, InvalidInput
from .items import ItemResult
from .names import printable

_HOUR = 3600.0
_LOCK_SECONDS, _PAUSE = 900.0, 5.0
_LOCKED = ("Unable to lock", "Could not get lock", "locked by another process")
# debconf(7): ask nothing. A changed configuration file stays as it is (dpkg(1), --force-confold).
_APT = (
    "apt-get",
    "-y",
    "-q",
    *("-o", "DPkg::Lock::Timeout=300"),
    *("-o", "Dpkg::Options::=--force-confdef"),
    *("-o", "Dpkg::Options::=--force-confold"),
)
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+~:-]{0,63}")
INSTALL, CHANGE = "install", "change the version"
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class Tools:
    """How a family of distributions asks for and changes packages."""

    query: tuple[str, ...]
    refresh: tuple[tuple[str, ...], ...]
    install: tuple[str, ...]
    remove: tuple[str, ...]


APT = Tools(
    query=("dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev} ${Version}\n"),
    # A run that lost its power midway leaves packages unpacked, and apt refuses to work on before this.
    refresh=(("dpkg", "--configure", "-a"), (*_APT, "update")),
    install=(*_APT, "--no-install-recommends", "install"),
    remove=(*_APT, "remove"),
)
DNF = Tools(
    query=("rpm", "-q", "--qf", "%{NAME} ii %{VERSION}\n"),
    refresh=(),
    install=("dnf", "-y", "--setopt=install_weak_deps=False", "install"),
    remove=("dnf", "-y", "remove"),
)


def installed(answer: str) -> dict[str, str]:
    """Return what a query of the package database says is installed wholly (dpkg-query(1)), with versions."""
    found = {}
    for line in answer.splitlines():
        name, state, version = (*line.split(), "", "", "")[:3]
        if state in ("ii", "hi"):
            found[name] = version
    return found


def plan(
    present: Sequence[str],
    absent: Sequence[str],
    there: Mapping[str, str],
    versions: Mapping[str, str] | None = None,
) -> list[ItemResult]:
    """Compare what should be present, some in ``versions``, and absent with what is there, in its version.

    A version that is asked for without a revision of the distribution's is there in any of them.
    """
    items = []
    for name in present:
        item = ItemResult(name)
        wanted, found = (versions or {}).get(name, ""), there.get(name)
        if found is None:
            item.changed, item.actions, item.reason = True, [INSTALL], "it is not installed"
            item.diff = {"before": {"installed": "no"}, "after": {"installed": wanted or "yes"}}
        elif wanted and found != wanted and not found.startswith(f"{wanted}-"):
            item.changed, item.actions, item.reason = True, [CHANGE], "another version is asked for"
            item.diff = {"before": {"installed": found}, "after": {"installed": wanted}}
        items.append(item)
    for name in absent:
        item = ItemResult(name)
        if name in there:
            item.changed, item.actions, item.reason = True, ["remove"], "it must not be here"
            item.diff = {"before": {"installed": "yes"}, "after": {"installed": "no"}}
        items.append(item)
    return items


def tools() -> Tools:
    """Return the tools of this distribution; raise HostError if none are known."""
    if os.path.exists("/usr/bin/dpkg-query"):
        return APT
    if os.path.exists("/usr/bin/dnf"):
        return DNF
    raise HostError("This distribution has neither apt nor dnf.", "Use Debian, Ubuntu or an RHEL family.")


def reconcile(
    present: Sequence[str],
    absent: Sequence[str],
    versions: Mapping[str, str] | None = None,
    *,
    check: bool,
) -> list[ItemResult]:
    """Install and remove what differs, all in one call of the package manager each.

    ``versions`` by name, of apt's packages alone. Raises HostError, InvalidInput.
    """
    use = tools()
    asked_for = {name: version for name, version in (versions or {}).items() if name in present and version}
    if asked_for and use is not APT:
        raise InvalidInput("Versions of packages can be held with apt alone.", "Ask for none.")
    for name, version in asked_for.items():
        if not _VERSION.fullmatch(version):
            raise InvalidInput(f"{printable(version)[:40]!r} is no version of {name}.", "Such as 1.18.0.")
    asked = [*present, *absent]
    # 1 says that some of the names are not known.
    answer = hostfiles.run([*use.query, *asked], accept=range(256)) if asked else None
    items = plan(present, absent, installed(answer.stdout) if answer else {}, asked_for)
    missing = [
        _in_version(item.name, asked_for.get(item.name, ""))
        for item in items
        if item.actions in ([INSTALL], [CHANGE])
    ]
    unwanted = [item.name for item in items if item.actions == ["remove"]]
    if check:
        return items
    environment = {key: os.environ[key] for key in _PROXIES if key in os.environ}
    environment["DEBIAN_FRONTEND"] = "noninteractive"
    if missing or unwanted:
        for command in use.refresh if missing else use.refresh[:1]:
            _run(command, environment)
    change = ("--allow-downgrades",) if any(item.actions == [CHANGE] for item in items) else ()
    for command, names in ((use.remove, unwanted), ((*use.install, *change), missing)):
        if names:
            _run([*command, *names], environment)
    return items


def _in_version(name: str, version: str) -> str:
    """Return the word by which apt-get(8) takes a package, in any revision of a version."""
    return f"{name}={version}{'' if '-' in version else '-*'}" if version else name


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    """Run a package manager; one that finds another at work (the daily one, say) waits for it.

    apt-get(8) waits for the lock of dpkg by itself (DPkg::Lock::Timeout), but not for that of its own lists.
    """
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            hostfiles.run(command, timeout=_HOUR, environment=environment)
            return
        except HostError as error:
            if not any(words in str(error) for words in _LOCKED) or time.monotonic() > end:
                raise
        time.sleep(_PAUSE)
