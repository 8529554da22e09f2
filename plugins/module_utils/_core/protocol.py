# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the lab users' commands and the broker agree on."""

from __future__ import annotations

import re

from . import gpurequests
from .errors import HostError, InvalidInput, LabError, NotFound, Refused
from .names import printable
from .sizes import parse_size

BROKER = "/usr/local/sbin/lab-broker"

#: The verb that hands the caller's terminal to a shell in the container.
ATTACH = "attach"

#: The verb that runs a command in the container, with the caller's input and output.
EXEC = "container-exec"

#: What Jupyter writes, in the container.
JUPYTER_LOG = "/tmp/jupyter.log"  # noqa: S108  # there, /tmp is its user's alone

#: The last line of the output of a job that ended.
JOB_END = re.compile(r"--- exit code ([0-9]{1,3}) ---")
_LONGEST_COMMAND = 4096  # characters
_CORES = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,3})?")

#: Why a container is not kept in which there is nothing that anybody could want back.
UNTOUCHED = "nothing in it differs from its image"

#: Exit codes of the broker and of the commands, by kind of error.
EXIT_CODES = {"failed": 1, "usage": 2, "refused": 3, "not-found": 4}

#: What shells give for SIGINT: 128 + 2.
INTERRUPTED = 130

_KINDS: dict[str, type[LabError]] = {"usage": InvalidInput, "refused": Refused, "not-found": NotFound}


def kind_of(error: LabError) -> str:
    """Return the kind of an error, a key of EXIT_CODES."""
    return next((kind for kind, error_type in _KINDS.items() if isinstance(error, error_type)), "failed")


def error_of(kind: str, message: str, hint: str) -> LabError:
    """Return the error of that kind; one that is not known has failed."""
    return _KINDS.get(kind, HostError)(message, hint)


def job_command(text: str) -> str:
    """Return a command for the shell; raise InvalidInput for one that is empty, too long or no text."""
    plain = all(c.isprintable() or c in "\n\t" for c in text)
    if not text.strip() or len(text) > _LONGEST_COMMAND or not plain:
        raise InvalidInput(
            f"The command must be 1 to {_LONGEST_COMMAND} characters of text.",
            "Put a longer one into a script.",
        )
    return text


def cores(text: str) -> float:
    """Return a number of processor cores, such as 2 or 0.5; raise InvalidInput."""
    if not _CORES.fullmatch(text):
        raise InvalidInput(
            f"cpus: {printable(text)[:40]!r} is no number of cores.", "Use a number such as 2 or 0.5."
        )
    return float(text)


def gpus(text: str) -> str:
    """Return the canonical text of a request for GPUs, such as 2 or 1g.10gb; raise InvalidInput."""
    return gpurequests.parse(text).render()


def memory(text: str) -> int:
    """Return a size of memory in bytes, such as 512m or 8g; raise InvalidInput."""
    return parse_size(text, "memory")
