import asyncio, asyncssh
from testkit.polling import eventually
from testkit.ssh_pair import Door

class Counting(asyncssh.SSHClientSession):
    def __init__(self): self.got=0; self.ended=asyncio.Event()
    def connection_made(self, chan): self.chan=chan; 
    def session_started(self): self.chan.pause_reading()
    def data_received(self, data, datatype): self.got+=len(data)
    def connection_lost(self, exc): self.ended.set()

async def test_flush():
    door=Door()
    async with door.connect() as client:
        (ssh,) = door.handler._connections
        chan, s = await client.create_session(Counting, "head -c 1000000 /dev/zero", encoding=None, window=65536)
        (session,) = ssh.sessions
        await eventually(lambda: session._channel_paused, "it is full")
        ssh.pause_writing()
        await eventually(lambda: chan._recv_window==0,"all is here")
        chan.resume_reading()
        await eventually(lambda: session._channel._send_window>0, "the client has room")
        print(session._channel._send_window, session._channel._send_buf_len)
        ssh.resume_writing()
        async with asyncio.timeout(3):
            await s.ended.wait()
        assert s.got==1000000
    await door.aclose()
