"""What gives callers hands on this machine, where the configuration turns it on: ``fs/*`` and ``exec/run``."""

import logging
import os
import pwd
from pathlib import Path
from typing import Any

from alknet.clock import Clock
from alknet.config.model import Settings
from alknet.gate import Gate
from alknet.logs import event
from alknet.services.exec import ExecService
from alknet.services.files import Files
from alknet.services.files_drafts import Uploads
from alknet.services.files_reading import FileReader
from alknet.services.files_roots import Root
from alknet.services.files_writing import FileWriter

__all__ = ["MachineServices"]

log = logging.getLogger("alknet.services")


class MachineServices:
    """What lives as long as the node: the commands that run, the uploads that are unfinished. `home` is the node's.

    `protected` are the paths that only ``owner`` may reach, whatever serves files.
    """

    def __init__(self, gate: Gate, clock: Clock, home: Path) -> None:
        self._gate = gate
        self.protected = (str(home), os.path.join(_own_home(), ".ssh"))
        self._uploads = Uploads(clock)
        self._exec = ExecService(gate)

    def of(self, settings: Settings) -> tuple[Any, ...]:
        """The services that are on; changes nothing, so that they may be made for settings that are then refused."""
        services: list[Any] = []
        if settings.fs.roots:
            roots = [Root.of(name, root.path, writable=root.write) for name, root in settings.fs.roots.items()]
            files = Files(self._gate, roots, protected=self.protected)
            services += [FileReader(files), FileWriter(files, self._uploads)]
        if settings.exec.enabled:
            services.append(self._exec)
        return tuple(services)

    def apply(self, settings: Settings) -> None:
        """These settings are in force. A root that is not there is no mistake, for it may be mounted later, but it may
        be one."""
        for name, root in settings.fs.roots.items():
            if not os.path.isdir(root.path):
                log.warning(event("this root is no directory", setting=f"fs.roots.{name}", path=root.path))
        self._exec.env_allow = settings.ssh.env_allow

    def recheck(self) -> None:
        """What is allowed may have changed."""
        self._exec.recheck()

    def expire(self) -> None:
        """Give up what has been left alone for long; call it now and then."""
        self._uploads.expire()

    def close(self) -> None:
        """End what runs and give up what is unfinished; idempotent."""
        self._exec.close()
        self._uploads.close()


def _own_home() -> str:
    """The home directory of the user that the node runs as, whatever HOME says."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return os.path.expanduser("~")
