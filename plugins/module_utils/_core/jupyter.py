# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Jupyter in a project's container: its port on the server's loopback address, its start, its token.

The port is a part of the container's spec, so it has to be asked for when the container is made. The server
itself is the user's process in the container. Its token is made in there, in a file in memory that nobody
else can read, and reaches Jupyter by its environment (JUPYTER_TOKEN, jupyter-server's documentation of
security): it is in no argument, no label and no log.
"""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Iterable
from contextlib import closing

from .engine import Engine
from .errors import EngineError, Refused
from .policy import User
from .protocol import JUPYTER_LOG
from .spec import HOST_ADDRESS, JUPYTER_PORT, WORKSPACE, ContainerSpec

#: Ports of the server that are given out to it: below those that Linux gives to clients (ip(7)).
FIRST, LAST = 20000, 29999

_TOKEN = re.compile(r"[0-9a-f]{48}")
_MISSING = 127
# $1 is the port, $2 the log. No program of Jupyter is taken from the project's folder, only from PATH.
_SCRIPT = r"""
umask 077
mkdir -p /run/lab-jupyter && cd /run/lab-jupyter || exit 1
if ! { [ -s pid ] && kill -0 "$(cat pid)" 2>/dev/null; }; then
  for program in jupyter-lab jupyter-server jupyter-notebook; do
    command -v "$program" >/dev/null && break
    program=
  done
  [ "$program" ] || exit 127
  if ! [ -s token ]; then
    od -An -v -N24 -tx1 /dev/urandom | tr -d ' \n' >token.new && mv token.new token || exit 1
  fi
  ( cd "$3" && JUPYTER_TOKEN=$(cat /run/lab-jupyter/token) exec "$program" \
    --no-browser --ip=0.0.0.0 --port="$1" --ServerApp.port_retries=0 ) </dev/null >"$2" 2>&1 &
  echo "$!" >pid
fi
cat token
"""


def choose_port(container: str, taken: Iterable[int]) -> int:
    """Return a port of the server for the container of that name: the same one again where that is free.

    ``taken``: those of other containers. Two that are made at the same instant begin to look at different
    ports. Raises Refused when there is none left.
    """
    used = set(taken)
    count = LAST - FIRST + 1
    first = zlib.crc32(container.encode("utf-8"))
    for number in range(count):
        port = FIRST + (first + number) % count
        if port not in used and _is_free(port):
            return port
    raise Refused("This server has no port left for Jupyter.", "Retire a container that has one.")


def _is_free(port: int) -> bool:
    """Say whether nobody listens at a port of the loopback address."""
    with closing(socket.socket()) as probe:
        # As Docker's own: an address in TIME_WAIT may be taken (socket(7), SO_REUSEADDR).
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST_ADDRESS, port))
        except OSError:
            return False
        return True


def port_of(spec: ContainerSpec | None) -> int:
    """Return the port of the server at which a container's Jupyter is reached; 0 when it has none."""
    return dict(spec.ports).get(JUPYTER_PORT, 0) if spec is not None else 0


def start(engine: Engine, user: User, project: str, container: str) -> str:
    """Start Jupyter in a container that runs, if it does not run there; return its token. Raises EngineError.

    The caller holds the container's lock.
    """
    said: list[str] = []
    folder = f"{WORKSPACE}/{project}"
    command = ["/bin/sh", "-c", _SCRIPT, "lab-jupyter", str(JUPYTER_PORT), JUPYTER_LOG, folder]
    code = engine.execute(container, command, user=f"{user.uid}:{user.gid}", listen=said.append)
    if code == _MISSING:
        raise EngineError(
            f"The image of {project} has no Jupyter.",
            f"Install it, once for all: image-install {project} jupyterlab",
        )
    token = said[-1] if said else ""
    if code != 0 or not _TOKEN.fullmatch(token):
        raise EngineError(
            f"Jupyter could not be started in the container of {project}.",
            f"See what it says: container exec {project} -- cat {JUPYTER_LOG}",
        )
    return token
