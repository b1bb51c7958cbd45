"""Long runs: what leaks shows only after a while. `make soak` runs these."""

import hashlib
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from testkit.node import NodeProcess, wait_until

pytestmark = [pytest.mark.interop, pytest.mark.soak]

MIB = 1024 * 1024
RUNS = '[ssh]\nuser = "root"\nas_daemon = true'


def test_5000_sessions_leave_memory_and_descriptors_as_they_were(node: NodeProcess) -> None:
    process, terminal = psutil.Process(node.pid), ([], ["-tt"])

    def many(count: int) -> None:
        with ThreadPoolExecutor(8) as pool:
            codes = set(pool.map(lambda n: node.ssh(*terminal[n % 2], "exit 3").returncode, range(count)))
        assert codes == {3}

    many(500)
    memory, descriptors = process.memory_info().rss, process.num_fds()
    many(4500)
    wait_until(lambda: process.num_fds() <= descriptors, "no descriptor is left")
    assert process.memory_info().rss - memory < 16 * MIB
    assert node.alknet("audit", "verify").returncode == 0


def test_four_gib_both_ways_while_the_configuration_is_reloaded(node: NodeProcess) -> None:
    stop = threading.Event()

    def reload_all_the_time() -> None:
        number = 0
        while not stop.wait(0.2):
            number += 1
            node.write_peer("bob", f'scopes = ["ssh:exec"]\ndisplay_name = "{number}"\n{RUNS}')
            node.alknet("config", "reload")

    reloader = threading.Thread(target=reload_all_the_time)
    reloader.start()
    before = psutil.Process(node.pid).memory_info().rss
    try:
        source = subprocess.Popen(["head", "-c", "4G", "/dev/zero"], stdout=subprocess.PIPE)
        sink = subprocess.Popen(node.ssh_command("cat"), stdin=source.stdout, stdout=subprocess.PIPE)
        assert source.stdout is not None
        assert sink.stdout is not None
        source.stdout.close()
        came_back = hashlib.file_digest(sink.stdout, "sha256")
        sink.stdout.close()
        assert sink.wait() == source.wait() == 0
    finally:
        stop.set()
        reloader.join()
    expected = hashlib.sha256()
    for _ in range(4096):
        expected.update(bytes(MIB))
    assert came_back.hexdigest() == expected.hexdigest()
    assert psutil.Process(node.pid).memory_info().rss - before < 16 * MIB
