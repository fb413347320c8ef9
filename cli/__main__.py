"""The command `attestgate`, and `python -m attestgate.cli`."""

import sys

INTERRUPTED = 130


def run() -> None:
    """Entry point: see `cli.main.run`. Importing what it needs takes a second, in which Ctrl-C may come already."""
    try:
        from attestgate.cli.main import run as command
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    command()


if __name__ == "__main__":
    run()
