"""The commands of lab users, typed by them: start, jobs, logs, images, and why (A16, E7, F3, F5, H2)."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ALICE, BOB, Server

LIMITS = f"docker inspect -f '{{{{.HostConfig.Memory}}}} {{{{.HostConfig.NanoCpus}}}}' sums._.{BOB}"


def test_a_job_goes_on_when_its_user_has_left_and_its_end_is_told(server: Server) -> None:
    begun = server.user(
        "alice", "project launch my-thesis --command 'id -un; pwd; sleep 4; echo late; exit 3' --json"
    )
    log = json.loads(begun.out.splitlines()[-1])["job"]["log"]
    assert re.fullmatch(r"results/logs/[0-9-]{17}\.log", log)
    # The shell that started it has ended.
    followed = server.user("alice", "container logs my-thesis --follow && container list")
    assert re.search(r"alice\n/workspace/my-thesis\nlate\n", followed.out)
    assert "--- exit code 3 ---" in followed.out and "its job ended (3)" in followed.out
    assert server.root(f"stat -c %U /home/.workspaces/alice/my-thesis/{log}").out == "alice"


def test_a_command_in_the_container_has_its_words_and_its_exit_code(server: Server) -> None:
    done = server.user(
        "alice", "echo in | container exec my-thesis -- sh -c 'cat; id -u; pwd; exit 7'", check=False
    )
    assert (done.rc, done.out.split()) == (7, ["in", str(ALICE), "/workspace/my-thesis"])
    refused = server.user("alice", "container exec my-thesis -- --user=0 id", check=False)
    assert refused.rc in (126, 127) and "uid=0" not in refused.text


def test_nobody_gets_into_anothers_container(server: Server) -> None:
    said = server.user(
        "carol",
        "for name in my-thesis no-such-project; do echo ==; container exec $name -- id; echo $?; "
        "container logs $name; echo $?; container why $name; echo $?; done 2>&1",
    ).out
    hers, none = said.split("==\n")[1:]
    assert hers.rstrip("\n").replace("my-thesis", "no-such-project") == none.rstrip("\n")
    assert hers.splitlines().count("4") == 3 and "uid=" not in said


@pytest.mark.thorough
def test_stats_and_status_tell_what_there_is(server: Server) -> None:
    stats = server.user("alice", "container stats my-thesis --json")
    (used,) = json.loads(stats.out.splitlines()[-1])["containers"]
    assert 0 < used["memory"] < used["memory_limit"] and 1 <= used["pids"] <= used["pids_limit"]
    *screen, last = server.user(
        "alice", "project status my-thesis && project status my-thesis --json"
    ).out.splitlines()
    assert max(len(line) for line in screen) <= 80
    status = json.loads(last)
    assert status["container"]["status"] == "running" and status["image"]["matches_files"] is not None
    assert status["usage"]["limit"] > status["usage"]["used"] >= status["usage"]["project"] > 0


def test_why_tells_who_stopped_and_started_it(server: Server) -> None:
    said = server.user(
        "alice",
        "container stop my-thesis && container why my-thesis && container start my-thesis "
        "&& container why my-thesis",
    ).out
    assert "it was stopped by you" in said and "stays down when the server is started" in said
    assert "The container of my-thesis runs since" in said and "started by you" in said
    assert server.root("stat -c %U:%a /var/lib/lab-server/events/2001/my-thesis.jsonl").out == "root:600"
    assert server.user("alice", "cat /var/lib/lab-server/events/2001/*", check=False).rc != 0


@pytest.mark.thorough
def test_a_process_that_needs_too_much_memory_is_told(server: Server) -> None:
    server.user("bob", "rm -rf ~/workspace/sums && project init sums")
    launched = server.user("bob", "project launch sums --detach --memory 64m --cpus 0.5")
    assert "64M of memory" in launched.out
    assert server.root(LIMITS).out == f"{64 << 20} 500000000"
    hungry = "python3 -c 'x = b\"1\" * (200 << 20)'"
    assert server.user("bob", f"container exec sums -- {hungry}", check=False).rc == 137
    assert "more memory than its limit of 64M" in server.user("bob", "container why sums").out
    refused = server.user("bob", "project launch sums --memory 900g", check=False)
    assert refused.rc == 3 and "more than the limit" in refused.text


@pytest.mark.thorough
def test_images_are_listed_gone_back_to_and_removed(server: Server) -> None:
    server.user("bob", "echo 'ENV ANOTHER=1' >> ~/workspace/sums/Dockerfile && image update sums")
    listed = json.loads(server.user("bob", "image list --json").out.splitlines()[-1])["images"]
    own = [one for one in listed if one["project"] == "sums"]
    assert [(one["current"], one["in_use"]) for one in own] == [(True, False), (False, True)]
    back = server.user("bob", "image rollback sums && image history sums && image show sums").out
    assert f"{own[1]['image']} is the current image" in back and "gone back to" in back
    assert "base:     lab/" in back
    removed = server.user("bob", "image remove sums --dry-run && image remove sums --yes --json").out
    assert [one["image"] for one in json.loads(removed.splitlines()[-1])["removed"]] == [own[0]["image"]]
    server.user("bob", "container retire sums && rm -rf ~/workspace/sums")
