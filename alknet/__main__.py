"""``python -m alknet``: the same as the ``alknet`` command."""

from alknet.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
