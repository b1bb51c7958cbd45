"""The floor: asyncssh as its documentation shows it, with nothing of alknet's around it.

``python bare_asyncssh.py HOST_KEY AUTHORIZED_KEYS`` listens on a free port of 127.0.0.1 and prints that port. It does
less than a node: it asks no policy, writes no log, changes no user and starts no process group. It does run on uvloop,
as a node does, so that the difference is what alknet adds and leaves out, not the event loop.
"""

import asyncio
import subprocess
import sys

import asyncssh
import uvloop


async def run_command(process: "asyncssh.SSHServerProcess[bytes]") -> None:
    """Run what was asked by a shell, its three streams redirected to the channel.

    With `asyncio.create_subprocess_shell` instead of `Popen`, downloads lose their end and connections break when
    the command ends before the channel's input does, so there would be nothing to measure.
    """
    child = subprocess.Popen(  # noqa: ASYNC220 - the way of the documentation
        process.command or "true",
        shell=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    await process.redirect(stdin=child.stdin, stdout=child.stdout, stderr=child.stderr)
    await process.stdout.drain()
    process.exit(await asyncio.get_running_loop().run_in_executor(None, child.wait))


class Forwards(asyncssh.SSHServer):
    """Lets everybody forward whatever they want."""

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:
        return True

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return True


async def serve(host_key: str, authorized_keys: str) -> None:
    """Listen until the process is ended."""
    acceptor = await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[host_key],
        authorized_client_keys=authorized_keys,
        process_factory=run_command,
        server_factory=Forwards,
        sftp_factory=True,
        encoding=None,
    )
    print(acceptor.get_port(), flush=True)
    await acceptor.wait_closed()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2]))
