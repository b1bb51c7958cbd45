"""alknet beside OpenSSH's sshd and bare asyncssh, entered by stock clients, in one run on one machine.

``python bench/ssh.py [--quick] [--only NAME …] [--parts PART …] [--markdown]`` prints absolute figures and the two
ratios that matter: to sshd (the goal) and to bare asyncssh (the floor). Rounds go A, B, C, A, B, C, …, so that a
machine that slows down slows down everybody; a figure is the median of its rounds, and a ratio that of the rounds'
ratios. Nothing here passes or fails: it is for reading.
"""

import argparse
import os
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import ssh_exec
import ssh_files
import ssh_forwards
from servers import CIPHER, KEX, NAMES, Server, start_servers
from ssh_figures import FULL, MIB, QUICK, Effort, Metric, Results, table

PARTS: Final = {
    "connections": ssh_exec.measure_connections,
    "exec": ssh_exec.measure_exec,
    "files": ssh_files.measure_files,
    "forwards": ssh_forwards.measure_forwards,
}

RSS_IDLE: Final = Metric("memory, idle", "MiB", less_is_better=True)
RSS_AFTER: Final = Metric("memory, after all", "MiB", less_is_better=True)
BROKEN: Final = Metric("connections broken, in all", "", less_is_better=True)
METRICS: Final = (*ssh_exec.METRICS, *ssh_files.METRICS, *ssh_forwards.METRICS, RSS_IDLE, RSS_AFTER, BROKEN)


def measure_memory(servers: Sequence[Server], metric: Metric, results: Results) -> None:
    for server in servers:
        results[server.name, metric].append(server.rss_bytes() / MIB)


def measure(effort: Effort, names: Sequence[str], parts: Sequence[str]) -> Results:
    """Start the servers, measure everything, and stop them."""
    results: Results = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="alknet-bench-") as directory:
        os.chmod(directory, 0o755)
        with start_servers(Path(directory), names) as servers:
            for server in servers:
                ssh_exec.run_true(server)  # imports, caches: the first connection is nobody's measure
            measure_memory(servers, RSS_IDLE, results)
            for part in parts:
                PARTS[part](servers, effort, results)
            measure_memory(servers, RSS_AFTER, results)
            for server in servers:
                results[server.name, BROKEN].append(server.broken)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a rough answer in a minute and a half")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="leave servers out")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=tuple(PARTS), metavar="PART", help="leave parts out"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as README.md has it")
    arguments = parser.parse_args()
    effort = QUICK if arguments.quick else FULL
    began = time.monotonic()
    results = measure(effort, arguments.only, arguments.parts)
    version = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr.strip()
    print(f"{version}; {CIPHER}, {KEX}; {os.cpu_count()} processors; {effort}")
    print(table(results, METRICS, arguments.only, markdown=arguments.markdown))
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"took {time.monotonic() - began:.0f} s; load at the end {load}")


if __name__ == "__main__":
    main()
