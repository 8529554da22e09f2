# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which of root's records are damaged, of those that nothing else makes good.

What needs them fails closed and says how to repair them. Others are begun anew, which the audit log tells.
"""

from __future__ import annotations

from . import ending, formeruids, gpuleases, keptfolders
from .errors import HostError


def problems() -> list[str]:
    """Return a sentence for each record that is damaged or cannot be read, with what to do."""
    found = []
    for read in (gpuleases.read_reserved, ending.recorded, formeruids.read, keptfolders.given_out):
        try:
            read()
        except HostError as error:
            found.append(str(error))
    return found
