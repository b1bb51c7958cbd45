"""SSH: the door for stock clients, and the client behind ``alknet ssh``.

Promise: nobody gets further than their login without a decision of the gate; a refusal says why and carries its
denial id; what a session runs ends with its connection. Built on asyncssh, whose connection objects take any byte
stream that :mod:`alknet.alpn` carries. May import :mod:`alknet.alpn` and leaf modules, never :mod:`alknet.call`.

:mod:`alknet.plan`, :mod:`alknet.runas` and :mod:`alknet.child` say what is run, as whom and how, here and elsewhere.

Start with :mod:`alknet.ssh.handler` (the door), then :mod:`alknet.ssh.login` (who gets in),
:mod:`alknet.ssh.connection` (limits), :mod:`alknet.ssh.session` (one channel) and :mod:`alknet.ssh.program` (what runs
on it), :mod:`alknet.ssh.forwarding` (ports and sockets), :mod:`alknet.ssh.files` (the process that serves files). The
client's side: :mod:`alknet.ssh.client`, :mod:`alknet.ssh.client_forwards`, :mod:`alknet.ssh.transfer`.
"""
