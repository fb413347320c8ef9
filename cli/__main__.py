"""`python -m cli`: the same as the command `attestgate`."""

from cli.main import run

run()
