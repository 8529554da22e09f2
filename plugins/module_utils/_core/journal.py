# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The audit log: one line of syslog for each privileged act.

It goes to the facility LOG_AUTHPRIV, which users cannot read. Anyone may send lines with our ident to
syslog(3), so trust a line by what its sender cannot choose (systemd.journal-fields(7), trusted fields):
``journalctl _UID=0 SYSLOG_IDENTIFIER=lab-server``.
"""

from __future__ import annotations

import contextlib
import posixpath
import syslog
import threading
from collections.abc import Iterator

from . import STATE_DIRECTORY
from .names import printable

IDENT = "lab-server"
# The C library has one connection for all threads (openlog(3)).
_LOCK = threading.Lock()
_LONGEST = 900  # bytes kept of one value; a syslog line of more than 1 KiB may be cut (RFC 3164, section 4.1)


def _pair(key: str, value: object) -> str:
    text = printable(str(value))[:_LONGEST]
    if not text or any(c in ' "=\\' for c in text):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{key}={text}"


def line(**values: object) -> str:
    """Return ``key=value`` pairs on one line; control characters are escaped, values with blanks quoted."""
    return " ".join(_pair(key, value) for key, value in values.items())


def record(priority: int = syslog.LOG_NOTICE, **values: object) -> None:
    """Write one line to the audit log. ``priority`` is one of syslog's, such as LOG_NOTICE or LOG_WARNING."""
    with _LOCK:
        syslog.openlog(IDENT, syslog.LOG_PID, syslog.LOG_AUTHPRIV)
        try:
            syslog.syslog(priority, line(**values))
        finally:
            syslog.closelog()


def damaged(verb: str, name: str, words: str) -> None:
    """Write that a record of root's (its name below the state directory) was damaged, and what follows."""
    detail = f"{posixpath.join(STATE_DIRECTORY, name)} {words}"
    record(syslog.LOG_WARNING, uid=0, user="root", verb=verb, outcome="damaged", detail=detail)


@contextlib.contextmanager
def acted(verb: str, detail: str, **values: object) -> Iterator[dict[str, object]]:
    """Write one line about what root itself does in the ``with`` block, however it ends.

    ``detail`` says what, for people. ``outcome`` is "done"; it is "failed" where an error ends the block, or
    where the block puts a ``problem`` into the mapping that it is given, which is told in both cases.
    """
    more: dict[str, object] = {"outcome": "done", "detail": detail}
    try:
        yield more
        problem = more.pop("problem", "")
        if problem:
            more.update(outcome="failed", detail=f"{detail}: {problem}")
    except BaseException as error:
        more.update(outcome="failed", detail=f"{detail}: {str(error) or type(error).__name__}")
        raise
    finally:
        priority = syslog.LOG_NOTICE if more["outcome"] == "done" else syslog.LOG_WARNING
        record(priority, uid=0, user="root", verb=verb, **{**values, **more})
