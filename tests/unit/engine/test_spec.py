"""The spec of a container: canonical, stable, and with every option that keeps users apart."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest
from ansible_collections.lab.server.plugins.module_utils._core import spec as specs
from ansible_collections.lab.server.plugins.module_utils._core.errors import InvalidInput, Refused
from ansible_collections.lab.server.plugins.module_utils._core.leases import Given, Lease
from ansible_collections.lab.server.plugins.module_utils._core.plan import actual_of
from ansible_collections.lab.server.plugins.module_utils._core.policy import Policy, from_inventory
from ansible_collections.lab.server.plugins.module_utils._core.spec import (
    ContainerSpec,
    EngineFacts,
    ImageFacts,
    OwnWishes,
    Wishes,
)
from hypothesis import given
from hypothesis import strategies as st

LIMITS = {"containers": 2, "cpus": 2, "memory": "1g", "pids": 512, "shm": "64m", "gpus": 0}
QUOTA = {"soft": 0, "hard": 0, "inodes_soft": 0, "inodes_hard": 0}
ENGINE = EngineFacts("systemd", 8)
IMAGE = ImageFacts("sha256:1", "/opt/conda/bin:/usr/bin")


@pytest.fixture
def policy() -> Policy:
    made, _keys = from_inventory(
        {
            "lab_environment": {"HF_HOME": "/workspace/.cache", "LANG": "de_DE.UTF-8"},
            "lab_groups": [
                {"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA},
                {"name": "vision", "gid": 3102, "limits": LIMITS, "quota": QUOTA},
            ],
            "lab_users": [{"name": "alice", "uid": 2001, "group": "students", "groups": ["vision"]}],
            "lab_shares": [
                {"name": "datasets", "access": "read-only"},
                {"name": "vision", "access": "group", "group": "vision"},
            ],
        }
    )
    return made


@pytest.fixture
def spec(policy: Policy) -> ContainerSpec:
    return specs.decide(policy, policy.user("alice"), "thesis")


names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,31}", fullmatch=True)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
any_spec = st.builds(
    ContainerSpec,
    project=names,
    user=names,
    uid=st.integers(1, 1 << 31),
    gid=st.integers(1, 1 << 31),
    groups=st.lists(st.integers(1, 1 << 31), max_size=3).map(tuple),
    workspace=texts,
    data_root=texts,
    shares=st.lists(texts, max_size=3).map(tuple),
    cpus=st.floats(0.01, 4096),
    memory=st.integers(0, 1 << 62),
    pids=st.integers(1, 1 << 22),
    shm=st.integers(0, 1 << 62),
    environment=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    home_mode=st.sampled_from(["container", "persistent", "host"]),
    home_source=texts,
    ports=st.lists(st.tuples(st.integers(1, 65535), st.integers(1024, 65535)), max_size=3).map(tuple),
)


def test_variables_are_the_projects_the_users_the_groups_and_the_servers_in_this_order():
    group = {"name": "students", "gid": 3101, "limits": LIMITS, "quota": QUOTA}
    made, _keys = from_inventory(
        {
            "lab_environment": dict.fromkeys("ABCD", "server"),
            "lab_groups": [{**group, "environment": dict.fromkeys("BCD", "group")}],
            "lab_users": [
                {
                    "name": "alice",
                    "uid": 2001,
                    "group": "students",
                    "environment": dict.fromkeys("CD", "user"),
                },
                {"name": "bob", "uid": 2002, "group": "students"},
            ],
        }
    )
    alice = specs.decide(made, made.user("alice"), "thesis", Wishes(environment=(("D", "project"),)))
    assert dict(alice.environment) == {"A": "server", "B": "group", "C": "user", "D": "project"}
    bob = specs.decide(made, made.user("bob"), "thesis")
    assert dict(bob.environment) == {"A": "server", "B": "group", "C": "group", "D": "group"}


@given(any_spec)
def test_round_trip(spec):
    assert specs.parse(spec.canonical()) == spec
    assert specs.parse(spec.canonical()).digest() == spec.digest()


@given(any_spec, any_spec)
def test_digest_tells_specs_apart(one, other):
    assert (one.digest() == other.digest()) == (one.canonical() == other.canonical())


@given(st.text() | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_parse_is_total(text):
    with pytest.raises(InvalidInput):
        specs.parse(text)


def test_parse_wants_the_canonical_form(spec):
    data = json.loads(spec.canonical())
    for wrong in (
        json.dumps(data),
        json.dumps({**data, "format": 2}, sort_keys=True, separators=(",", ":")),
        json.dumps({**data, "more": 1}, sort_keys=True, separators=(",", ":")),
        json.dumps({**data, "groups": 5}, sort_keys=True, separators=(",", ":")),
    ):
        with pytest.raises(InvalidInput):
            specs.parse(wrong)


def test_decide(spec):
    assert spec.name == "thesis._.2001"
    assert spec.workspace == "/home/.workspaces/alice"
    assert spec.groups == (3102,)
    assert spec.shares == ("/srv/data/vision",)
    assert (spec.cpus, spec.memory, spec.pids, spec.shm) == (2.0, 1 << 30, 512, 64 << 20)


@pytest.mark.parametrize(
    ("wishes", "named"),
    [
        (Wishes(memory=2 << 30), "memory: 2G is more than the limit of 1G for alice"),
        (Wishes(cpus=3), "cpus: 3 is more"),
        (Wishes(pids=513), "pids"),
        (Wishes(shm=65 << 20), "shm"),
    ],
)
def test_limits(policy, wishes, named):
    with pytest.raises(Refused, match=named):
        specs.decide(policy, policy.user("alice"), "thesis", wishes)


@pytest.mark.parametrize("wishes", [Wishes(memory=1), Wishes(cpus=0.0), Wishes(pids=0)])
def test_too_little(policy, wishes):
    with pytest.raises(InvalidInput):
        specs.decide(policy, policy.user("alice"), "thesis", wishes)


def test_create_config(spec):
    config = specs.create_config(spec, IMAGE, ENGINE)
    host = config["HostConfig"]
    assert config["User"] == "2001:2001"
    assert config["WorkingDir"] == "/workspace"
    assert config["Entrypoint"] == ["sleep", "infinity"]
    assert config["Healthcheck"] == {"Test": ["NONE"]}
    assert host["GroupAdd"] == ["3102"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["CgroupParent"] == "lab-2001.slice"
    assert host["MemorySwap"] == host["Memory"]
    assert host["NanoCpus"] == 2_000_000_000
    assert host["Tmpfs"].keys() == {"/run"}
    assert "Binds" not in host
    assert [(m["Target"], m["ReadOnly"]) for m in host["Mounts"]] == [
        ("/workspace", False),
        ("/srv/data", True),
        ("/srv/data/vision", False),
    ]
    assert {m["BindOptions"]["Propagation"] for m in host["Mounts"]} == {"rprivate"}
    environment = dict(entry.split("=", 1) for entry in config["Env"])
    assert environment["PATH"] == "/home/alice/.local/bin:/opt/conda/bin:/usr/bin"
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert environment["LD_PRELOAD"] == ""
    assert environment["HF_HOME"] == "/workspace/.cache"
    assert environment["LANG"] == "de_DE.UTF-8"


def test_what_was_always_so_is_not_in_the_canonical_form(spec):
    """Containers that were made before there was a choice do not differ."""
    assert not {"home_mode", "home_source", "ports"} & set(json.loads(spec.canonical()))


def test_ports_are_on_loopback_alone(policy):
    spec = specs.decide(policy, policy.user("alice"), "thesis", Wishes(ports=((8888, 18888), (22, 10022))))
    config = specs.create_config(spec, IMAGE, ENGINE)
    assert config["ExposedPorts"] == {"22/tcp": {}, "8888/tcp": {}}
    assert config["HostConfig"]["PortBindings"] == {
        "22/tcp": [{"HostIp": "127.0.0.1", "HostPort": "10022"}],
        "8888/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18888"}],
    }
    assert not config["HostConfig"]["PublishAllPorts"]


@pytest.mark.parametrize(
    "ports", [((0, 2000),), ((80, 1023),), ((80, 65536),), ((80, 2000), (81, 2000)), ((80, 2000), (80, 2001))]
)
def test_wrong_ports(policy, ports):
    with pytest.raises(InvalidInput, match="port"):
        specs.decide(policy, policy.user("alice"), "thesis", Wishes(ports=ports))


def test_kept_folders_are_mounted_and_are_drift_only_where_there_are_some(policy):
    alice = policy.user("alice")
    plain = specs.decide(policy, alice, "thesis")
    assert "kept" not in json.loads(plain.canonical())
    spec = specs.decide(policy, alice, "thesis", Wishes(keep=("/opt/packages", "/data")))
    assert [(one["Source"], one["Target"], one["ReadOnly"]) for one in specs.mounts(spec)[-2:]] == [
        ("/home/.homes/alice/thesis@data", "/data", False),
        ("/home/.homes/alice/thesis@opt+packages", "/opt/packages", False),
    ]
    assert specs.parse(spec.canonical()) == spec != plain
    image = specs.ImageFacts("sha256:1", "", ("/opt",))
    with pytest.raises(Refused, match="VOLUME /opt, which would hide /opt/packages"):
        specs.check_volumes(spec, image)


@pytest.mark.parametrize(
    "paths",
    [
        *((path,) for path in ("opt", "/", "/etc/x", "/home/alice/x", "/workspace", "/opt", "/tmp/x")),
        *((path,) for path in ("/opt/../etc", "/opt//x", "/opt/.x", "/opt/x+y", "/srv/data/mine", "/a\n")),
        ("/data/one", "/data/one/two"),
    ],
)
def test_what_cannot_be_kept_is_refused(policy, paths):
    with pytest.raises(InvalidInput, match="keep of thesis"):
        specs.decide(policy, policy.user("alice"), "thesis", Wishes(keep=paths))


def test_a_kept_home_is_mounted_and_the_hosts_keys_are_hidden(policy):
    alice = policy.user("alice")
    persistent = specs.decide(policy, alice, "thesis", Wishes(home="persistent"))
    assert specs.mounts(persistent)[-1]["Source"] == "/home/.homes/alice/thesis"
    assert specs.mounts(persistent)[-1]["Target"] == "/home/alice"
    home, hidden = specs.mounts(specs.decide(policy, alice, "thesis", Wishes(home="host")))[-2:]
    assert (home["Source"], home["Target"], home["ReadOnly"]) == ("/home/alice", "/home/alice", False)
    assert (hidden["Type"], hidden["Target"], hidden["ReadOnly"]) == ("tmpfs", "/home/alice/.ssh", True)
    assert "Source" not in hidden
    with pytest.raises(InvalidInput, match="home"):
        specs.decide(policy, alice, "thesis", Wishes(home="/etc"))


def test_the_programs_are_found_beside_the_hosts_home_alone(policy, alice):
    def path(home):
        spec = specs.decide(policy, alice, "thesis", Wishes(home=home))
        values = dict(entry.split("=", 1) for entry in specs.environment(spec, IMAGE))
        return spec, values["PATH"].split(":")

    spec, found = path("host")
    assert found == ["/home/alice/.local/bin", specs.PROGRAMS, "/opt/conda/bin", "/usr/bin"]
    with pytest.raises(Refused, match="VOLUME"):
        specs.check_volumes(spec, ImageFacts("x", volumes=("/home/.lab-server",)))
    for home in ("container", "persistent"):
        assert path(home)[1] == ["/home/alice/.local/bin", "/opt/conda/bin", "/usr/bin"]
        specs.check_volumes(path(home)[0], ImageFacts("x", volumes=("/home/.lab-server",)))


def test_the_port_of_jupyter_is_the_users_own_wish(policy, alice):
    own = OwnWishes(port=20001)
    spec = specs.decide(policy, alice, "thesis", own=own)
    assert spec.ports == ((8888, 20001),) and OwnWishes.of(spec) == own
    labels = specs.labels(spec)
    assert specs.parse_wishes(labels[specs.LABEL_WISHES])["wished_port"] == 20001
    # Where IT gave that port itself, its own holds.
    declared = specs.decide(policy, alice, "thesis", Wishes(ports=((8888, 9000),)), own)
    assert declared.ports == ((8888, 9000),) and declared.wished_port is None
    # A container that was made before there was this wish is not another one now.
    assert specs.parse_wishes('{"cpus": null, "memory": 5}') == {
        "wished_cpus": None,
        "wished_memory": 5,
        "wished_port": None,
    }
    assert specs.parse_wishes('{"port": true}') == specs.parse_wishes('{"port": "1"}') == {}


def test_what_is_kept_is_told_from_the_mounts(policy):
    spec = specs.decide(policy, policy.user("alice"), "net", Wishes(home="persistent"))
    wanted = specs.mounts(spec)
    made = [
        *({"Type": one["Type"], "Destination": one["Target"], "RW": not one["ReadOnly"]} for one in wanted),
        {"Type": "volume", "Destination": "/data", "RW": True},
        {"Type": "tmpfs", "Destination": "/scratch", "RW": True},
    ]
    promised = specs.fates(wanted)
    assert promised["kept"][0] == "/workspace" and spec.home in promised["kept"]
    assert promised["read_only"] == [spec.data_root] and promised["lost"] == []
    assert specs.fates(made) == {**promised, "lost": ["/data"]}


def test_what_is_no_longer_given_is_named(spec):
    from dataclasses import replace

    assert specs.no_longer_given(spec, spec) == []
    assert specs.no_longer_given(replace(spec, shares=()), spec) == []
    assert specs.no_longer_given(spec, replace(spec, shares=(), groups=())) == ["/srv/data/vision"]
    assert specs.no_longer_given(spec, replace(spec, groups=()))
    assert specs.no_longer_given(None, spec)


def test_the_spec_does_not_depend_on_the_host(spec):
    small = specs.create_config(spec, IMAGE, EngineFacts("cgroupfs", 1))
    assert small["HostConfig"]["NanoCpus"] == 1_000_000_000
    assert small["HostConfig"]["CgroupParent"] == "/lab/2001"
    assert small["Labels"] == specs.create_config(spec, IMAGE, ENGINE)["Labels"]


@pytest.mark.parametrize(
    "volume",
    [
        "/",
        "/workspace",
        "/workspace/",
        "//workspace",
        "/x/../workspace",
        "workspace",
        "/srv",
        "/srv/data/vision/x",
        "/home",
        "/home/alice",
        "/home/alice/.cache",
        "/home/.workspaces",
    ],
)
def test_volumes_that_hide(spec, volume):
    with pytest.raises(Refused, match="VOLUME"):
        specs.check_volumes(spec, ImageFacts("x", volumes=(volume,)))


@pytest.mark.parametrize("volume", ["/var/lib/x", "/home/jovyan", "/workspaces", "/srv/database", "/homes"])
def test_volumes_that_do_not(spec, volume):
    specs.check_volumes(spec, ImageFacts("x", volumes=(volume,)))


def test_account_files(spec):
    passwd, group = specs.account_files(
        spec,
        "root:x:0:0::/root:/bin/sh\nalice:x:7:7::/:/bin/sh\nother:x:2001:5::/:/bin/sh\n+::::\n",
        "root:x:0:\nvision:x:9:\nother:x:3102:\n",
        [("vision", 3102)],
        "/bin/bash",
    )
    assert passwd.splitlines() == [
        "root:x:0:0::/root:/bin/sh",
        "+::::",
        "alice:x:2001:2001::/home/alice:/bin/bash",
    ]
    assert group.splitlines() == ["root:x:0:", "alice:x:2001:", "vision:x:3102:alice"]


def test_image_facts():
    inspected = {"Id": "sha256:9", "Config": {"Env": ["A=1", "PATH=/x"], "Volumes": {"/b": {}, "/a": {}}}}
    assert specs.image_facts(inspected) == ImageFacts("sha256:9", "/x", ("/a", "/b"))
    assert specs.image_facts({"Id": "sha256:9", "Config": None}) == ImageFacts("sha256:9")


# What a user asks for


@pytest.fixture
def alice(policy):
    return policy.user("alice")


def asked_by(policy, user, own):
    """Return what is read back of a user's wishes from the labels of a container."""
    spec = specs.decide(policy, user, "thesis", Wishes(), own)
    listed = {"Id": "i", "Names": [f"/{spec.name}"], "Labels": specs.labels(spec)}
    return OwnWishes.of(actual_of(listed).spec)


def test_what_was_asked_for_is_read_back_and_is_no_part_of_the_spec(policy, alice):
    own = OwnWishes(0.5, 32 << 20)
    asked = specs.decide(policy, alice, "thesis", Wishes(), own)
    declared = specs.decide(policy, alice, "thesis", Wishes(0.5, 32 << 20))
    assert (asked.cpus, asked.memory) == (0.5, 32 << 20)
    assert asked.digest() == declared.digest()
    assert asked_by(policy, alice, own) == own
    # Nothing is a label too, so that an image cannot have one in its place.
    assert specs.LABEL_WISHES in specs.labels(declared)
    assert asked_by(policy, alice, OwnWishes()) == OwnWishes.of(None) == OwnWishes()


def test_what_it_declared_wins_over_what_was_asked_for(policy, alice):
    spec = specs.decide(policy, alice, "thesis", Wishes(memory=16 << 20), OwnWishes(0.5, 32 << 20))
    assert (spec.cpus, spec.memory, spec.wished_cpus, spec.wished_memory) == (0.5, 16 << 20, 0.5, None)


def test_too_much_is_refused_when_it_is_asked_for_and_never_later(policy, alice):
    for own in (OwnWishes(memory=alice.limits.memory + 1), OwnWishes(cpus=alice.limits.cpus + 1)):
        with pytest.raises(Refused, match="more than the limit"):
            specs.check_own(alice, "thesis", Wishes(), own)
        decided = specs.decide(policy, alice, "thesis", Wishes(), own)
        assert decided.digest() == specs.decide(policy, alice, "thesis").digest()
        # Should the limit be raised again, the wish is still there.
        assert asked_by(policy, alice, own) == own
    with pytest.raises(Refused, match="IT declared"):
        specs.check_own(alice, "thesis", Wishes(memory=16 << 20), OwnWishes(memory=32 << 20))
    specs.check_own(alice, "thesis", Wishes(memory=16 << 20), OwnWishes(cpus=0.5, memory=16 << 20))


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "x", '{"cpus": "9"}', '{"memory": true}', '{"memory": 1.5}', '{"cpus": 1}', "{}"],
)
def test_a_label_that_is_none_of_ours_wishes_nothing(text):
    assert not any(value is not None for value in specs.parse_wishes(text).values())


# GPUs

UUIDS = ("GPU-00000000-0000-4000-8000-000000000000", "GPU-00000001-0000-4000-8000-000000000000")
LEASE = Lease("thesis._.2001", 2001, tuple(Given(one, one) for one in UUIDS), cost=Fraction(2))


def test_a_container_without_gpus_keeps_the_digest_it_had():
    """It was computed by the version before there were GPUs: no running container is replaced for them."""
    spec = ContainerSpec(
        project="thesis",
        user="alice",
        uid=2001,
        gid=2001,
        groups=(3102,),
        workspace="/home/.workspaces/alice",
        data_root="/srv/data",
        shares=("/srv/data/vision",),
        cpus=2.0,
        memory=1 << 30,
        pids=512,
        shm=64 << 20,
        environment=(("LANG", "de_DE.UTF-8"),),
    )
    assert spec.digest() == "ddf2c701a67cb05c6860e52d10ae70c63182abc99f020267ccca02b28e97442c"
    assert "gpus" not in spec.canonical()
    assert replace(spec, gpus="1").digest() != spec.digest()


def test_an_engine_without_cdi_is_asked_by_the_driver_nvidia(spec):
    """Docker before 25: the toolkit's hook gives what the variable says, so both say the same."""
    made = specs.create_config(spec, IMAGE, ENGINE, LEASE)
    assert made["HostConfig"]["DeviceRequests"] == [
        {
            "Driver": "nvidia",
            "Count": 0,
            "DeviceIDs": list(UUIDS),
            "Capabilities": [["gpu", "compute", "utility"]],
        }
    ]
    assert f"NVIDIA_VISIBLE_DEVICES={','.join(UUIDS)}" in made["Env"]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in made["Env"]
    assert made["Labels"][specs.LABEL_GPUS] == LEASE.render()
    assert specs.given_gpus(made) == sorted(UUIDS)


def test_an_engine_with_cdi_is_asked_by_it_and_the_hook_by_nothing(spec):
    made = specs.create_config(spec, IMAGE, replace(ENGINE, cdi=True), LEASE)
    names = [f"nvidia.com/gpu={one}" for one in UUIDS]
    assert made["HostConfig"]["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": names}]
    assert "NVIDIA_VISIBLE_DEVICES=void" in made["Env"]
    assert specs.given_gpus(made) == sorted(UUIDS)


@pytest.mark.parametrize("cdi", [True, False])
def test_the_group_of_the_device_files_goes_with_a_lease_alone(spec, cdi):
    engine = replace(ENGINE, cdi=cdi)
    assert specs.create_config(spec, IMAGE, engine, LEASE, [4195])["HostConfig"]["GroupAdd"] == [
        "3102",
        "4195",
    ]
    assert specs.create_config(spec, IMAGE, engine, None, [4195])["HostConfig"]["GroupAdd"] == ["3102"]


@pytest.mark.parametrize("cdi", [True, False])
def test_who_has_no_lease_asks_for_nothing(spec, cdi):
    made = specs.create_config(spec, IMAGE, replace(ENGINE, cdi=cdi))
    assert "DeviceRequests" not in made["HostConfig"] and specs.given_gpus(made) == []
    assert "NVIDIA_VISIBLE_DEVICES=void" in made["Env"] and made["Labels"][specs.LABEL_GPUS] == ""
