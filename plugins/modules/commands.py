#!/usr/bin/python
# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bring the library, the lab users' commands and the policy that they obey to a server."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: commands
short_description: Bring the lab users' commands and the policy that they obey to a server
version_added: 0.1.0
author: lab.server contributors (@lab-server)
description:
  - Writes the library of this collection to C(/usr/local/lib/lab-server), each version into a directory of
    its own, and switches the link C(current) last, so that a command that starts meanwhile sees one whole
    version. The version before it is kept, older ones are removed.
  - Writes the commands C(project), C(container), C(image), C(workspace) and, for admins, C(lab), with their
    hyphenated names to C(/usr/local/bin), the broker and the programs of the boot unit and of the clean-up to
    C(/usr/local/sbin), and removes programs of this collection that it no longer has.
  - Writes the greeting of lab users and admins, C(/usr/local/bin/lab-greeting), and
    C(/etc/profile.d/lab-server.sh), by which login shells show it. Those of zsh read C(/etc/zsh/zlogin)
    instead, where Debian's package of zsh put it; there lines of ours are kept, which turn completion on as
    well. Without zsh nothing is written.
  - Writes the completion of the commands for bash to C(/usr/local/share/bash-completion/completions) and for
    zsh to C(/usr/local/share/zsh/site-functions), and their pages of the manual to
    C(/usr/local/share/man/man1). What of these this version no longer has is removed.
  - Writes the policy to C(/etc/lab-server/policy.json), which root alone can read. The texts of declared
    files are left out of it.
  - Writes what users may read of it to C(/etc/lab-server/public.json), without environment variables.
options:
  policy:
    description:
      - The policy of the server, as the key C(policy) of what the filter P(lab.server.policy#filter) returns.
    type: dict
    required: true
extends_documentation_fragment:
  - lab.server.attributes
seealso:
  - plugin: lab.server.policy
    plugin_type: filter
"""

EXAMPLES = r"""
- name: The lab users' commands obey the inventory
  lab.server.commands:
    policy: "{{ lab_policy.policy }}"
"""

RETURN = r"""
results:
  description: What was done to each item, or in check mode what would be done.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description:
        - What the item is about, C(library), C(programs), C(manual), C(completion), C(profile),
          C(zsh), C(policy.json) or C(public.json).
      type: str
      returned: always
    changed:
      description: Whether the item differed.
      type: bool
      returned: always
    actions:
      description: What was done, in words.
      type: list
      elements: str
      returned: always
    reason:
      description: Why it was done; empty if nothing was.
      type: str
      returned: always
    diff:
      description: The keys C(before) and C(after) with what differed.
      type: dict
      returned: always
    failed:
      description: Whether the item failed. The others are carried out all the same.
      type: bool
      returned: when the item failed
    msg:
      description: Why the item failed.
      type: str
      returned: when the item failed
  sample:
    - name: library
      changed: false
      actions: []
      reason: ""
      diff: {}
"""

from ansible_collections.lab.server.plugins.module_utils import _ansible
from ansible_collections.lab.server.plugins.module_utils._core import install, policy


def _carried() -> None:
    """Name every file of the library, and never run: Ansible carries along what a module could import."""
    from ansible_collections.lab.server.plugins.module_utils._core import (  # noqa: F401  # see above
        accounts,
        adminnotes,
        apart,
        archive,
        asuser,
        audit,
        backup,
        backuprules,
        baseimages,
        boot,
        broker,
        brought,
        buildkit,
        buildlog,
        calls,
        capacity,
        checks_docker,
        checks_gpus,
        checks_host,
        cleaning,
        cleanup,
        cli,
        cli_backup,
        cli_container,
        cli_dataset,
        cli_doctor,
        cli_gpu,
        cli_image,
        cli_inside,
        cli_keeping,
        cli_keeping_work,
        cli_lab,
        cli_lab_gpus,
        cli_lab_reserve,
        cli_project,
        cli_share,
        cli_status,
        cli_storage,
        cli_storage_work,
        cli_why,
        cli_workspace,
        collecting,
        completion,
        consent,
        containers,
        context,
        daemon,
        damaged,
        datamove,
        datasets,
        departing,
        directory,
        diskrules,
        dockerapi,
        dockerignore,
        doctor,
        drill,
        ending,
        engine,
        errors,
        events,
        fingerprint,
        formeruids,
        freeze,
        gpudevices,
        gpufiles,
        gpuhandover,
        gpuidle,
        gpuleases,
        gpuqueue,
        gpurequests,
        gpureservations,
        gpureserve,
        gpus,
        gpuview,
        greeting,
        homes,
        hostfiles,
        image_install,
        images,
        imagesizes,
        imagestate,
        inspection,
        install,
        interface,
        items,
        jobs,
        journal,
        jupyter,
        keeping,
        keptfolders,
        leases,
        lifecycle,
        liferules,
        loaded,
        locks,
        manual,
        metrics,
        mounts,
        moving,
        names,
        notices,
        objectkeys,
        objectrules,
        offboarding,
        overview,
        packagecache,
        packages,
        page,
        plan,
        policy,
        policy_gpus,
        privatetmp,
        processes,
        protocol,
        publishing,
        quota,
        quotable,
        quotaset,
        rclone,
        replacing,
        report,
        restic,
        resuming,
        retired,
        room,
        rules,
        safefs,
        sametree,
        scaffold,
        scratch,
        sessions,
        sharehandover,
        shares,
        sharesize,
        sizes,
        slices,
        spec,
        state,
        stats,
        steps,
        storage,
        symptoms,
        taken,
        terminal,
        transfer,
        tree,
        units,
        userfiles,
        verbs,
        verbs_container,
        verbs_gpu,
        verbs_image,
        verify,
        versions,
        watermarks,
        where,
        where_inside,
        workspaces,
    )


def main() -> None:
    module = _ansible.build_module({"policy": {"type": "dict", "required": True}})
    _ansible.run_items(
        module,
        lambda: install.reconcile(policy.parse(module.params["policy"]), check=module.check_mode),
        alone=True,
    )


if __name__ == "__main__":
    main()
