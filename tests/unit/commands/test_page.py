# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The page of a server: all that lab status tells, for all eyes, and nothing in it runs or is fetched."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import page

GIB = 1 << 30
HOSTILE = "<script>alert('x')</script>\x1b[31m & \"quoted\""


def limit(**usage: int) -> dict[str, Any]:
    quota = {"soft": 0, "hard": 10 * GIB, "inodes_soft": 0, "inodes_hard": 1000}
    return {"used": 5 * GIB, "inodes": 20, "quota": quota, **usage}


def user(name: str, uid: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "uid": uid,
        "group": "students",
        "groups": [],
        "quota": limit()["quota"],
        "usage": limit(),
        "usage_problem": "",
        "layers": limit(used=GIB),
        **more,
    }


def seen(text: str = "it differs") -> dict[str, Any]:
    """Return what overview tells of a server on which everything has something to show."""
    capacity = {
        "role": "home",
        "mount": "/home",
        "size": 100 * GIB,
        "promised": 170 * GIB,
        "ratio": 1.7,
        "unbounded": ["bob"],
        "overcommitted": True,
    }
    lost = {
        **capacity,
        "role": "data",
        "mount": "/srv/data",
        "size": 0,
        "promised": 0,
        "overcommitted": False,
    }
    disk = {"mount": "/", "size": 20 * GIB, "used": 5 * GIB, "space": 0.25, "inodes": 0.1}
    container = {
        "name": "net._.2002",
        "user": "bob",
        "uid": 2002,
        "project": "net",
        "status": "running",
        "running": True,
        "created": 1_700_000_000,
        "declared": False,
        "image_newer": True,
    }
    image = {
        "name": "lab/2002/net:latest",
        "user": "bob",
        "uid": 2002,
        "project": "net",
        "size": 3 * GIB,
        "age_days": 4,
        "current": True,
        "in_use": True,
    }
    gpu = {
        "index": 0,
        "name": "NVIDIA H100",
        "memory": 80 * GIB,
        "used": 8 * GIB,
        "load": 30,
        "temperature": 41,
        "instances": [],
        "processes": [{"user": "bob"}],
        "healthy": True,
        "problem": "",
    }
    broken = {**gpu, "index": 1, "name": "", "memory": 0, "load": None, "temperature": None}
    return {
        "host": {"name": "gpu1", "time": 1_700_000_000.0, "up": 90_000.0},
        "overcommit": 1.5,
        "attention": [{"level": "bad", "text": text}, {"level": "warn", "text": "carol left"}],
        "storage": {"capacity": [capacity, lost]},
        "disks": [disk, {**disk, "mount": "/home", "size": 100 * GIB, "space": 0.97}],
        "users": [
            user("alice", 2001, usage=None, layers=None, usage_problem=text),
            user("bob", 2002, usage=limit(used=9 * GIB)),
        ],
        "left": [{"name": "carol", "closed": False}],
        "docker": {"answers": True, "problem": ""},
        "containers": [container],
        "retired": [container],
        "images": [image],
        "base_images": [{"name": "lab/python", "here": True, "size": 2 * GIB, "age_days": 9}],
        "gpus": [gpu, {**broken, "processes": [], "healthy": False, "problem": text}],
        "gpus_problem": "",
        "projects": [{"user": "alice", "name": "thesis", "drift": True, "reason": text}],
        "units": [{"name": "docker.service", "active": "failed"}],
        "units_problem": "",
        "backup": {"users": [{"done": 1_600_000_000}, {"done": 0}]},
    }


def tree(text: str) -> ElementTree.Element:
    """Return the elements of a page; it is written as XML, too, so that a parser can find it broken."""
    assert text.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(text)


def words(element: ElementTree.Element) -> str:
    return " ".join("".join(element.itertext()).split())


def rows(text: str, section: str) -> dict[str, list[str]]:
    """Return the rows of the table of a section, by the text of their headings."""
    found = tree(text).find(f".//section[@aria-labelledby='{section}']//tbody")
    assert found is not None
    return {words(row[0]): [words(cell) for cell in row[1:]] for row in found}


def test_everything_is_on_the_page() -> None:
    text = page.page(seen())
    disks = rows(text, "disks")
    assert disks["/"] == ["20G", "5G", "25 %", "10 %", "nothing", "", ""]
    assert disks["/home"] == ["100G", "5G", "97 %", "10 %", "170G", "1.70, too much", "bob"]
    assert disks["/srv/data"] == ["not mounted", "", "", "", "0", "not known", "bob"]
    people = rows(text, "users")
    assert people["bob"] == ["students", "9G", "10G", "90 %", "20", "1G", "1 of 1 run", "1", "3G"]
    # What is not known is not zero.
    assert people["alice"][1:6] == ["not known", "10G", "not known", "not known", "not known"]
    assert rows(text, "containers")["bob/net"][0] == "running"
    assert rows(text, "images")["lab/2002/net:latest"] == ["bob/net", "3G", "4 d", "current, in use"]
    assert rows(text, "gpus")["0: NVIDIA H100"] == ["8G of 80G", "30 %", "41 C", "none", "bob", "well"]
    assert rows(text, "gpus")["1: not known"][:3] == ["not known", "not known", "not known"]
    assert rows(text, "drift") == {"alice/thesis": ["it differs"]}
    assert rows(text, "services-and-backups") == {"docker.service": ["failed"]}
    assert "carol left; the account is open." in words(tree(text))
    assert "1 of 2 users have a backup; the oldest of the last ones is of 2020-09-13" in words(tree(text))


def test_what_is_wrong_with_an_instance_is_told_of_its_gpu() -> None:
    told = seen()
    parts = [{"profile": "1g.10gb", "problem": text, "processes": []} for text in ("", "It is ill.")]
    told["gpus"][0]["instances"] = parts
    row = rows(page.page(told), "gpus")["0: NVIDIA H100"]
    assert (row[3], row[-1]) == ("1g.10gb, 1g.10gb", "It is ill.")


def test_an_empty_server_has_a_page_too() -> None:
    nothing = seen()
    for key in ("attention", "disks", "users", "left", "containers", "retired", "images", "base_images"):
        nothing[key] = []
    nothing.update(gpus=[], gpus_problem="There is no GPU.", projects=[], units=[], backup=None)
    nothing["storage"]["capacity"] = []
    said = words(tree(page.page(nothing)))
    assert (
        "What needs a hand Nothing." in said and "There is no GPU." in said and "Nothing is backed up" in said
    )
    nothing["docker"] = {"answers": False, "problem": "It is down."}
    said = words(tree(page.page(nothing)))
    # Without Docker nobody knows whether something has drifted.
    assert "Docker does not answer: It is down." in said and "Drift Not known." in said


def test_no_text_becomes_markup() -> None:
    text = page.page(seen(HOSTILE))
    told = words(tree(text))
    assert told.count("<script>alert('x')</script>\\x1b[31m & \"quoted\"") == 4
    assert [one.tag for one in tree(text).iter("script")] == [] and "\x1b" not in text


def test_nothing_is_fetched_and_nothing_runs() -> None:
    text = page.page(seen())
    assert not re.search(r"https?:|src=|url\(|@import|<link|<a |\son[a-z]+=", text)
    (policy,) = [one for one in tree(text).iter("meta") if "http-equiv" in one.attrib]
    assert policy.get("content") == "default-src 'none'; style-src 'unsafe-inline'"


def test_who_cannot_see_it_can_hear_it() -> None:
    made = tree(page.page(seen()))
    assert made.get("lang") == "en" and len(list(made.iter("h1"))) == 1 and len(list(made.iter("main"))) == 1
    for section in made.iter("section"):
        (heading,) = section.iter("h2")
        assert section.get("aria-labelledby") == heading.get("id")
    tables = list(made.iter("table"))
    assert len(tables) == 7
    for table in tables:
        (head,) = table.iter("thead")
        columns = list(head.iter("th"))
        assert all(one.get("scope") == "col" and words(one) for one in columns)
        for row in table.findall("tbody/tr"):
            assert len(row) == len(columns) and row[0].tag == "th" and row[0].get("scope") == "row"
    # A bar repeats what stands above it in figures, and is for the eye alone.
    bars = [one for one in made.iter("span") if one.get("class") == "bar"]
    assert bars and all(one.get("aria-hidden") == "true" for one in bars)


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb (WCAG 2.2, definition of relative luminance)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("place", [0, 1, 2], ids=["light", "dark", "print"])
def test_every_colour_can_be_read(place: int) -> None:
    roots = re.findall(r":root \{(.*?)\}", page._STYLE, re.DOTALL)
    colours = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", roots[place]))
    assert len(roots) == 3 and set(colours) >= {"ground", "ink", "faint", "good", "warn", "bad"}
    for name in ("ink", "faint", "good", "warn", "bad"):
        light, dark = sorted((luminance(colours[name]), luminance(colours["ground"])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name
