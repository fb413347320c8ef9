"""What hostile parties cost those who are honest: python -m bench.hostile [--seconds N] [--only NAME] [--quick]

Three parts, each in processes of its own: `messages`, the costliest message of each step (bench.hostile_messages);
`floods`, by one stolen bus credential of each role (bench.hostile_floods); `door`, slow and silent clients at the
gateway (bench.hostile_door). The exit status is 1 if a goal is missed. `--only` is a part, or a part of a flood's name.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from attestgate.bus.server.embedded import die_with_parent

PARTS = ("messages", "floods", "door")


def part(name: str, *arguments: str) -> bool:
    """Run one part to its end; whether it met its goals."""
    print(f"== {name}", flush=True)
    command = [sys.executable, "-m", f"bench.hostile_{name}", *arguments]
    return subprocess.run(command, preexec_fn=die_with_parent(), check=False).returncode == 0


def main() -> None:
    """Run the parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="of each of the two floods of a row")
    parser.add_argument("--only", default="", help=f"one of {', '.join(PARTS)}, or floods with this in their name")
    parser.add_argument("--quick", action="store_true", help="a few seconds each")
    given = parser.parse_args()
    quick = ["--quick"] if given.quick else []
    floods = [*quick, *(["--seconds", str(given.seconds)] if given.seconds else [])]
    if given.only and given.only not in PARTS:
        sys.exit(not part("floods", *floods, "--only", given.only))
    arguments = {"messages": [], "floods": floods, "door": quick}
    chosen = [name for name in PARTS if given.only in ("", name)]
    met = [part(name, *arguments[name]) for name in chosen]
    sys.exit(not all(met))


if __name__ == "__main__":
    main()
