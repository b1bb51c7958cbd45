"""Two network namespaces and a link between them that loses, delays and reorders packets. Needs root and iproute2.

::

    with lossy_link(loss=0.05, delay_ms=50, reorder=0.1, seed=1) as link:
        link.server.popen(["some-server", link.server.address])
        with link.client.entered():
            ...  # sockets and processes that this thread makes are in the namespace
        link.set(loss=0.0, blocked=("udp",))
        link.client.move_to("10.77.0.9")

No kernel module does the damage: each namespace has a TUN device, and a keeper process carries the packets from one to
the other. The keeper makes the namespaces and takes them down when its stdin ends, which it also does when the test run
is killed. Should the keeper itself be killed, the next link sweeps up: names carry the process id of their test run.
"""

import contextlib
import ctypes
import fcntl
import ipaddress
import itertools
import json
import math
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from testkit.datagrams import BATCH, Conditions, Counts, End, Lane, given

__all__ = [
    "Link",
    "LinkConditions",
    "Namespace",
    "link_numbers",
    "lossy_link",
    "need_namespaces",
    "remove_namespace",
    "run_ip",
    "sweep",
]

ADDRESSES: dict[End, tuple[str, str]] = {"client": ("10.77.0.1", "fd77::1"), "server": ("10.77.0.2", "fd77::2")}
NETWORKS = ("10.77.0.0/24", "fd77::/64")
DEVICE = "wan"
MTU_BYTES = 1500
KERNEL_QUEUE_PACKETS = 1000
"""What the kernel keeps while the keeper does something else."""
RUN_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 20.0
"""How long the keeper may take to answer; making both namespaces takes a tenth of a second."""

PROTOCOLS = {"icmp": (1, 58), "tcp": (6,), "udp": (17,)}
"""What can be blocked, with its numbers in IPv4 and IPv6."""
IPV6_FRAGMENT = 44

NAMESPACES = Path("/run/netns")
NAME = re.compile(r"alknet-(\d+)-\d+-[a-z]+")
TUN = Path("/dev/net/tun")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21

link_numbers = itertools.count()


def need_namespaces() -> None:
    """Leave out a test where namespaces cannot be made; in CI that is a failure. A missing program always is one."""
    import pytest  # here, because the keeper has no use for it

    if lacking := _lacking():
        leave_out = pytest.fail if os.environ.get("CI") else pytest.skip
        leave_out(f"network namespaces need {lacking}")
    if shutil.which("ip") is None:
        pytest.fail("network namespaces need `ip`, from the package iproute2")


def _lacking() -> str:
    if os.geteuid() != 0:
        return "root"
    status = Path("/proc/self/status").read_text()
    capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
    if not all(capabilities >> number & 1 for number in (CAP_NET_ADMIN, CAP_SYS_ADMIN)):
        return "the capabilities net_admin and sys_admin, which this container's root does not have"
    return "" if TUN.exists() else f"the device {TUN}"


@dataclass(frozen=True)
class LinkConditions(Conditions):
    """Those of a lane, and the protocols (see `PROTOCOLS`) of which nothing passes."""

    blocked: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := set(self.blocked) - set(PROTOCOLS):
            raise ValueError(f"only {', '.join(PROTOCOLS)} can be blocked, not {', '.join(sorted(unknown))}")


class Namespace:
    """One end of a link, or a machine of another network."""

    def __init__(self, name: str, address: str, address6: str = "") -> None:
        self.name = name
        self.address, self.address6 = address, address6
        self._processes: list[subprocess.Popen[Any]] = []

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put this thread into the namespace: what it opens and starts meanwhile is there, and stays there.

        In asynchronous code nothing may be awaited meanwhile, or other tasks of the thread are there as well.
        """
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            inside = os.open(NAMESPACES / self.name, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _set_namespace(inside)
            finally:
                os.close(inside)
            try:
                yield
            finally:
                _set_namespace(before)
        finally:
            os.close(before)

    def run(self, command: Sequence[str | os.PathLike[str]], **keywords: Any) -> subprocess.CompletedProcess[Any]:
        """`subprocess.run` inside, with its keywords."""
        with self.entered():
            return subprocess.run(command, **({"timeout": RUN_TIMEOUT_S} | keywords))

    def popen(self, command: Sequence[str | os.PathLike[str]], **keywords: Any) -> subprocess.Popen[Any]:
        """`subprocess.Popen` inside, with its keywords. What still runs when the link goes is killed."""
        with self.entered():
            process = subprocess.Popen(command, **keywords)
        self._processes.append(process)
        return process

    def move_to(self, address: str) -> None:
        """Take another address of the network, and give up the one of the same IP version.

        A socket that was bound to the old one, or connected, stays with it and can send no more, as on a machine that
        changes its network.
        """
        is_new = ipaddress.ip_address(address)
        if not any(is_new in ipaddress.ip_network(network) for network in NETWORKS):
            raise ValueError(f"{address} is in none of {', '.join(NETWORKS)}: the link leads nowhere else")
        old = self.address if is_new.version == 4 else self.address6
        run_ip(self.name, _add_address(address), f"address delete {_alone(old)} dev {DEVICE}")
        if is_new.version == 4:
            self.address = address
        else:
            self.address6 = address

    def close(self) -> None:
        """End what `popen` started. The rest is the keeper's work."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()


class Link:
    """Two namespaces and what is between them. See `lossy_link`."""

    def __init__(self, seed: int) -> None:
        prefix = f"alknet-{os.getpid()}-{next(link_numbers)}"
        self.client = Namespace(f"{prefix}-client", *ADDRESSES["client"])
        self.server = Namespace(f"{prefix}-server", *ADDRESSES["server"])
        self._conditions: dict[End, LinkConditions] = {"client": LinkConditions(), "server": LinkConditions()}
        self._keeper = subprocess.Popen(
            [sys.executable, "-m", "testkit.netns", self.client.name, self.server.name, str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])},
            cwd="/",
            bufsize=0,
            # It outlives the run by the moment that tidying up takes, also when the whole process group is ended.
            start_new_session=True,
        )

    @property
    def keeper_pid(self) -> int:
        return self._keeper.pid

    def set(
        self,
        *,
        towards: End | None = None,
        loss: float | None = None,
        duplicate: float | None = None,
        reorder: float | None = None,
        delay_ms: float | None = None,
        jitter_ms: float | None = None,
        late_ms: float | None = None,
        blocked: Sequence[str] | None = None,
    ) -> None:
        """Change these conditions, in one direction or in both; the others stay. They hold when this returns.

        `loss`, `duplicate` and `reorder` are probabilities; a reordered packet arrives `late_ms` after its turn.
        `delay_ms` is one way. `blocked` names the protocols of which nothing passes: "icmp", "tcp", "udp".
        """
        changes = given(
            loss=loss,
            duplicate=duplicate,
            reorder=reorder,
            delay_s=_seconds(delay_ms),
            jitter_s=_seconds(jitter_ms),
            late_s=_seconds(late_ms),
            blocked=None if blocked is None else tuple(blocked),
        )
        ends: tuple[End, ...] = ("client", "server") if towards is None else (towards,)
        self._conditions |= {end: replace(self._conditions[end], **changes) for end in ends}
        self._ask({"conditions": {end: asdict(conditions) for end, conditions in self._conditions.items()}})

    def counts(self) -> dict[End, Counts]:
        """What has become of the packets so far, by the end that they go to."""
        return {end: Counts(**counts) for end, counts in self._ask({}).items()}

    def hold(self) -> None:
        """Let nothing pass in either direction until `release`; it is kept meanwhile."""
        self._ask({"hold_s": math.inf})

    def release(self) -> None:
        self._ask({"hold_s": 0.0})

    def stall(self, duration_s: float) -> None:
        """Hold for so long; returns at once."""
        self._ask({"hold_s": duration_s})

    def close(self) -> None:
        """Kill what is left in the namespaces, and remove them."""
        self.client.close()
        self.server.close()
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.close()
        self._keeper.stdout.close()
        try:
            code = self._keeper.wait(timeout=ANSWER_TIMEOUT_S)
        finally:
            if self._keeper.poll() is None:
                self._keeper.kill()
                self._keeper.wait()
            for namespace in (self.client, self.server):
                remove_namespace(namespace.name)
        if code:
            raise AssertionError(f"the link's keeper ended with {code}; what it said is on stderr")

    def _ask(self, request: dict[str, Any]) -> dict[End, dict[str, Any]]:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self._keeper.stdin.write(json.dumps(request).encode() + b"\n")
        answered = select.select([self._keeper.stdout], [], [], ANSWER_TIMEOUT_S)[0]
        line = self._keeper.stdout.readline() if answered else b""
        if not line:
            raise AssertionError("the link's keeper does not answer; what it said is on stderr")
        answer: dict[End, dict[str, Any]] = json.loads(line)
        return answer


@contextmanager
def lossy_link(*, seed: int = 0, **conditions: Any) -> Iterator[Link]:
    """Two namespaces whose link is under `conditions`, as `Link.set` has them. The seed decides which packets are hit.

    Leaves the test out where namespaces cannot be made, see `need_namespaces`.
    """
    need_namespaces()
    sweep()
    link = Link(seed)
    try:
        link.set(**conditions)
        yield link
    finally:
        link.close()


def sweep() -> None:
    """Remove the namespaces of test runs that are no more."""
    for path in NAMESPACES.glob("*"):
        match = NAME.fullmatch(path.name)
        if match and not Path("/proc", match[1]).exists():
            remove_namespace(path.name)


def remove_namespace(name: str) -> None:
    """Kill what runs in a namespace, and remove it; two may do that at once. This process and the run are spared."""
    if not (NAMESPACES / name).exists():
        return
    match = NAME.fullmatch(name)
    assert match is not None
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    for pid in map(int, listed.stdout.split()):
        if pid not in (os.getpid(), int(match[1])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    deleted = subprocess.run(["ip", "netns", "delete", name], capture_output=True, text=True, check=False)
    if (NAMESPACES / name).exists():
        raise AssertionError(f"the network namespace {name} cannot be removed: {deleted.stderr}")


def _set_namespace(fd: int) -> None:
    # os.setns needs Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _seconds(duration_ms: float | None) -> float | None:
    return None if duration_ms is None else duration_ms / 1000


def _alone(address: str) -> str:
    """The address as a network of its own: the route says where the others are, so addresses come and go freely."""
    return f"{address}/{ipaddress.ip_address(address).max_prefixlen}"


def _add_address(address: str) -> str:
    is_new = "nodad" if ":" in address else ""  # usable at once; only IPv6 would look whether somebody has it
    return f"address add {_alone(address)} dev {DEVICE} {is_new}"


def run_ip(name: str, *lines: str) -> None:
    """Run lines of `ip` in a namespace; without a name, outside of all."""
    where = ["-n", name] if name else []
    subprocess.run(["ip", *where, "-batch", "-"], input="\n".join(lines), text=True, check=True)


# --- the keeper: a process of its own ----------------------------------------------------------------------------


class _Keeper:
    """Makes both namespaces, carries packets, and obeys lines of JSON on stdin until that ends."""

    def __init__(self, names: dict[End, str], seed: str) -> None:
        self.names = names
        self.tuns: dict[End, int] = {}
        self.lanes: dict[End, Lane[bytes]] = {end: Lane(LinkConditions(), f"{seed} to {end}") for end in names}
        self.blocked: dict[End, frozenset[int]] = {end: frozenset() for end in names}
        self.unread = b""

    def set_up(self) -> None:
        for end, name in self.names.items():
            subprocess.run(["ip", "netns", "add", name], check=True)
            self.tuns[end] = _open_tun(Namespace(name, *ADDRESSES[end]))
            run_ip(
                name,
                "link set lo up",
                f"link set dev {DEVICE} mtu {MTU_BYTES} txqueuelen {KERNEL_QUEUE_PACKETS}",
                f"link set dev {DEVICE} addrgenmode none",
                f"link set dev {DEVICE} up",
                *(_add_address(address) for address in ADDRESSES[end]),
                *(f"route add {network} dev {DEVICE}" for network in NETWORKS),
            )

    def tear_down(self) -> None:
        for fd in self.tuns.values():
            os.close(fd)
        for name in self.names.values():
            remove_namespace(name)

    def carry(self) -> None:
        """Until stdin ends."""
        stdin = sys.stdin.fileno()
        ways: dict[int, tuple[int, End]] = {
            self.tuns["client"]: (self.tuns["server"], "server"),
            self.tuns["server"]: (self.tuns["client"], "client"),
        }
        while True:
            next_s = min(lane.next_s() for lane in self.lanes.values())
            timeout_s = None if next_s == math.inf else max(next_s - time.monotonic(), 0.0)
            ready = select.select([stdin, *ways], [], [], timeout_s)[0]
            if stdin in ready and not self.obey(stdin):
                return
            for source in set(ready) - {stdin}:
                self.read(source, ways[source][1])
            for target, end in ways.values():
                self.write(target, self.lanes[end])

    def read(self, source: int, end: End) -> None:
        """Take what waits in a device, up to a batch, for the lane to the other end."""
        lane, blocked = self.lanes[end], self.blocked[end]
        with contextlib.suppress(BlockingIOError):
            for _ in range(BATCH):
                packet = os.read(source, MTU_BYTES)
                if _is_multicast(packet):
                    continue  # what kernels say by themselves would shift the random numbers
                if blocked and _protocol(packet) in blocked:
                    lane.counts.received += 1
                    lane.counts.blocked += 1
                else:
                    lane.put(packet, time.monotonic())

    @staticmethod
    def write(target: int, lane: Lane[bytes]) -> None:
        for packet in lane.take(time.monotonic()):
            try:
                os.write(target, packet)
            except OSError:  # the device is down, or the kernel has no room
                lane.counts.passed -= 1
                lane.counts.overflowed += 1

    def obey(self, stdin: int) -> bool:
        """Do what the lines on stdin say, and answer each with the counts; False at its end."""
        data = os.read(stdin, 65_536)
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            for end, conditions in request.get("conditions", {}).items():
                self.lanes[end].conditions = LinkConditions(**conditions)
                self.blocked[end] = frozenset(n for name in conditions["blocked"] for n in PROTOCOLS[name])
            if "hold_s" in request:
                for lane in self.lanes.values():
                    lane.hold(time.monotonic() + request["hold_s"])
            print(json.dumps({end: asdict(lane.counts) for end, lane in self.lanes.items()}), flush=True)
        return bool(data)


def _open_tun(namespace: Namespace) -> int:
    """Make the device that is the namespace's end of the link; it lives as long as this descriptor."""
    with namespace.entered():
        fd = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def _is_multicast(packet: bytes) -> bool:
    return packet[24] == 0xFF if packet[0] >> 4 == 6 else packet[16] >> 4 == 14


def _protocol(packet: bytes) -> int:
    """The number of what an IP packet carries, which in a fragment of IPv6 is one header further."""
    if packet[0] >> 4 == 4:
        return packet[9]
    return packet[40] if packet[6] == IPV6_FRAGMENT else packet[6]


def main(arguments: Sequence[str]) -> None:
    """Keep the link of the test run that is our parent."""
    client, server, seed = arguments
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(0))
    keeper = _Keeper({"client": client, "server": server}, seed)
    try:
        keeper.set_up()
        keeper.carry()
    finally:
        keeper.tear_down()


if __name__ == "__main__":
    main(sys.argv[1:])
