"""The command line: ``main(argv)`` parses, calls, and returns an exit code.

Subcommands are loaded when they are called, so that ``alknet --help`` does not pay for them. What a subcommand does
lives elsewhere; here is only how it is asked for and shown.
"""

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code of the table in the README."""
    from alknet.cli.app import run

    return run(argv)
