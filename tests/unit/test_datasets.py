# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Datasets on paper: what their record, manifest and links may be, and what the catalogue shows."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import datasets, publishing
from ansible_collections.lab.server.plugins.module_utils._core.datasets import Dataset
from ansible_collections.lab.server.plugins.module_utils._core.errors import HostError, InvalidInput
from hypothesis import given
from hypothesis import strategies as some

DIGEST = "ab" * 32
IRIS = Dataset(
    name="iris",
    version="1.0",
    description="Flowers",
    source="doi:10.24432/C56C76",
    licence="CC-BY-4.0",
    publisher="carol",
    published=1_700_000_000,
    size=2048,
    files=3,
    manifest=DIGEST,
    links=(("newest", "a/b"),),
)


@pytest.mark.parametrize("version", ["1", "2.1.0", "2026-11-26", "v1_rc+2", "a" * 64])
def test_versions_that_are_accepted(version: str) -> None:
    assert datasets.version(version) == version


@pytest.mark.parametrize(
    "version", ["", "current", ".", "..", ".1", "1/2", "a" * 65, "1 2", "1\n", "-1", "1-", "é", None, 1]
)
def test_versions_that_are_refused(version: object) -> None:
    with pytest.raises(InvalidInput, match="version"):
        datasets.version(version)


@pytest.mark.parametrize("source", ["https://example.org/a?b=c&d#e", "doi:10.1000/182", "s3://bucket/key"])
def test_sources_that_are_accepted(source: str) -> None:
    assert datasets.source(source) == source


@pytest.mark.parametrize(
    "source",
    ["", "https://", "javascript:alert(1)", "file:///etc", "https://a b", "https://a>b", "https://a|b"],
)
def test_sources_that_are_refused(source: str) -> None:
    with pytest.raises(InvalidInput, match="source"):
        datasets.source(source)


@pytest.mark.parametrize(
    "licence",
    [
        "MIT",
        "CC-BY-4.0",
        "GPL-2.0+",
        "LicenseRef-campus",
        "DocumentRef-a:LicenseRef-b",
        "MIT OR (Apache-2.0 AND BSD-3-Clause)",
        "GPL-2.0-only WITH Classpath-exception-2.0",
    ],
)
def test_licences_that_are_accepted(licence: str) -> None:
    assert datasets.licence(licence) == licence


@pytest.mark.parametrize(
    "licence",
    ["", " ", "no licence", "MIT OR", "AND MIT", "(MIT", "MIT)", "()", " MIT", "MIT\nOR X", "a|b", "M" * 201],
)
def test_licences_that_are_refused(licence: str) -> None:
    with pytest.raises(InvalidInput, match="licence"):
        datasets.licence(licence)


def test_a_record_is_read_back() -> None:
    assert datasets.parse(datasets.render(IRIS)) == IRIS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", 2),
        ("name", "../x"),
        ("version", "current"),
        ("description", "a\nb"),
        ("source", "javascript:alert(1)"),
        ("licence", "x y"),
        ("publisher", "Mallory\x1b[2J"),
        ("published", -1),
        ("size", "2"),
        ("files", True),
        ("manifest", "ab"),
        ("links", [["a"]]),
        ("links", {}),
        ("more", 1),
    ],
)
def test_a_record_with_anything_else_in_it_is_damaged(key: str, value: object) -> None:
    record = {**json.loads(datasets.render(IRIS)), key: value}
    with pytest.raises(HostError, match="is damaged"):
        datasets.parse(json.dumps(record).encode())


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"format": 1}', b"9" * 5000])
def test_what_is_no_record_is_damaged(text: bytes) -> None:
    with pytest.raises(HostError, match="is damaged"):
        datasets.parse(text)


NAMES = [
    "a",
    "b c",
    " begins",
    "a\\b",
    "a\nb",
    "a\rb",
    "ends\r",
    "\\",
    "\\n",
    "ü",
    "-c",
    "*x",
    "\udcff.bin",
    "d/e\n\\",
]


def test_a_manifest_is_read_back_and_by_sha256sum(tmp_path: Path) -> None:
    digests = {}
    for name in NAMES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(repr(name))
        digests[name] = publishing.hashed(repr(name).encode())
    text = datasets.manifest(digests)
    assert datasets.read_manifest(text) == digests

    def check() -> int:
        words = ["sha256sum", "--check", "--strict", "--quiet"]
        return subprocess.run(words, input=text, cwd=tmp_path, check=False).returncode

    assert check() == 0
    (tmp_path / "a\nb").write_text("changed")
    assert check() == 1


@given(
    some.dictionaries(
        some.text(some.characters(exclude_characters="\0", codec="utf-8"), min_size=1), some.just(DIGEST)
    )
)
def test_any_manifest_is_read_back(digests: dict[str, str]) -> None:
    assert datasets.read_manifest(datasets.manifest(digests)) == digests


@pytest.mark.parametrize("text", [b"nonsense\n", f"{DIGEST} a\n".encode(), f"{DIGEST}  \n".encode()])
def test_a_manifest_that_is_none_is_damaged(text: bytes) -> None:
    with pytest.raises(HostError, match="is damaged"):
        datasets.read_manifest(text)


THERE = {"a", "d", "d/e", "d/f"}


@pytest.mark.parametrize(
    ("links", "astray"),
    [
        ({"l": "a"}, []),
        ({"l": "./d/../a", "d/up": "..", "d/self": "."}, []),
        ({"l": "m", "m": "d/e"}, []),
        ({"d/l": "../a"}, []),
        ({"l": "/etc/passwd"}, ["l"]),
        ({"l": ""}, ["l"]),
        ({"l": "none"}, ["l"]),
        ({"l": "../a"}, ["l"]),
        ({"d/l": "../../a"}, ["d/l"]),
        ({"l": "l"}, ["l"]),
        ({"l": "m", "m": "l"}, ["l", "m"]),
        # By its text alone the second stays within.
        ({"d/up": "..", "l": "d/up/../a"}, ["l"]),
        ({"out": "/", "l": "out/etc"}, ["l", "out"]),
    ],
)
def test_links_that_lead_out_or_nowhere_are_found(links: dict[str, str], astray: list[str]) -> None:
    assert list(datasets.astray(links, THERE)) == astray


@given(
    some.dictionaries(
        some.sampled_from(["l", "m", "d/l", "d/m"]),
        some.lists(some.sampled_from(["..", ".", "a", "d", "e", "l", "m"]), min_size=1, max_size=5).map(
            "/".join
        ),
        min_size=1,
    )
)
def test_no_link_that_is_kept_leads_out_of_the_tree(links: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as top:
        root = os.path.join(os.path.realpath(top), "one", "two", "tree")
        os.makedirs(f"{root}/d")
        for path in ("a", "d/e", "d/f", "../a", "../../a"):
            Path(root, path).write_text("")
        for path, target in links.items():
            os.symlink(target, f"{root}/{path}")
        bad = set(datasets.astray(links, THERE))
        for path in set(links) - bad:
            real = os.path.realpath(f"{root}/{path}", strict=True)
            assert real == root or real.startswith(f"{root}/")


def test_the_catalogue_shows_each_version_and_takes_no_markup_from_it() -> None:
    two = replace(IRIS, version="2_0", source="https://example.org/a_b?c=1&d", description="<b>*x*|[y](z)")
    page = datasets.catalogue("/srv/data/datasets", [(two, True), (IRIS, False)])
    assert page.count("## iris") == 1 and "\n\\<b\\>\\*x\\*\\|\\[y\\](z)\n" in page
    assert (
        "| 2\\_0 (current) | 2023-11-14 | carol | 3 | 2K | CC-BY-4.0 | <https://example.org/a_b?c=1&d> |"
        in page
    )
    assert "| 1.0 | 2023-11-14 | carol | 3 | 2K | CC-BY-4.0 | doi:10.24432/C56C76 |" in page
    assert "none yet" in datasets.catalogue("/srv/data/datasets", [])
