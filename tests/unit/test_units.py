# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import units
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput

TEXTS = {"a.service": "[Unit]\n", "docker.service.d/x.conf": "[Unit]\nAfter=a.service\n"}


@pytest.fixture
def reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(units, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(units, "reload", lambda: calls.append("reload"))
    return calls


def test_units_are_written_once_with_one_reload(reloads: list[str], tmp_path: Path) -> None:
    told = units.reconcile(TEXTS, check=True)
    assert list(tmp_path.iterdir()) == []
    done = units.reconcile(TEXTS, check=False)
    assert [item.as_dict() for item in told] == [item.as_dict() for item in done]
    assert (tmp_path / "docker.service.d" / "x.conf").read_text() == TEXTS["docker.service.d/x.conf"]
    assert reloads == ["reload"]
    assert not any(item.changed for item in units.reconcile(TEXTS, check=False))
    assert reloads == ["reload"]


@pytest.mark.parametrize(
    "name", ["", "x", "../x.service", "/etc/x.service", "x.service.d/../y.conf", "x y.service"]
)
def test_a_name_that_leaves_the_directory_is_refused(reloads: list[str], name: str) -> None:
    with pytest.raises(InvalidInput, match="no name of a unit file"):
        units.reconcile({name: ""}, check=False)
