"""SFTP and scp, served from one directory and nothing outside of it, by a process of their own.

Promise: whatever a client sends, no path, link or race leads out of the root that the process was given, nor to what
is out of reach (:mod:`alknet.guard`); nothing is opened or changed before the node has said yes to it; a refusal says
why. May import leaf modules, and loads neither an event loop nor a library that is slow to load: a process starts for
each session, and has all its modules before it becomes the peer's user.

Start with :mod:`alknet.ssh.files.child` (the process), then :mod:`alknet.ssh.files.confined` (the files) on
:mod:`alknet.ssh.files.places` (how a path is reached, and why nothing else is):

* :mod:`alknet.ssh.files.packets`, :mod:`alknet.ssh.files.attributes`: SFTP version 3 on the wire, without I/O;
  :mod:`alknet.ssh.files.server` answers its requests, :mod:`alknet.ssh.files.extensions` those that OpenSSH and alknet
  have added; :mod:`alknet.ssh.files.listing` names and describes what is in a directory.
* :mod:`alknet.ssh.files.scp`: the older protocol, both directions; :mod:`alknet.ssh.files.scp_command` reads its
  command line, :mod:`alknet.ssh.files.scp_source` sends files.
* :mod:`alknet.ssh.files.questions`: how the node is asked, and hears what became of it.
"""
