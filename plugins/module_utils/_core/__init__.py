# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The library of lab.server: the same decisions for IT's modules and for the lab users' commands.

Standard library only at import time, relative imports only, no Ansible: this very tree is copied to the
servers, where the commands, the broker and the boot unit run from it.
"""

from __future__ import annotations

VERSION = "0.1.0"
POLICY_PATH = "/etc/lab-server/policy.json"
PUBLIC_POLICY_PATH = "/etc/lab-server/public.json"
STATE_DIRECTORY = "/var/lib/lab-server"
RUN_DIRECTORY = "/run/lab-server"
#: Where the workspace is in every container.
WORKSPACE = "/workspace"
