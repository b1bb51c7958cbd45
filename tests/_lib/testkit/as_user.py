"""Run the alknet command as another operating-system user: ``python as_user.py USER ARGUMENT…`` (as root).

Everything is imported before the privileges are dropped, because the interpreter may live where that user cannot read.
"""

import importlib
import os
import pkgutil
import pwd
import sys


def main() -> int:
    """Become the user for good, then run the command line."""
    import encodings.ascii
    import encodings.idna
    import encodings.latin_1  # noqa: F401

    import asyncssh  # noqa: F401
    import tomlkit  # noqa: F401
    import uvloop  # noqa: F401
    import watchfiles  # noqa: F401

    import alknet

    for package in ("alknet", "alknet.cli", "alknet.alpn", "alknet.config", "alknet.ssh"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            if module.name != "__main__":
                importlib.import_module(f"{package}.{module.name}")
    assert alknet.__version__
    user = pwd.getpwnam(sys.argv[1])
    os.initgroups(user.pw_name, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.environ |= {"HOME": user.pw_dir, "USER": user.pw_name, "LOGNAME": user.pw_name}

    from alknet.cli import main as run

    return run(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
