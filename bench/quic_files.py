"""SFTP and ``-L`` over QUIC and TLS beside plain TCP, by stock clients through ``alknet proxy`` and by alknet's own."""

import shlex
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from quic_site import DEADLINE_S, Effort, Site, cpu_s
from servers import CIPHER
from ssh_files import MEMORY, fill
from ssh_forwards import started_end, through
from tables import Figures, median, ratios, table
from tcp_end import zeros

from testkit.node import free_port, wait_until

__all__ = ["measure_files", "measure_forwards"]

STOCK_TCP: Final = "stock tcp"
FILES: Final = {
    STOCK_TCP: "sftp, TCP",
    "stock tls": "sftp through alknet proxy, TLS",
    "stock quic": "sftp through alknet proxy, QUIC",
    "alknet tls": "alknet cp, TLS",
    "alknet quic": "alknet cp, QUIC",
}
FORWARDS: Final = {
    STOCK_TCP: "ssh -L, TCP",
    "stock tls": "ssh -L through alknet proxy, TLS",
    "stock quic": "ssh -L through alknet proxy, QUIC",
    "alknet tls": "alknet ssh -L, TLS",
    "alknet quic": "alknet ssh -L, QUIC",
}


def _size(effort: Effort, name: str) -> int:
    return effort.slow_bytes if name.endswith("quic") else effort.fast_bytes


def _stock(site: Site, program: str, carrier: str, *options: str) -> list[str]:
    """Stock `program` to the node, over `carrier`."""
    words = [program, "-F", "none", "-c", CIPHER, "-i", str(site.node.keys / "bench"), "-o", f"Port={site.node.port}"]
    known_hosts = site.node.home / "keys" / "known_hosts"
    for option in ("IdentitiesOnly=yes", "IdentityAgent=none", "BatchMode=yes", f"UserKnownHostsFile={known_hosts}"):
        words += ["-o", option]
    if carrier != "tcp":
        proxy = shlex.join([*_alknet(site), "proxy", "--carrier", carrier, "."])
        words += ["-o", f"ProxyCommand={proxy}"]
    return [*words, *options, "bench@127.0.0.1"]


def _alknet(site: Site) -> list[str]:
    identity = str(site.node.keys / "bench")
    return [sys.executable, "-m", "alknet", "--home", str(site.node.home), "--identity", identity]


def _run(words: list[str], text: str = "") -> float:
    """Seconds for a program that is given `text`."""
    began = time.perf_counter()
    result = subprocess.run(words, input=text, capture_output=True, text=True, timeout=DEADLINE_S)
    if result.returncode:
        raise RuntimeError(f"{words}: exit {result.returncode}: {result.stderr}")
    return time.perf_counter() - began


def _copy(site: Site, name: str, direction: str, source: Path, target: Path) -> float:
    """Seconds for a program that copies `source`, as a file of the node (``down``) or of the client."""
    kind, carrier = name.split()
    if kind == "stock":
        verb = "get" if direction == "down" else "put"
        took_s = _run(_stock(site, "sftp", carrier, "-q", "-b", "-"), f"{verb} {source} {target}\n")
    else:
        ends = [f"bench@.:{source}", str(target)] if direction == "down" else [str(source), f"bench@.:{target}"]
        took_s = _run([*_alknet(site), "cp", "-q", "--carrier", carrier, *ends])
    if target.stat().st_size != source.stat().st_size:
        raise RuntimeError(f"{name}: {target.stat().st_size} bytes of {source.stat().st_size} arrived")
    target.unlink()
    return took_s


def measure_files(directory: Path, effort: Effort) -> str:
    """A large file both ways, less the time for an empty one."""
    figures: Figures = defaultdict(list)
    memory = MEMORY if MEMORY.is_dir() else None
    with ExitStack() as stack:
        files = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alknet-bench-", dir=memory)))
        site = Site(stack, directory / "node")
        sizes = {0, effort.slow_bytes, effort.fast_bytes}
        for size in sizes:
            fill(files / str(size), size)
        for _ in range(effort.rounds):
            for direction in ("down", "up"):
                for name in FILES:
                    size = _size(effort, name)
                    overhead_s = _copy(site, name, direction, files / "0", files / "copy")
                    used_s = cpu_s(site.process)
                    took_s = _copy(site, name, direction, files / str(size), files / "copy") - overhead_s
                    figures[name, direction].append(size / 1e6 / took_s)
                    figures[name, f"server, {direction}"].append((cpu_s(site.process) - used_s) * 1e9 / size)
    return _table("files", FILES, figures)


@contextmanager
def _forwarding(site: Site, name: str, end: int) -> Iterator[int]:
    """The port of a client that forwards to `end` as long as the context lasts."""
    kind, carrier = name.split()
    port = free_port()
    forward = f"127.0.0.1:{port}:127.0.0.1:{end}"
    if kind == "stock":
        words = _stock(site, "ssh", carrier, "-N", "-L", forward)
    else:
        words = [*_alknet(site), "ssh", "--carrier", carrier, "-N", "-L", forward, "bench@."]

    def answers() -> bool:
        if client.poll() is not None:
            raise RuntimeError(f"{words} ended with {client.returncode}")
        try:
            through(port, "touch", 0, -1)
        except OSError:
            return False
        return True

    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as client:
        try:
            wait_until(answers, f"{name} forwards")
            yield port
        finally:
            client.terminate()


def measure_forwards(directory: Path, effort: Effort) -> str:
    """What goes through ``-L``, each client with a connection that is there."""
    figures: Figures = defaultdict(list)
    source = zeros()
    with ExitStack() as stack:
        site = Site(stack, directory / "node")
        end = stack.enter_context(started_end())
        ports = {name: stack.enter_context(_forwarding(site, name, end)) for name in FORWARDS}
        for _ in range(effort.rounds):
            for direction in ("down", "up"):
                for name in FORWARDS:
                    size = _size(effort, name)
                    used_s = cpu_s(site.process)
                    took_s = through(ports[name], direction, size, source)
                    figures[name, direction].append(size / 1e6 / took_s)
                    figures[name, f"server, {direction}"].append((cpu_s(site.process) - used_s) * 1e9 / size)
    return _table("-L", FORWARDS, figures)


def _table(title: str, rows: dict[str, str], figures: Figures) -> str:
    columns: dict[str, Callable[[str], str]] = {}
    for direction in ("down", "up"):
        columns[f"{direction} MB/s"] = lambda name, d=direction: median(figures[name, d])
        columns["/ TCP" + " " * (direction == "up")] = lambda name, d=direction: _ratio(figures, name, d)
    for end in ("server, down", "server, up"):
        columns[f"{end} ms/MB"] = lambda name, e=end: median(figures[name, e])
    return table(title, rows, columns)


def _ratio(figures: Figures, name: str, what: str) -> str:
    return f"{ratios(figures, name, STOCK_TCP, what)[0]:.2f}"
