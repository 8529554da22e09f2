# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""People in CSV files: what a spreadsheet writes is read, and a mistake is a sentence with file and line."""

from __future__ import annotations

import csv
import dataclasses
import io
import string
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.lab.server.plugins.filter.policy import policy as policy_filter
from ansible_collections.lab.server.plugins.module_utils._core import userfiles
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput
from ansible_collections.lab.server.plugins.module_utils._core.policy import Limits, Quota
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBFsdlBIzHK2rXmV5vzZzfPqjvBzOJXYzC5zyUsJqyx7 alice"
PLAIN = "name,uid,group,comment\nalice,2001,students,Alice Müller\n\nbob,2002,students,\n"
ALICE: dict[str, object] = {"name": "alice", "uid": 2001, "group": "students", "comment": "Alice Müller"}


def no_keys(_path: str) -> str:
    raise AssertionError("no file of keys was named")


def parse(text: str | bytes) -> list[userfiles.Row]:
    return userfiles.parse(text if isinstance(text, bytes) else text.encode(), "s.csv", no_keys)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN,
        "\ufeff" + PLAIN,
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "sep=;\r\n" + PLAIN.replace(",", ";"),
        '\ufeff"sep=;"\r\n' + PLAIN.replace(",", ";"),
        "\n\n" + PLAIN + ",,,\n  ,\t,,\n",
        PLAIN.replace("alice,", "  alice \u00a0,").replace("name", " Name "),
        PLAIN.replace("name,", "Name,").replace("uid", "UID"),
        # Excel leaves out what is empty at the end, or keeps columns that were emptied.
        PLAIN.replace("students,\n", "students\n"),
        "".join(f"{line},,\n" for line in PLAIN.splitlines() if line),
        PLAIN.rstrip("\n"),
    ],
)
def test_whatever_a_spreadsheet_writes_is_read(data: str) -> None:
    alice, bob = parse(data)
    assert alice.user == ALICE
    assert bob.user == {"name": "bob", "uid": 2002, "group": "students"}


def test_the_place_is_the_line_in_the_editor() -> None:
    rows = parse(f'sep=,\nname,group,ssh_keys\nalice,students,"{KEY}\n# old\n\n{KEY}x"\n\nbob,students,\n')
    assert [row.where for row in rows] == ["s.csv:3 (alice)", "s.csv:8 (bob)"]
    assert rows[0].user["ssh_keys"] == [KEY, KEY + "x"]


def test_each_column_is_a_key_of_lab_users() -> None:
    keys = {f"limits.{one.name}" for one in dataclasses.fields(Limits)}
    keys |= {f"quota.{one.name}" for one in dataclasses.fields(Quota)}
    assert {name for name in userfiles.COLUMNS if "." in name} == keys
    (row,) = parse("name,group,groups,limits.cpus,limits.gpus,quota.hard\na,students,x; y,2.5,1,10g\n")
    assert row.user == {
        "name": "a",
        "group": "students",
        "groups": ["x", "y"],
        "limits": {"cpus": 2.5, "gpus": 1},
        "quota": {"hard": "10g"},
    }


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("", "s.csv is empty. Its first line names columns: name, uid"),
        (";;;\n\n", "s.csv is empty."),
        ("name,group,age\n", "s.csv:1: the column 'age' is not known. Use: name, uid"),
        ("name,group,name\n", "s.csv:1: the column 'name' is there twice."),
        ("name|group\n", "s.csv:1: the column 'name|group' is not known."),
        ("\nuid,group\n", "s.csv:2: there is no column 'name'."),
        ("name;uid\n", "there is no column 'group'. The first line names the columns; they were taken as "),
        ("name;uid\n", "parted by semicolons."),
        ("name,group\nalice,students,x\n", "s.csv:2: 'x' is in a column without a name."),
        ('name,group\nalice,"stu\ndents\n', "s.csv:2: a quotation mark does not end"),
        ('name,group\nalice,"stu"dents\n', "s.csv:2: a quotation mark does not end, or is in the middle"),
        (b"name,group\nalice,students\nbj\xf6rn,students\n", "s.csv:3: a character is not UTF-8."),
        (PLAIN.encode("utf-16"), "s.csv is UTF-16. Save it as 'CSV UTF-8'."),
        (b"PK\x03\x04rest", "s.csv is a workbook, not a CSV file."),
        ("name,group,comment\na,students,{{ 1 }}\n", "s.csv:2.comment: '{{ 1 }}' looks like a template."),
        ("name,group,comment\na,students,{% x\n", "looks like a template."),
    ],
)  # fmt: skip  # read as a table, several to a line
def test_a_mistake_is_a_sentence_with_its_line(data: str | bytes, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(data)
    assert words in str(caught.value)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(string.ascii_lowercase, min_size=1),
            st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="{")),
        )
    ),
    st.sampled_from(",;\t"),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_what_was_written_is_what_is_read(
    people: list[tuple[str, str]], delimiter: str, end: str, marked: bool
) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end)
    writer.writerow(["name", "group", "comment"])
    writer.writerows((name, "students", comment) for name, comment in people)
    rows = parse(stream.getvalue().encode("utf-8-sig" if marked else "utf-8"))
    assert [(row.user["name"], row.user.get("comment", "")) for row in rows] == people


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_file_makes_anything_but_users_or_a_sentence(data: bytes) -> None:
    try:
        rows = parse(b"name,group,comment\n" + data)
    except InvalidInput as error:
        assert str(error).isprintable()  # noqa: PT017  # either is right, and both are looked at
    else:
        assert all(row.user for row in rows)


# Together with the inventory


def variables(**more: Any) -> dict[str, Any]:
    limits = {"containers": 1, "cpus": 1, "memory": "1g", "pids": 64, "shm": "64m", "gpus": 0}
    quota = {"soft": 0, "hard": "40g", "inodes_soft": 0, "inodes_hard": 0}
    group = {"name": "students", "gid": 3101, "limits": limits, "quota": quota}
    dora = {"name": "dora", "uid": 2004, "group": "students"}
    return {"lab_groups": [group], "lab_users": [dora], **more}


def given_files(folder: Path, **files: str) -> dict[str, Any]:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)
    made = variables(lab_users_from=[f"{name}.csv" for name in files])
    return policy_filter(made, strict=False, folder=str(folder))


def test_users_of_files_are_users_like_all_others(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/alice.pub").write_text(f"# of her laptop\n{KEY}\n")
    head = "name;uid;group;ssh_key_file;limits.cpus;quota.hard\n"
    made = given_files(
        tmp_path,
        a=head + "alice;2001;students;keys/alice.pub;0.5;50g\n",
        b="name,uid,group\nbob,2002,students\n",
    )
    assert made["problem"] == ""
    users = {user["name"]: user for user in made["users"]}
    assert list(users) == ["dora", "alice", "bob"]
    assert users["alice"]["ssh_keys"] == [KEY]
    assert users["alice"]["limits"]["cpus"] == 0.5 and users["alice"]["quota"]["hard"] == 50 << 30
    assert users["bob"]["limits"] == users["dora"]["limits"]


def test_mistakes_of_all_lines_and_files_are_told_at_once(tmp_path: Path) -> None:
    made = given_files(
        tmp_path,
        a="name,uid,group\nAlice,2001,students\nbob,12,students\ncarl,2003,staff\n",
        b="name,uid,group\ndora,2004,students\neve,,students\n",
    )
    for words in (
        "a.csv:2 (Alice).name: 'Alice' is not allowed.",
        "a.csv:3 (bob).uid: expected a whole number from 1000 to 59999, not 12.",
        "a.csv:4 (carl).group: 'staff' is not in lab_groups. Use one of: students.",
        "b.csv:3 (eve).uid is missing.",
    ):
        assert words in made["problem"]
    assert list(made) == ["problem"]


def test_nobody_is_declared_twice(tmp_path: Path) -> None:
    head = "name,uid,group\n"
    made = given_files(
        tmp_path, a=head + "dora,2005,students\nbob,2002,students\n", b=head + "bob,2002,students\n"
    )
    assert "b.csv:2 (bob).uid: the number 2002 is also that of a.csv:3 (bob).uid." in made["problem"]
    made = given_files(tmp_path, a=head + "dora,2005,students\n")
    assert "a.csv:2 (dora).name: the name dora is also that of lab_users[0] (dora).name." in made["problem"]


def test_twelve_mistakes_are_ten_and_how_many_more(tmp_path: Path) -> None:
    lines = "".join(f"U{number},{2100 + number},students\n" for number in range(12))
    problem = given_files(tmp_path, a="name,uid,group\n" + lines)["problem"]
    assert problem.count("is not allowed.") == 10 and problem.endswith("And 2 more of the kind.")


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("../other/key.pub", "a.csv:2 (alice).ssh_key_file: '../other/key.pub' is not below the folder"),
        ("/etc/hostname", "is not below the folder of the CSV file."),
        ("none.pub", "a.csv:2 (alice).ssh_key_file: none.pub cannot be read: No such file or directory."),
    ],
)
def test_keys_are_read_from_beside_the_file_alone(tmp_path: Path, cell: str, words: str) -> None:
    made = given_files(tmp_path, a=f"name,uid,group,ssh_key_file\nalice,2001,students,{cell}\n")
    assert words in made["problem"]


def test_the_variable_is_a_list_of_paths(tmp_path: Path) -> None:
    assert "expected a list" in policy_filter(variables(lab_users_from="a.csv"), strict=False)["problem"]
    assert "[0]: expected a path" in policy_filter(variables(lab_users_from=[1]), strict=False)["problem"]
    problem = policy_filter(variables(lab_users_from=["no.csv"]), strict=False, folder=str(tmp_path))[
        "problem"
    ]
    assert problem.startswith("no.csv cannot be read: No such file or directory.")


def test_a_relative_path_begins_at_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/it")
    assert userfiles.on_controller("files/a.crt", "/inventory") == "/inventory/files/a.crt"
    assert userfiles.on_controller("/etc/a.crt", "/inventory") == "/etc/a.crt"
    assert userfiles.on_controller("~/a.crt", "/inventory") == "/home/it/a.crt"
    # A server that is named on the command line has no such folder.
    assert userfiles.on_controller("a.crt") == f"{tmp_path}/a.crt"
