# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Packages of the distribution, compared by one query of the package database.

Unlike Ansible's own module for apt this needs no bindings on the server, so a check on a bare machine tells
what would be installed, and an unchanged run does not open apt's cache, which takes seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from . import hostfiles
from .errors import HostError
from .items import ItemResult

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
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class Tools:
    """How a family of distributions asks for and changes packages."""

    query: tuple[str, ...]
    refresh: tuple[tuple[str, ...], ...]
    install: tuple[str, ...]
    remove: tuple[str, ...]


APT = Tools(
    query=("dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n"),
    # A run that lost its power midway leaves packages unpacked, and apt refuses to work on before this.
    refresh=(("dpkg", "--configure", "-a"), (*_APT, "update")),
    install=(*_APT, "--no-install-recommends", "install"),
    remove=(*_APT, "remove"),
)
DNF = Tools(
    query=("rpm", "-q", "--qf", "%{NAME} ii\n"),
    refresh=(),
    install=("dnf", "-y", "--setopt=install_weak_deps=False", "install"),
    remove=("dnf", "-y", "remove"),
)


def installed(answer: str) -> set[str]:
    """Return the names that a query of the package database says are installed wholly (dpkg-query(1))."""
    found = set()
    for line in answer.splitlines():
        name, _space, state = line.partition(" ")
        if state.strip() in ("ii", "hi"):
            found.add(name)
    return found


def plan(present: Sequence[str], absent: Sequence[str], there: Collection[str]) -> list[ItemResult]:
    """Compare what should be present and absent with what is there."""
    items = []
    for name in present:
        item = ItemResult(name)
        if name not in there:
            item.changed, item.actions, item.reason = True, ["install"], "it is not installed"
            item.diff = {"before": {"installed": "no"}, "after": {"installed": "yes"}}
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


def reconcile(present: Sequence[str], absent: Sequence[str], *, check: bool) -> list[ItemResult]:
    """Install and remove what differs, all in one call of the package manager each. Raises HostError."""
    use = tools()
    asked = [*present, *absent]
    # 1 says that some of the names are not known.
    answer = hostfiles.run([*use.query, *asked], accept=range(256)) if asked else None
    items = plan(present, absent, installed(answer.stdout) if answer else ())
    missing = [item.name for item in items if item.actions == ["install"]]
    unwanted = [item.name for item in items if item.actions == ["remove"]]
    if check:
        return items
    environment = {key: os.environ[key] for key in _PROXIES if key in os.environ}
    environment["DEBIAN_FRONTEND"] = "noninteractive"
    if missing or unwanted:
        for command in use.refresh if missing else use.refresh[:1]:
            _run(command, environment)
    for command, names in ((use.remove, unwanted), (use.install, missing)):
        if names:
            _run([*command, *names], environment)
    return items


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
