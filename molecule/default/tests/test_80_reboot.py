"""After a reboot what should run runs; without its data disk the server waits and says so (H1, A2, D2)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Callable

import pytest
import simulated_gpus
from conftest import ALICE, BOB, CAROL, DAVE, Server

TREE = "cd /home/.workspaces/alice && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum"


def reachable(server: Server) -> bool:
    """Tell whether ssh answers, whatever the state of the machine."""
    try:
        return server.root("true", check=False).rc == 0
    except RuntimeError:  # testinfra raises it for exit status 255 of ssh
        return False


SPECIFICATION = """{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices":
[{"name": "GPU-one", "containerEdits": {"env": ["LAB_SIMULATED_GPU=GPU-one"]}}]}"""


def waiting(server: Server) -> list[dict[str, Any]]:
    """Return who waits for GPUs, as bob is told."""
    told: list[dict[str, Any]] = json.loads(server.user("bob", "gpu queue --json").out)["waiting"]
    return told


@pytest.fixture(scope="module")
def gpu(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[bool]:
    """Let dave have a GPU in a container and bob wait for it, where Docker can give one; say whether so."""
    if not simulated_gpus.knows_cdi(server):
        yield False
        return
    simulated_gpus.install(server, simulated_gpus.bring(server, tmp_path_factory.mktemp("gpu")))
    simulated_gpus.allow(server, "bob", "dave")
    server.root(f"mkdir -p /etc/cdi && printf '%s' '{SPECIFICATION}' > /etc/cdi/simulated.json")
    server.user("dave", "project init train --base lab/python && project launch train --gpus 1 --detach")
    server.user("bob", "project init train --base lab/python")
    server.user("bob", "nohup project launch train --gpus 1 --wait --detach < /dev/null > /dev/null 2>&1 &")
    server.wait(lambda: [one["yours"] for one in waiting(server)] == [True], "bob waits for a GPU")
    yield True
    for user in ("bob", "dave"):
        server.user(user, "gpu release train; container retire train; rm -rf ~/workspace/train", check=False)
    simulated_gpus.take_away(server)
    server.root("rm /etc/cdi/simulated.json")


@pytest.fixture(scope="module")
def before(server: Server, gpu: bool) -> str:
    """What should run and what should not, and the checksum of alice's files."""
    server.root("echo published > /srv/data/datasets/reboot.txt && chmod 644 /srv/data/datasets/reboot.txt")
    server.user("alice", "project launch my-thesis --detach")
    server.user("carol", "project launch vision --detach && project init paused --base lab/debian")
    server.user("carol", "printf 'FROM lab/debian\\n' > ~/workspace/paused/Dockerfile")
    server.user("carol", "project launch paused --detach && container stop paused")
    return server.root(TREE).out


def running(server: Server) -> bool:
    """Tell whether what should run runs."""
    found = server.root("docker ps --format '{{.Names}}'", check=False)
    return {f"my-thesis._.{ALICE}", f"vision._.{CAROL}"} <= set(found.out.split())


def server_up(server: Server) -> float:
    """Return for how many seconds the server has been up."""
    return float(server.root("cat /proc/uptime").out.split()[0])


def settled(server: Server, boot: str) -> bool:
    """Tell whether the machine has booted anew and what should run runs."""
    try:
        return server.root("cat /proc/sys/kernel/random/boot_id").out != boot and running(server)
    except (RuntimeError, AssertionError):
        return False


def test_after_a_reboot_what_should_run_runs(server: Server, before: str) -> None:
    boot = server.root("cat /proc/sys/kernel/random/boot_id").out
    server.root("systemd-run --quiet --on-active=1 systemctl reboot")
    server.wait(lambda: settled(server, boot), "the containers of alice and carol run again", 400)
    assert f"paused._.{CAROL}" not in server.containers()
    assert server.root(TREE).out == before
    assert server.root("systemctl is-system-running", check=False).out in ("running", "starting")
    assert server.inside("vision", CAROL, "cat /srv/data/datasets/reboot.txt").out == "published"


def test_after_a_reboot_a_container_has_its_gpu(server: Server, before: str, gpu: bool) -> None:
    if not gpu:
        pytest.skip("this Docker knows no CDI: it needs the toolkit's hook, which is not simulated")
    name = f"train._.{DAVE}"
    server.wait(lambda: name in server.containers(), "the container of dave runs again", 100)
    assert simulated_gpus.given(server, name) == ["GPU-one"]
    told = json.loads(server.root("lab gpus --json").out)
    assert [(one["container"], one["state"]) for one in told["devices"][0]["holders"]] == [(name, "running")]
    assert '"verdict": "pass"' in server.root("lab verify --check gpus --json").out


def test_after_a_reboot_who_waited_for_a_gpu_waits_on_and_gets_it(
    server: Server, before: str, gpu: bool
) -> None:
    if not gpu:
        pytest.skip("this Docker knows no CDI: it needs the toolkit's hook, which is not simulated")
    server.wait(lambda: [one["yours"] for one in waiting(server)] == [True], "bob waits again", 200)
    (place,) = waiting(server)
    assert (place["project"], place["place"], place["gpus"]) == ("train", 1, "1")
    assert place["waited"] > server_up(server)  # since before the reboot
    assert f"train._.{BOB}" not in server.containers(everything=True)
    server.user("dave", "container retire train")
    server.wait(lambda: f"train._.{BOB}" in server.containers(), "the container of bob runs", 200)
    assert simulated_gpus.given(server, f"train._.{BOB}") == ["GPU-one"]
    assert waiting(server) == []


def test_without_the_data_disk_nothing_pretends(
    server: Server, before: str, machine: Callable[..., None]
) -> None:
    machine("stop")
    machine("start", "--without", "data")
    server.wait(lambda: reachable(server), "ssh answers without the data disk", 400)
    server.wait(
        lambda: (
            server.root("systemctl is-active lab-server-boot", check=False).out in ("failed", "activating")
        ),
        "the boot unit has looked",
        200,
    )
    server.wait(
        lambda: (
            "/srv/data" in server.root("journalctl -b -u lab-server-boot -o cat --no-pager", check=False).out
        ),
        "the message",
        300,
    )
    assert server.root("findmnt /srv/data", check=False).rc != 0
    down = server.root("timeout 30 docker ps", check=False)
    assert down.rc not in (0, 124)  # it says at once that Docker is down, and waits for no disk
    refused = server.user("alice", "project launch my-thesis --detach", check=False)
    assert refused.rc != 0 and "/srv/data" in refused.text and "Traceback" not in refused.text
    assert server.user("alice", "ls ~/workspace/my-thesis").rc == 0
    assert server.root(TREE).out == before


def test_a_data_disk_that_comes_late_brings_everything_back(
    server: Server, before: str, machine: Callable[..., None]
) -> None:
    machine("plug", "data")
    server.wait(lambda: running(server), "the containers of alice and carol run again", 400)
    assert f"paused._.{CAROL}" not in server.containers()
    assert server.root(TREE).out == before
    assert server.inside("vision", CAROL, "cat /srv/data/datasets/reboot.txt").out == "published"
    server.wait(
        lambda: '"verdict": "pass"' in server.root("lab verify --check boot --json", check=False).out,
        "nothing is missing any more",
    )
