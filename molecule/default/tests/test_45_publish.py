"""A data manager publishes a dataset, and everybody has it at once and whole (C5, D3)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from conftest import ALICE, Server

SOURCE = "/home/carol/workspace/iris"
CURRENT = "/srv/data/datasets/iris/current"
PUBLISH = f"lab share publish datasets iris --from {SOURCE} --source doi:10.24432/C56C76 --licence CC-BY-4.0"


@pytest.fixture
def carol(server: Server) -> Iterator[Server]:
    """Return the server with a folder of carol's to publish; nothing of it is left afterwards."""
    server.user(
        "carol", f"mkdir -p {SOURCE}/train && cd {SOURCE} && echo 1,2 > train/a && ln -sfn train/a newest"
    )
    yield server
    server.root(
        "setquota -u carol 0 0 0 0 /srv/data; rm -rf /srv/data/datasets/iris /srv/data/datasets/CATALOGUE.md "
        f"/srv/data/datasets/.publish.lock; runuser -u carol -- rm -rf {SOURCE}"
    )


@pytest.mark.thorough
def test_a_dataset_is_there_for_everybody_at_once_and_whole(carol: Server) -> None:
    carol.user("carol", f"{PUBLISH} --version 1.0 --description Flowers")
    # In a container that ran already; nobody writes there, and the checksums are those of the usual tool.
    check = (
        f"cd {CURRENT} && sha256sum --check --quiet MANIFEST.sha256 && cat newest && ! touch x 2>/dev/null"
    )
    assert carol.inside("my-thesis", ALICE, check).out == "1,2"
    told = json.loads(carol.user("alice", "workspace share --json").out)["shares"]
    shown = [(one["name"], one["version"], one["licence"]) for share in told for one in share["datasets"]]
    assert shown == [("iris", "1.0", "CC-BY-4.0")]
    refused = carol.user("alice", f"{PUBLISH} --version 2.0; rm -rf {CURRENT}/train", check=False)
    assert "publish members of the group data-managers" in refused.text and "Traceback" not in refused.text

    # Her quota is used up on the way: the version that is there stays, and nothing of the new one.
    carol.root("setquota -u carol 0 128 0 0 /srv/data")
    full = carol.user("carol", f"head -c 1M /dev/zero > {SOURCE}/large; {PUBLISH} --version 2.0", check=False)
    assert full.rc == 1 and "There is no more room, at " in full.text and "Disk quota exceeded" in full.text
    assert carol.inside("my-thesis", ALICE, f"ls -A {CURRENT}/..; {check}").out.split() == [
        "1.0",
        "current",
        "1,2",
    ]
    carol.root("setquota -u carol 0 0 0 0 /srv/data")

    done = carol.user(
        "carol", f"{PUBLISH} --version 2.0 && {PUBLISH} --version 2.0 && lab share verify datasets iris"
    )
    assert "already published" in done.out and "iris 2.0 is as it was published." in done.out
    assert carol.inside("my-thesis", ALICE, f"readlink {CURRENT}; {check}").out == "2.0\n1,2"
    assert "| 2.0 (current) |" in carol.user("alice", "cat /srv/data/datasets/CATALOGUE.md").out
    carol.user("carol", "lab share retract datasets iris --version 2.0 --yes")
    assert carol.inside("my-thesis", ALICE, f"readlink {CURRENT}; {check}").out == "1.0\n1,2"
