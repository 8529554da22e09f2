# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names: what is allowed, and how the names of things are made of them.

Names are ASCII and matched whole; a wrong name is rejected, never normalised.
"""

from __future__ import annotations

import re

from .errors import InvalidInput

# A name may not end in '-': Docker does not take it in the repository of an image (image_repository).
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
# useradd(8) of shadow refuses user names that start with a digit or a dash.
_ACCOUNT = re.compile(r"[a-z](?:[a-z0-9-]{0,30}[a-z0-9])?")
# The reference grammar of images: https://pkg.go.dev/github.com/distribution/reference
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_IMAGE = re.compile(
    rf"(?:[a-z0-9][a-z0-9.-]*(?::[0-9]{{1,5}})?/)?{_COMPONENT}(?:/{_COMPONENT})*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
_CONTAINER = re.compile(rf"({_NAME.pattern})\._\.([0-9]{{1,10}})")
_ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")

#: Accounts that no lab user may have: they exist on Debian, or mean something to us.
RESERVED_ACCOUNTS = frozenset({"root", "docker", "lab", "sudo", "adm", "nobody", "nogroup", "shadow", "disk"})


def printable(text: str) -> str:
    """Return ``text`` with every control or non-printing character escaped, fit for a terminal or a log."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _match(pattern: re.Pattern[str], value: object, where: str, rule: str) -> str:
    if isinstance(value, str) and pattern.fullmatch(value):
        return value
    shown = printable(repr(value))[:80]
    raise InvalidInput(f"{where}: {shown} is not allowed.", rule)


_NAME_RULE = "Use 1 to 32 of a-z, 0-9 and '-', starting and ending with a letter or digit."
_ACCOUNT_RULE = "Use 1 to 32 of a-z, 0-9 and '-', starting with a letter and not ending with '-'."


def project_name(value: object, where: str = "project name") -> str:
    """Return ``value`` if it is a project's name, else raise InvalidInput."""
    return _match(_NAME, value, where, _NAME_RULE)


def share_name(value: object, where: str = "share name") -> str:
    """Return ``value`` if it is a share's name, else raise InvalidInput."""
    return _match(_NAME, value, where, _NAME_RULE)


def _account(value: object, where: str) -> str:
    name = _match(_ACCOUNT, value, where, _ACCOUNT_RULE)
    if name in RESERVED_ACCOUNTS:
        raise InvalidInput(f"{where}: '{name}' is an account of the system.", "Choose another name.")
    return name


def user_name(value: object, where: str = "user name") -> str:
    """Return ``value`` if it may name a lab user, else raise InvalidInput."""
    return _account(value, where)


def group_name(value: object, where: str = "group name") -> str:
    """Return ``value`` if it may name a lab group, else raise InvalidInput."""
    return _account(value, where)


def image_reference(value: object, where: str = "image") -> str:
    """Return ``value`` if it is a reference of an image such as ``lab/python`` or ``host/name:tag``."""
    return _match(_IMAGE, value, where, "Use a name such as 'lab/python' or 'registry.example.org/name:tag'.")


def environment_name(value: object, where: str = "environment") -> str:
    """Return ``value`` if it may name an environment variable, else raise InvalidInput."""
    return _match(_ENVIRONMENT, value, where, "Use letters, digits and '_', not starting with a digit.")


def container_name(project: str, uid: int) -> str:
    """Return the container's name of a user's project: ``<project>._.<uid>``."""
    return f"{project_name(project)}._.{uid}"


def parse_container_name(name: str) -> tuple[str, int]:
    """Return (project, uid) of a container's name; raise InvalidInput if it is none of ours."""
    match = _CONTAINER.fullmatch(name)
    if match is None:
        raise InvalidInput(f"{printable(name)!r} is not the name of a lab container.")
    return match.group(1), int(match.group(2))


def image_repository(uid: int, project: str) -> str:
    """Return the repository of a project's images: ``lab/<uid>/<project>``."""
    return f"lab/{uid}/{project_name(project)}"


def slice_name(uid: int) -> str:
    """Return the systemd slice that holds all containers of a user (systemd.slice(5))."""
    return f"lab-{uid}.slice"
