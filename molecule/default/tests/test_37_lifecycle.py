"""Containers come to their end with a notice (H2); hours are put into the record, not waited for."""

from __future__ import annotations

import json

import pytest
from conftest import Server

NOTES = "~/workspace/notes"
RECORD = "/var/lib/lab-server/lifecycle.json"
POLICY = "/etc/lab-server/policy.json"
LIMIT = f"""python3 - <<'END'
import json
policy = json.load(open("{POLICY}"))
policy["lifecycle"].update(notice_hours=1)
for user in policy["users"]:
    if user["name"] == "bob":
        user["limits"].update(run_hours=1, idle_hours=0)
json.dump(policy, open("{POLICY}", "w"))
END"""
HOURS_LATER = f"""python3 - <<'END'
import json
record = json.load(open("{RECORD}"))
(name,) = [name for name in record["counted"] if name.startswith("notes._.")]
record["counted"][name].update(ran=36e4, noticed=36e2, about="run")
json.dump(record, open("{RECORD}", "w"))
END"""
# The service is what the timer starts; one that runs just now is waited for.
LOOK = "systemctl start lab-server-lifecycle.service"


@pytest.mark.thorough
def test_told_put_off_and_stopped_and_a_damaged_record_stops_nobody(server: Server) -> None:
    server.user("bob", f"rm -rf {NOTES} && project init notes --base lab/python")
    server.root(f"systemctl is-active lab-server-lifecycle.timer && cp -p {POLICY} {POLICY}.kept")
    try:
        server.user("bob", "project launch notes --detach")
        server.root(f"{LIMIT}\n{LOOK}")
        assert "to be stopped in" in server.user("bob", "container list").out
        done = json.loads(server.user("bob", "container extend notes --hours 2 --json").out)
        assert done["changed"] and done["hours"] == 2
        listed = server.user("bob", "container list").out
        assert "to be stopped in" not in listed and "stops in " in listed

        server.root(f"cp {RECORD} /root/record && truncate -s 20 {RECORD}")
        assert server.root(LOOK, check=False).rc != 0
        log = server.root("journalctl -q -n 20 -o cat -u lab-server-lifecycle").out
        assert f"rm {RECORD}" in log and "is damaged" in log
        server.root(f"cp /root/record {RECORD}\n{LOOK}\n{HOURS_LATER}")
        assert "notes._." in " ".join(server.containers())
        server.root(LOOK)
        assert "notes._." not in " ".join(server.containers())
        assert "it ran for 1 hour," in server.user("bob", "container why notes").out
    finally:
        server.root(f"mv {POLICY}.kept {POLICY}; rm -f {RECORD} /root/record; {LOOK}", check=False)
        server.user("bob", f"container retire notes; rm -rf {NOTES}", check=False)
