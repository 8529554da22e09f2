# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A small server to serve: its policy, with this process' own account as one of its users."""

from __future__ import annotations

import pytest
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, from_inventory

LIMITS = {"containers": 2, "cpus": 2, "memory": "1g", "pids": 512, "shm": "64m", "gpus": 0}
QUOTA = {"soft": "200m", "hard": "250m", "inodes_soft": 20000, "inodes_hard": 25000}


@pytest.fixture
def lab() -> Policy:
    """Return the policy of a server with two users, a base image and a declared project."""
    checked, _keys = from_inventory(
        {
            "lab_gid": 3000,
            "lab_groups": [{"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}],
            "lab_users": [
                {"name": "alice", "uid": 2001, "group": "students"},
                {"name": "bob", "uid": 2002, "group": "students"},
            ],
            "lab_base_images": [{"name": "lab/python", "archive": "python.tar"}],
            "lab_projects": [{"user": "alice", "name": "thesis", "files": {"a.txt": "secret-of-alice\n"}}],
        }
    )
    return checked
