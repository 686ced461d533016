"""Several hosts on this machine: network namespaces on a bridge, each with a name of its own.

All of it lives in one private set of namespaces (network, mounts, host name, processes) whose first
process reads from a pipe of ours: when we end, however we end, so does everything in it, and
nothing is left on the machine.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from tests.launch import REPO, SETTINGS, find_mpirun, run_group

NET = "10.77.0.0/24"
AGENT = "/run/netns/agent"

_SETUP = """
set -e
mkdir -p /run/netns; mount -t tmpfs tmpfs /run/netns; mkdir -p $TMPDIR
hostname head
ip link set lo up
ip link add bridge type bridge
ip addr add 10.77.0.254/24 dev bridge
ip link set bridge up
{ echo "127.0.0.1 localhost"; echo "10.77.0.254 head"; } > /run/netns/names
for i in $(seq $HOSTS); do
    ip netns add h$i
    ip link add h$i type veth peer name eth0 netns h$i
    ip link set h$i master bridge up
    ip -n h$i addr add 10.77.0.$i/24 dev eth0
    ip -n h$i link set eth0 up
    ip -n h$i link set lo up
    if [ -n "$RATE" ]; then
        tc -n h$i qdisc add dev eth0 root tbf rate $RATE burst 128kb latency 100ms
    fi
    echo "10.77.0.$i h$i" >> /run/netns/names
done
mount --bind /run/netns/names /etc/hosts
cat > $AGENT <<'END'
#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=$1; shift
exec ip netns exec $host unshare --uts sh -c "hostname $host; $*"
END
chmod +x $AGENT
echo ready
exec cat
"""

_SETTINGS = {**SETTINGS, "UCX_TLS": "tcp,self", "TMPDIR": "/run/netns/tmp"}
"""MPICH's UCX sees one machine, and would use its shared memory. Open MPI's daemons keep files that
are named by process, and these numbers start anew each time."""

_PRIVATE = "unshare --net --mount --uts --pid --fork --kill-child --mount-proc sh -c".split()


class Hosts:
    """`size` hosts named h1, h2, …; `head`, which launches, is on the same bridge."""

    def __init__(self, size: int, first_process: int):
        self.size = size
        self.first_process = first_process
        namespaces = "--net --mount --uts --pid".split()
        self._enter = ["nsenter", "--target", str(first_process), *namespaces]
        self._enter += ["env", "-C", str(REPO)]

    def mpirun(
        self,
        ranks_per_host: int,
        *args: str | Path,
        timeout: float = 120.0,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `python *args` on so many ranks of every host, rank 0 to k−1 on h1 and so on."""
        command = [*self._enter, *self._launcher(ranks_per_host), sys.executable, *map(str, args)]
        return run_group(command, timeout, {**_SETTINGS, **(env or {})})

    def _launcher(self, ranks: int) -> list[str]:
        names = ",".join(f"h{i + 1}:{ranks}" for i in range(self.size))
        number = ["-np", str(ranks * self.size)]
        if not is_open_mpi():
            hydra = ["-launcher", "ssh", "-launcher-exec", AGENT, "-hosts", names]
            return [_mpirun(), *hydra, *number]
        wires = ["--mca", "pml", "ob1", "--mca", "btl_tcp_if_include", NET]
        agent = ["--prtemca", "plm_ssh_agent", AGENT, "--prtemca", "oob_tcp_if_include", NET]
        where = ["--map-by", f"ppr:{ranks}:node:OVERSUBSCRIBE", "--host", names]
        return [_mpirun(), *agent, *wires, *where, *number]


@contextmanager
def hosts(size: int, rate: str = "") -> Iterator[Hosts]:
    """Start hosts, and end them and all that runs on them.

    Args:
        size: how many.
        rate: what each may send, in the words of tc, for instance "1gbit"; "" sets no limit.
    """
    holder = subprocess.Popen(
        [*_PRIVATE, _SETUP],
        env={**os.environ, **_SETTINGS, "HOSTS": str(size), "RATE": rate, "AGENT": AGENT},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        said = holder.stdout.readline()
        if said != "ready\n":
            raise OSError(f"no hosts: {said}{holder.communicate()[0]}")
        children = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text()
        yield Hosts(size, int(children))
    finally:
        try:
            holder.communicate(timeout=10)  # closes the pipe, which ends the first process
        except subprocess.TimeoutExpired:
            holder.kill()
            holder.communicate()


@cache
def missing() -> str:
    """Return why there can be no hosts here, or "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool in ("ip", "tc", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            return f"there is no {tool} (iproute2, util-linux)"
    try:
        with hosts(1, "1gbit"):
            return "" if find_mpirun() else "there is no mpirun"
    except OSError as error:
        return str(error)


def require() -> None:
    """Skip the test, and say why, where there can be no hosts."""
    if missing():
        pytest.skip(missing())


def _mpirun() -> str:
    launcher = find_mpirun()
    assert launcher is not None
    return launcher


@cache
def is_open_mpi() -> bool:
    """Say whether the mpirun that tests use is Open MPI's; MPICH's takes other arguments."""
    version = subprocess.run([_mpirun(), "--version"], capture_output=True, text=True).stdout
    return "Open MPI" in version
