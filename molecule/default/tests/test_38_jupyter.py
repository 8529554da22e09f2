"""Jupyter by one command (F8); the program itself is simulated by a small web server in the image."""

from __future__ import annotations

import json
import re

import pytest
from conftest import BOB, Server

NOTES = "~/workspace/notes"
# It takes the option of Jupyter that matters here, and serves a folder that is empty.
SIMULATED = """#!/bin/sh
for word; do case "$word" in --port=*) port="${word#--port=}";; esac; done
mkdir -p /tmp/served
exec python3 -m http.server "$port" --directory /tmp/served
"""
DOCKERFILE = """FROM lab/python
COPY simulated-jupyter /usr/local/bin/jupyter-lab
RUN chmod 755 /usr/local/bin/jupyter-lab
"""


@pytest.mark.thorough
def test_jupyter_is_on_loopback_alone_and_its_token_shows_nowhere(server: Server) -> None:
    server.user("bob", f"rm -rf {NOTES} && project init notes --base lab/python")
    server.user("bob", f"cat > {NOTES}/simulated-jupyter <<'END'\n{SIMULATED}END\n")
    server.user("bob", f"cat > {NOTES}/Dockerfile <<'END'\n{DOCKERFILE}END\n")
    try:
        told = json.loads(server.user("bob", "project launch notes --jupyter --json").out)["jupyter"]
        port, token = told["port"], told["url"].rpartition("token=")[2]
        assert told["ready"] and re.fullmatch("[0-9a-f]{48}", token)
        assert f"-L {port}:127.0.0.1:{port} bob@" in told["tunnel"]
        assert server.root(f"ss -Hltn sport = :{port} | awk '{{print $4}}'").out == f"127.0.0.1:{port}"
        seen = server.root(f"ps -eo args; docker inspect notes._.{BOB}; journalctl -q -n 2000 -o cat").out
        assert token not in seen and str(port) in seen
        again = json.loads(server.user("bob", "project launch notes --jupyter --json").out)["jupyter"]
        assert again == told
    finally:
        server.user("bob", f"container retire notes; rm -rf {NOTES}", check=False)
