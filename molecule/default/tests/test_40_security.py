"""Each hole of the threat model, tried (C1, C2, C5; docs/security.md)."""

from __future__ import annotations

import shlex

import pytest
from conftest import ALICE, BOB, CAROL, Outcome, Server

EVIL = r"""FROM lab/python
RUN cp /bin/bash /usr/local/bin/rootbash && chmod 4755 /usr/local/bin/rootbash
USER root
ENV NVIDIA_VISIBLE_DEVICES=all LD_PRELOAD=/workspace/evil/evil.so
LABEL lab.server.owner=2003 lab.server.project=vision lab.server.digest=x
VOLUME /volume
HEALTHCHECK CMD touch /workspace/evil/health
ENTRYPOINT ["/bin/sh", "-c", "touch /workspace/evil/entrypoint; sleep 1d"]
"""


@pytest.fixture(scope="module")
def evil(server: Server) -> Server:
    """Bob's image tries all that an image can say."""
    server.user("bob", "rm -rf ~/workspace/evil && project init evil")
    server.user("bob", f"cat > ~/workspace/evil/Dockerfile <<'END'\n{EVIL}END")
    server.user("bob", "project launch evil --detach")
    yield server
    server.user("bob", "container retire evil --yes")


def test_temporary_files_on_the_server_are_ones_own_and_within_the_quota(server: Server) -> None:
    def session(name: str, command: str, *, check: bool = True) -> Outcome:
        return server.root(f"sudo -niu {name} sh -c {shlex.quote(command)}", check=check)

    session("alice", "echo secret > /tmp/mine; echo secret > /var/tmp/mine")
    try:
        assert session("alice", "cat /tmp/mine /var/tmp/mine").out.split() == ["secret", "secret"]
        gone = "ls /tmp/mine /var/tmp/mine 2>/dev/null | wc -l"
        assert session("bob", gone).out == "0" and server.root(gone).out == "0"
        assert "denied" in session("bob", "ls /home/.tmp/ 2>&1", check=False).out
        limit = int(server.root("repquota -u -n -p /home | awk '$1 == \"#2001\" {print $5}'").out)
        filled = session("alice", f"head -c {limit}K /dev/zero > /var/tmp/full", check=False)
        assert filled.rc != 0 and "quota exceeded" in (filled.out + filled.err).lower()
        told = session("alice", "workspace usage --json; workspace where /tmp/mine", check=False).out
        assert '"/var/tmp"' in told and "removed when unused for 10 days" in told
    finally:
        session("alice", "rm -f /tmp/mine /var/tmp/mine /var/tmp/full")
    # As after ten days: the rule for the one, with another age, and none for the other.
    session("alice", "echo old | tee /tmp/old /var/tmp/old")
    rules = "/etc/tmpfiles.d/lab-server-tmp.conf"
    server.root(f"sleep 2; sed -n 's/ 10d$/ 1s/p' {rules} | tee /run/soon.conf | grep -q tmp-")
    server.root("systemd-tmpfiles --clean /run/soon.conf; rm /run/soon.conf")
    assert session(
        "alice", "ls -d /tmp /tmp/old /var/tmp/old 2>/dev/null; rm -f /var/tmp/old"
    ).out.split() == [
        "/tmp",
        "/var/tmp/old",
    ]


def test_the_user_inside_is_the_user_outside(server: Server) -> None:
    assert server.inside("my-thesis", ALICE, "id -u; id -g; id -un").out.split() == ["2001", "2001", "alice"]
    server.inside("my-thesis", ALICE, "touch /workspace/my-thesis/owned")
    assert server.root("stat -c '%u:%g' /home/.workspaces/alice/my-thesis/owned").out == "2001:2001"


def test_nothing_in_a_container_is_or_becomes_root(evil: Server) -> None:
    status = evil.inside("evil", BOB, "cat /proc/self/status").out
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["2002"] * 4
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert evil.inside("evil", BOB, "rootbash -p -c 'id -u'").out == "2002"
    processes = evil.root("docker top evil._.2002 -eo pid,uid").out.splitlines()[1:]
    assert {line.split()[1] for line in processes} == {"2002"}


def test_what_an_image_says_of_itself_counts_for_nothing(evil: Server) -> None:
    found = evil.inspect("evil", BOB)
    labels, environment = (
        found["Config"]["Labels"],
        dict(item.split("=", 1) for item in found["Config"]["Env"]),
    )
    assert (labels["lab.server.owner"], labels["lab.server.project"]) == ("2002", "evil")
    assert environment["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert environment["LD_PRELOAD"] == ""
    assert evil.user("bob", "ls ~/workspace/evil/entrypoint ~/workspace/evil/health", check=False).rc != 0
    assert "evil" not in evil.user("carol", "container list").out


@pytest.mark.thorough
def test_every_create_option_is_ours(evil: Server) -> None:
    host = evil.inspect("evil", BOB)["HostConfig"]
    assert host["Privileged"] is False
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
    assert "no-new-privileges" in " ".join(host["SecurityOpt"])
    assert host["CgroupParent"] == "lab-2002.slice"
    assert host["CgroupnsMode"] == "private" and host["IpcMode"] == "private" and not host["PidMode"]
    assert host["Memory"] == host["MemorySwap"] > 0
    assert host["PidsLimit"] > 0 and host["NanoCpus"] > 0
    assert host["RestartPolicy"]["Name"] in ("no", "")
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]}["core"] == 0
    assert host["LogConfig"]["Config"]["max-size"]
    assert not host["Binds"]
    assert all(mount["Source"] != "/var/run/docker.sock" for mount in evil.inspect("evil", BOB)["Mounts"])


def test_the_containers_of_a_user_are_in_the_slice(evil: Server) -> None:
    assert (
        "/lab.slice/lab-2002.slice/"
        in evil.root("cat /proc/$(docker inspect -f '{{.State.Pid}}' evil._.2002)/cgroup").out
    )


def test_a_device_cannot_be_made_and_a_setuid_bit_does_nothing(evil: Server) -> None:
    assert evil.inside("evil", BOB, "mknod /workspace/evil/disk b 254 0", check=False).rc != 0
    assert evil.inside("evil", BOB, "chown 0 /workspace/evil/Dockerfile", check=False).rc != 0
    # carol plants a program that would make its caller carol, where dave can reach it.
    evil.inside("vision", CAROL, "cp /bin/bash /srv/data/vision/become && chmod 6755 /srv/data/vision/become")
    became = evil.user("dave", "/srv/data/vision/become -p -c 'id -u; id -g'").out.split()
    evil.user("carol", "rm /srv/data/vision/become")
    assert became == ["2004", "2004"]


@pytest.mark.thorough
def test_a_volume_of_the_image_goes_with_the_container(evil: Server) -> None:
    evil.user("bob", "container retire evil --yes")
    assert evil.root("docker volume ls -q").out == ""
    evil.user("bob", "project launch evil --detach")


def test_shared_data_cannot_be_made_writable(server: Server) -> None:
    server.root("echo published > /srv/data/datasets/new.txt && chmod 644 /srv/data/datasets/new.txt")
    inside = server.inside(
        "my-thesis", ALICE, "stat -c '%d:%i' /srv/data/datasets/new.txt; cat /srv/data/datasets/new.txt"
    )
    assert inside.out == server.root("stat -c '%d:%i' /srv/data/datasets/new.txt").out + "\npublished"
    for attempt in (
        "touch /srv/data/datasets/x",
        "echo x > /srv/data/datasets/new.txt",
        "mount -o remount,rw /srv/data",
        "rm /srv/data/datasets/new.txt",
    ):
        assert server.inside("my-thesis", ALICE, attempt, check=False).rc != 0
    # carol writes datasets on the host as one of its managers, but not from a container.
    refused = server.inside("vision", CAROL, "touch /srv/data/datasets/x", check=False)
    assert refused.rc != 0 and "Read-only file system" in refused.err


def test_a_group_share_is_writable_by_its_members_alone(server: Server) -> None:
    server.inside("vision", CAROL, "echo from-container > /srv/data/vision/container.txt")
    assert server.user("dave", "cat /srv/data/vision/container.txt").out == "from-container"
    assert server.inside("my-thesis", ALICE, "ls /srv/data/vision", check=False).rc != 0


def test_a_link_in_place_of_the_workspace_leads_nowhere(server: Server) -> None:
    server.user("alice", "mv ~/workspace ~/workspace.own && ln -s /home/.workspaces/bob ~/workspace")
    try:
        server.user("alice", "container retire my-thesis; project launch my-thesis --detach")
        mounts = {
            mount["Destination"]: mount["Source"] for mount in server.inspect("my-thesis", ALICE)["Mounts"]
        }
        assert mounts["/workspace"] == "/home/.workspaces/alice"
    finally:
        server.user("alice", "rm ~/workspace && mv ~/workspace.own ~/workspace")


def test_a_project_that_is_a_link_is_not_followed(server: Server) -> None:
    server.user("alice", "ln -sfn /home/.workspaces/bob/evil ~/workspace/linked")
    failed = server.user("alice", "project launch linked --detach", check=False)
    server.user("alice", "rm ~/workspace/linked")
    assert failed.rc != 0 and "Traceback" not in failed.text
    assert "linked._.2001" not in server.containers(everything=True)


@pytest.mark.parametrize(
    "plant",
    [
        "ln -sf /etc/shadow Dockerfile",
        "rm -f Dockerfile; mkfifo Dockerfile",
        pytest.param("rm -f Dockerfile; mkdir Dockerfile", marks=pytest.mark.thorough),
        pytest.param("rm -f Dockerfile; truncate -s 1T Dockerfile", marks=pytest.mark.thorough),
        pytest.param("rm -f Dockerfile", marks=pytest.mark.thorough),
    ],
)
def test_a_planted_dockerfile_is_a_clear_error(server: Server, plant: str) -> None:
    server.user(
        "bob", f"rm -rf ~/workspace/planted && project init planted && cd ~/workspace/planted && {plant}"
    )
    failed = server.user("bob", "timeout 60 image-update planted", check=False)
    server.user("bob", "rm -rf ~/workspace/planted")
    assert failed.rc not in (0, 124)
    assert "Dockerfile" in failed.text and "root:" not in failed.text and "Traceback" not in failed.text


@pytest.mark.thorough
def test_a_link_in_the_context_copies_nobodys_secret(server: Server) -> None:
    server.user(
        "alice", "install -m 600 /dev/null ~/workspace/secret && echo alices-secret > ~/workspace/secret"
    )
    server.user(
        "bob",
        "rm -rf ~/workspace/planted && project init planted && cd ~/workspace/planted && "
        "ln -s /home/.workspaces/alice/secret src/secret && ln -s /etc/shadow src/shadow && "
        "printf '%s\\n' 'FROM lab/debian' 'COPY src /src' "
        "'RUN test -L /src/secret && test -L /src/shadow && ! cat /src/secret' > Dockerfile",
    )
    built = server.user("bob", "image-update planted", check=False)
    server.user("bob", "image remove planted --yes; rm -rf ~/workspace/planted", check=False)
    # The build, which can read it nowhere, is the proof.
    assert built.rc == 0, built.text
    assert "alices-secret" not in built.text and "root:$" not in built.text


def test_another_users_image_is_no_base(server: Server) -> None:
    server.user(
        "bob",
        "rm -rf ~/workspace/planted && project init planted && "
        f"printf 'FROM lab/{ALICE}/my-thesis\\n' > ~/workspace/planted/Dockerfile",
    )
    failed = server.user("bob", "image-update planted", check=False)
    server.user("bob", "rm -rf ~/workspace/planted")
    assert failed.rc != 0 and f"there is no image lab/{ALICE}/my-thesis" in failed.text


@pytest.mark.parametrize(
    "arguments",
    [
        "project-launch --privileged -v /:/host my-thesis",
        "project-launch ../../etc",
        "project-launch 'my-thesis._.2003'",
        "attach",
        "exec my-thesis",
        "--help=/etc/shadow",
        "container-stop vision --user carol",
        "",
    ],
)
def test_the_broker_takes_nothing_but_its_verbs(server: Server, arguments: str) -> None:
    failed = server.user("alice", f"sudo -n /usr/local/sbin/lab-broker {arguments}", check=False)
    assert failed.rc != 0 and "Traceback" not in failed.text


def test_sudo_gives_the_broker_and_nothing_else(server: Server) -> None:
    for command in ("id", "docker ps", "/usr/bin/python3 -c ''", "/usr/local/lib/lab-server/current/x"):
        assert server.user("alice", f"sudo -n {command}", check=False).rc != 0
    assert server.root("stat -c '%U:%G:%a' /usr/local/sbin/lab-broker").out == "root:root:755"
    assert (
        server.root(
            "find /usr/local/lib/lab-server /usr/local/sbin /etc/lab-server "
            "! -user root -o -perm /022 ! -type l"
        ).out
        == ""
    )


@pytest.mark.parametrize(
    "trick",
    [
        "<&- >&- 2>&-",
        *(
            pytest.param(one, marks=pytest.mark.thorough)
            for one in ("</dev/full", "> /dev/full", "| head -c 1")
        ),
    ],
)
def test_broken_descriptors_break_nothing(server: Server, trick: str) -> None:
    server.user(
        "alice",
        f"LD_PRELOAD=/tmp/x.so PYTHONPATH=/tmp DOCKER_HOST=tcp://x project launch my-thesis --detach {trick}",
        check=False,
    )
    server.wait(lambda: f"my-thesis._.{ALICE}" in server.containers(), "the container runs", 30)


def test_what_root_does_for_a_user_is_in_no_cgroup_of_the_users(server: Server) -> None:
    server.root("systemctl stop lab-broker.slice")  # as after a start of the server: the first call starts it
    command = "chrt --idle 0 taskset 1 container list > /dev/null"
    look = "cat /sys/fs/cgroup/lab.slice/lab-broker.slice/cgroup.procs 2>/dev/null"
    shown = (
        f"runuser -l alice -c '{command}' & job=$!; while kill -0 $job 2>/dev/null; do for one in $({look}); "
        "do tr '\\0' ' ' < /proc/$one/cmdline; chrt -p $one; done; sleep 0.05; done; wait $job"
    )
    seen = server.root(f"({shown}) 2>/dev/null").out
    assert (
        "lab-broker" in seen
        and "SCHED_OTHER" in seen
        and "SCHED_IDLE" not in seen.rsplit("lab-broker", 1)[-1]
    )


def test_anothers_container_answers_as_none(server: Server) -> None:
    others = server.user("alice", "container stop vision", check=False)
    none = server.user("alice", "container stop no-such-thing", check=False)
    assert others.rc == none.rc != 0
    assert others.text.replace("vision", "X") == none.text.replace("no-such-thing", "X")
    assert f"vision._.{CAROL}" in server.containers()


def test_containers_reach_neither_each_other_nor_the_metadata_address(server: Server) -> None:
    networks = server.inspect("vision", CAROL)["NetworkSettings"]["Networks"]
    address = next(iter(networks.values()))["IPAddress"]
    server.root(
        f"docker exec -d vision._.{CAROL} python3 -m http.server 8099 --bind 0.0.0.0 --directory /srv"
    )
    connect = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 4)"
    server.wait(
        lambda: server.inside("vision", CAROL, f'python3 -c "{connect}" {address} 8099', check=False).rc == 0,
        "the listener of carol answers carol",
        40,
    )
    assert server.inside("my-thesis", ALICE, f'python3 -c "{connect}" {address} 8099', check=False).rc != 0
    assert "-j LAB-SERVER" in server.root("iptables -S DOCKER-USER").out
    metadata = server.inside("my-thesis", ALICE, f'python3 -c "{connect}" 169.254.169.254 80', check=False)
    assert "refused" in metadata.err  # by our rule, at once: nothing else on the way would answer
    for target in (f"{address} 8099", "169.254.169.254 80"):
        outside = server.user("alice", f'python3 -c "{connect}" {target}', check=False)
        assert outside.rc != 0 and "refused" in outside.err
    assert server.root(f'python3 -c "{connect}" {address} 8099').rc == 0


@pytest.mark.thorough
def test_nobody_from_outside_reaches_a_container(server: Server) -> None:
    networks = server.inspect("vision", CAROL)["NetworkSettings"]["Networks"]
    address = next(iter(networks.values()))["IPAddress"]
    # A neighbour of the server: another network namespace, behind a link of its own.
    server.root(
        "ip netns add outside && ip link add out0 type veth peer name out1 netns outside && "
        "ip address add 192.0.2.1/24 dev out0 && ip link set out0 up && "
        "ip -n outside address add 192.0.2.2/24 dev out1 && ip -n outside link set out1 up && "
        "ip -n outside route add default via 192.0.2.1"
    )
    try:
        reach = f"import socket; socket.create_connection(('{address}', 8099), 4)"
        assert server.root(f'ip netns exec outside python3 -c "{reach}"', check=False).rc != 0
        counted = server.root("iptables -L LAB-SERVER -v -n -x | grep lab0 | awk '{print $1}'").out
        assert int(counted) > 0  # it was our rule that dropped it
    finally:
        server.root("ip link delete out0; ip netns delete outside")


def test_privileged_acts_are_logged_where_users_cannot_write(server: Server) -> None:
    server.user("alice", "container stop my-thesis && project launch my-thesis --detach")
    lines = server.root("journalctl -t lab-server --no-pager -o cat -n 40").out
    assert "container-stop" in lines and "2001" in lines
    assert (
        server.user("alice", "journalctl -t lab-server --no-pager -o cat -n 5", check=False).out.count(
            "container-stop"
        )
        == 0
    )


def test_a_session_on_the_host_is_limited_too(server: Server) -> None:
    limits = server.limits("alice")
    shown = server.root("systemctl show user-2001.slice -p MemoryMax -p TasksMax -p MemorySwapMax").out
    assert set(shown.splitlines()) == {
        f"MemoryMax={limits['memory']}", f"TasksMax={limits['pids']}", "MemorySwapMax=0"
    }  # fmt: skip  # read as a table, several to a line


def test_limits_of_the_policy_are_held(server: Server) -> None:
    limit = server.limits("dave")["containers"]
    names = [f"many-{number}" for number in range(limit + 1)]
    for name in names:
        server.user(
            "dave",
            f"project init {name} --base lab/debian && "
            f"printf 'FROM lab/debian\\n' > ~/workspace/{name}/Dockerfile",
        )
    outcomes = [server.user("dave", f"project launch {name} --detach", check=False) for name in names]
    assert [outcome.rc == 0 for outcome in outcomes] == [True] * limit + [False]
    assert str(limit) in outcomes[-1].text and "Traceback" not in outcomes[-1].text
    for name in names[:limit]:
        server.user("dave", f"container retire {name}")
