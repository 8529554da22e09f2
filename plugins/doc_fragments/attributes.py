# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every module of this collection promises, in the words of its documentation."""

from __future__ import annotations


class ModuleDocFragment:
    """Attributes of the modules. Of two fragments with the same key, the one that is named first wins."""

    # The promises are kept: tests/integration/test_check_mode.py runs every module.
    DOCUMENTATION = r"""
attributes:
  action_group:
    description: Groups by which C(module_defaults) can set options of this module.
    support: full
    membership: [lab.server.all]
  check_mode:
    description: Tells in check mode what it would do, by the code that does it, and changes nothing.
    support: full
  diff_mode:
    description: Tells in diff mode what differs, before and after.
    support: full
  idempotent:
    description: A second run with the same arguments changes nothing, unless somebody else did meanwhile.
    support: full
  platform:
    description: The systems on which it runs.
    support: full
    platforms: posix
"""

    # Before the standard part: for modules that talk to Docker Engine.
    DOCKER = r"""
attributes:
  action_group:
    membership: [lab.server.all, lab.server.docker]
"""

    # Before the standard part: for modules that only read.
    INFO = r"""
attributes:
  check_mode:
    details: It only reads, in check mode or not.
  diff_mode:
    support: N/A
    details: It only reads, so nothing differs.
  idempotent:
    details: It only reads.
"""
