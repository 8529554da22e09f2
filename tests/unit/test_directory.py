# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Accounts that exist already: who they are, who is gone, and a directory that does not answer."""

from __future__ import annotations

from typing import Any

import pytest
from ansible_collections.lab.server.plugins.filter.policy import directory as asked_filter
from ansible_collections.lab.server.plugins.filter.policy import policy as policy_filter

LIMITS = {"containers": 1, "cpus": 1, "memory": "1g", "pids": 64, "shm": "64m", "gpus": 1}
QUOTA = {"soft": 0, "hard": "40g", "inodes_soft": 0, "inodes_hard": 0}


def variables(**more: Any) -> dict[str, Any]:
    groups = [
        {"name": name, "gid": gid, "limits": LIMITS, "quota": QUOTA}
        for name, gid in (("students", 3101), ("staff", 3102))
    ]
    return {"lab_groups": groups, **more}


def existing(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "group": "students", "account": "existing", **more}


def passwd(*people: tuple[str, int], gid: int = 10000) -> str:
    return "".join(f"{name}:*:{uid}:{gid}:{name}:/home/{name}:/bin/bash\n" for name, uid in people)


def people(alice: int, bob: int, gid: int = 10000) -> str:
    return passwd(("alice", alice), ("bob", bob), gid=gid)


def users(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert made["problem"] == ""
    return {user["name"]: user for user in made["users"]}


EVE = {"name": "eve", "uid": 2001, "group": "students"}
DECLARED = variables(lab_users=[existing("alice"), existing("bob", uid=5002), EVE])
OF_GROUP = variables(lab_directory_groups=[{"name": "uni-students", "group": "students"}])


def test_the_numbers_are_those_of_the_directory() -> None:
    assert asked_filter(DECLARED) == {"groups": [], "users": ["alice", "bob"]}
    made = users(policy_filter(DECLARED, strict=False, accounts=people(5001, 5002)))
    assert (made["alice"]["uid"], made["alice"]["main_group"], made["alice"]["account"]) == (
        5001,
        10000,
        "existing",
    )
    assert (made["eve"]["uid"], made["eve"]["main_group"], made["eve"]["account"]) == (2001, 0, "local")


def test_members_of_a_group_are_users() -> None:
    groups = "uni-students:*:20000:alice,bob,J.Doe,daemon,eve\n"
    assert asked_filter(OF_GROUP) == {"groups": ["uni-students"], "users": []}
    assert asked_filter(OF_GROUP, groups=groups)["users"] == ["alice", "bob", "daemon", "eve"]
    eve = {"name": "eve", "uid": 2001, "group": "staff"}
    answer = passwd(("alice", 5001), ("bob", 5002), ("daemon", 2), ("eve", 2001))
    made = policy_filter({**OF_GROUP, "lab_users": [eve]}, strict=False, groups=groups, accounts=answer)
    # Who is declared is as declared; the numbers of the system are nobody's.
    assert {name: user["group"] for name, user in users(made).items()} == {
        "eve": "staff",
        "alice": "students",
        "bob": "students",
    }
    assert [note.split(": ", 1)[1] for note in made["notes"]] == [
        "J.Doe is no lab user: the name is not allowed here.",
        "daemon is no lab user: the uid 2 is not from 1000 to 59999.",
    ]


def test_a_member_of_a_group_who_was_offboarded_is_left_out() -> None:
    lab = {
        **OF_GROUP,
        "lab_base_images": [{"name": "lab/python", "image": "x"}],
        "lab_projects": [{"user": "bob", "name": "net"}],
        "lab_gpu": {"users": {"bob": {"devices": 1}}},
    }
    made = policy_filter(
        lab,
        strict=False,
        groups="uni-students:*:20000:alice,bob,dave\n",
        accounts=passwd(("alice", 5001), ("bob", 5002), ("dave", 5003)),
        former='{"5002": "bob", "5003": "carol", "5004": "alice"}',
    )
    # The alice of another uid is the one of today.
    assert list(users(made)) == ["alice"] and made["projects"] == []
    assert [note.split(": ", 1)[1] for note in made["notes"]] == [
        "bob is no lab user: bob was offboarded; take bob out of the directory's group.",
        "dave is no lab user: the uid 5003 was carol's, who was offboarded.",
    ]


def test_a_damaged_record_of_who_was_offboarded_makes_nobody_a_user() -> None:
    groups, answer = "uni-students:*:20000:alice\n", passwd(("alice", 5001))
    made = policy_filter(OF_GROUP, strict=False, groups=groups, accounts=answer, former="{")
    assert list(made) == ["problem"] and "former-uids.json is damaged" in made["problem"]


def test_who_is_in_two_groups_has_the_limits_of_the_first() -> None:
    both = variables(
        lab_directory_groups=[
            {"name": "a", "group": "staff"},
            {"name": "b", "group": "students", "groups": ["staff"]},
        ]
    )
    made = policy_filter(
        both, strict=False, groups="a:*:1:alice\nb:*:2:alice,bob\n", accounts=people(5001, 5002)
    )
    assert {name: (user["group"], user["groups"]) for name, user in users(made).items()} == {
        "alice": ("staff", ["students"]),
        "bob": ("students", ["staff"]),
    }


def test_who_is_gone_is_as_if_taken_out_with_all_that_was_declared() -> None:
    lab = {
        **DECLARED,
        "lab_base_images": [{"name": "lab/python", "image": "x"}],
        "lab_projects": [{"user": "bob", "name": "net"}, {"user": "alice", "name": "thesis"}],
        "lab_gpu": {"users": {"bob": {"devices": 1}, "alice": {"devices": 1}}},
    }
    made = policy_filter(lab, strict=False, accounts=passwd(("alice", 5001)))
    assert list(users(made)) == ["alice", "eve"]
    assert [(one["user"], one["name"]) for one in made["projects"]] == [("alice", "thesis")]
    assert made["notes"] == ["bob is not in the directory: shut out, as if taken out of lab_users."]


@pytest.mark.parametrize(
    ("lab", "groups", "answer"),
    [
        # Nobody, one of three, a group that is not there, and one whose members are not told.
        (DECLARED, "", ""),
        (variables(lab_users=[existing(name) for name in ("a", "b", "c")]), "", passwd(("a", 5001))),
        (OF_GROUP, "", ""),
        (OF_GROUP, "uni-students:*:20000:\n", ""),
        (OF_GROUP, "uni-students:*:20000:alice,bob\n", ""),
    ],
)
def test_a_directory_that_does_not_answer_shuts_nobody_out(
    lab: dict[str, Any], groups: str, answer: str
) -> None:
    made = policy_filter(lab, strict=False, groups=groups, accounts=answer)
    assert list(made) == ["problem"] and "getent" in made["problem"]


@pytest.mark.parametrize(
    ("lab", "answer", "words"),
    [
        (DECLARED, people(5001, 5003), "lab_users[1] (bob).uid: 5002 is not that of bob, 5003."),
        (DECLARED, people(60000, 5002), "(alice).uid: expected a whole number from 1000 to"),
        (DECLARED, people(2001, 5002), "the number 2001 is also that of lab_users[0] (alice).uid"),
        (DECLARED, people(5001, 5002, gid=42), "(alice).main_group: 42 cannot be the main group"),
        (
            variables(lab_users=[existing("alice")]),
            "alice:*:5001:100::/home/uni/alice:/bin/sh\n",
            "lab_users[0] (alice): the home of alice is '/home/uni/alice' there, not /home/alice.",
        ),
        (variables(lab_users=[{**EVE, "account": "ldap"}]), "", "(eve).account: 'ldap' is not known."),
        (variables(lab_users=[{**EVE, "main_group": 5000}]), "", "(eve).main_group: 5000 cannot be"),
        (variables(lab_directory_groups=[{"name": "x"}]), "", "[0] (x).group is missing."),
        (variables(lab_directory_groups=[{"name": "-s", "group": "students"}]), "", "'-s' names no group."),
        (variables(lab_directory_groups="x"), "", "lab_directory_groups: expected a list."),
    ],
)
def test_a_mistake_is_a_sentence(lab: dict[str, Any], answer: str, words: str) -> None:
    assert words in policy_filter(lab, strict=False, accounts=answer)["problem"]


def test_the_group_of_all_users_may_be_the_main_group() -> None:
    made = policy_filter(
        variables(lab_users=[existing("a")]), strict=False, accounts=passwd(("a", 5001), gid=100)
    )
    assert users(made)["a"]["main_group"] == 100


def test_a_mistake_elsewhere_asks_for_nothing() -> None:
    assert asked_filter(variables(lab_directory_groups="x")) == {"groups": [], "users": []}
