"""What is done with whole projects, on a real engine: images that are forgotten, and what the doctor sees."""

from __future__ import annotations

import shutil

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import (
    asuser,
    containers,
    images,
    retired,
    symptoms,
)
from ansible_collections.lab.server.plugins.module_utils._core.errors import Refused


def test_the_doctor_sees_the_mount_of_a_running_container(engine, policy, alice, bob, thesis):
    containers.launch(engine, policy, alice, "thesis")
    place = policy.workspace(alice)

    def look(user, where):
        who = asuser.identity(policy, user)
        return asuser.run_as_user(who, lambda: symptoms.mounted("thesis", user.uid, where))

    assert look(alice, place) is True
    assert look(alice, f"{place}/thesis") is False
    assert look(bob, policy.workspace(bob)) is None
    containers.stop(engine, alice, "thesis")
    assert look(alice, place) is None


def test_a_project_that_is_gone_is_forgotten(engine, policy, alice, thesis, inside):
    containers.launch(engine, policy, alice, "thesis")
    # One that holds nothing would not be kept for undo.
    inside(alice, "thesis", "touch ~/mine")
    thesis.write("word", "two\n")
    images.build(engine, policy, alice, "thesis")
    assert len(images.history(engine, alice, "thesis")) == 2
    with pytest.raises(Refused, match="folder"):
        images.forget(engine, policy, alice, "thesis")
    shutil.rmtree(thesis.path)
    with pytest.raises(Refused, match="container"):
        images.forget(engine, policy, alice, "thesis")
    containers.retire(engine, policy, alice, "thesis")
    # What a retired container that can be brought back was made of stays as long as that one.
    assert len(images.forget(engine, policy, alice, "thesis").facts["removed"]) == 1
    assert [version.in_use for version in images.history(engine, alice, "thesis")] == [True]
    for kept in retired.kept(engine, uid=alice.uid):
        engine.remove(kept.actual.id)
    assert len(images.forget(engine, policy, alice, "thesis").facts["removed"]) == 1
    assert images.history(engine, alice, "thesis") == []
    assert not [
        tag for image in engine.images("lab/*/*") for tag in image["RepoTags"] or [] if "thesis" in tag
    ]
