# Copyright: (c) 2026, lab.server contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the inventory says of object storage (S3): the variable ``lab_object_storage``.

It holds no secrets: each user's keys are a file of root's that this user alone can read (``objectkeys``).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from . import names
from .errors import InvalidInput

if TYPE_CHECKING:
    from .policy import User, _Table

#: Those of rclone(1), "Amazon S3 Storage Providers", that need nothing but an address and a key.
PROVIDERS = (
    *("Other", "AWS", "Ceph", "Cloudflare", "Dreamhost", "IONOS", "Minio", "Scaleway", "SeaweedFS"),
    "Wasabi",
)
# Compiled when they are used: all commands load this, and few servers have object storage.
# The name of a bucket (S3 user guide, "General purpose bucket naming rules").
_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_PATTERN = r"(?:[a-z0-9.-]|\{user\}|\{group\})+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_URL = rf"(https?)://{_LABEL}(?:\.{_LABEL})*(?::[1-9][0-9]{{0,4}})?"
_REGION = r"[a-z0-9-]{0,63}"


@dataclass(frozen=True)
class Endpoint:
    """An S3 server. ``buckets`` are patterns with {user} and {group}; without any, the key alone decides.

    ``path_style``: the bucket is part of the path of a URL, not of its host name.
    """

    name: str
    url: str
    region: str = ""
    provider: str = "Other"
    path_style: bool = True
    insecure: bool = False
    buckets: tuple[str, ...] = ()

    def buckets_of(self, user: User) -> tuple[str, ...]:
        """Return the names of the buckets that the patterns give a user, in their order, each once."""
        found: dict[str, None] = {}
        for pattern in self.buckets:
            for group in (user.group, *user.groups) if "{group}" in pattern else ("",):
                found[pattern.replace("{user}", user.name).replace("{group}", group)] = None
        return tuple(found)


def bucket_name(value: str, where: str) -> str:
    """Return ``value`` if it may name a bucket, else raise InvalidInput."""
    if not re.fullmatch(_BUCKET, value):
        raise InvalidInput(
            f"{where}: '{names.printable(value)[:80]}' is no name of a bucket.",
            "A bucket has 3 to 63 of a-z, 0-9, '-' and '.'.",
        )
    return value


def read(root: _Table, prefix: str) -> tuple[Endpoint, ...]:
    """Return what the tables say; raise InvalidInput."""
    endpoints: dict[str, Endpoint] = {}
    for table in root.tables(prefix + "object_storage"):
        endpoint = _endpoint(table)
        if endpoint.name in endpoints:
            raise InvalidInput(
                f"{table.at('name')}: {endpoint.name} is there twice.", "Give it another name."
            )
        endpoints[endpoint.name] = endpoint
    return tuple(endpoints.values())


def _endpoint(table: _Table) -> Endpoint:
    endpoint = Endpoint(
        name=names.share_name(table.required("name"), table.at("name")),
        url=str(table.required("url")),
        region=table.text("region"),
        provider=table.choice("provider", PROVIDERS, "Other"),
        path_style=table.boolean("path_style", True),
        insecure=table.boolean("insecure"),
        buckets=table.texts("buckets"),
    )
    table.done()
    found = re.fullmatch(_URL, endpoint.url)
    if not found:
        # What it holds is not shown: it may be a password.
        raise InvalidInput(
            f"{table.at('url')} is no plain URL of a server.",
            "Write it as https://s3.example.org, or with a port; keys belong into "
            "object_storage_credentials.",
        )
    if found.group(1) == "http" and not endpoint.insecure:
        raise InvalidInput(
            f"{table.at('url')}: by http everybody on the way reads what is sent.",
            "Use https, or set insecure: true.",
        )
    if not re.fullmatch(_REGION, endpoint.region):
        raise InvalidInput(
            f"{table.at('region')}: '{names.printable(endpoint.region)[:40]}' is no region.",
            "Use a-z, 0-9 and '-', such as eu-central-1.",
        )
    for number, pattern in enumerate(endpoint.buckets):
        where = f"{table.at('buckets')}[{number}]"
        if not re.fullmatch(_PATTERN, pattern):
            raise InvalidInput(
                f"{where}: '{names.printable(pattern)[:80]}' is no pattern of a bucket.",
                "Use a-z, 0-9, '-', '.', {user} and {group}, such as lab-{user}.",
            )
        # The shortest names that users and groups have must do, too.
        bucket_name(pattern.replace("{user}", "a").replace("{group}", "a"), where)
    return endpoint


def dump(endpoints: tuple[Endpoint, ...]) -> list[dict[str, Any]]:
    """Return the endpoints as plain data; ``read`` of it gives equal ones."""
    return [{**asdict(one), "buckets": list(one.buckets)} for one in endpoints]
