"""The first code inside a simulated enclave: tie it to its daemon, import only trusted trees, run the entry module.

Runs as a script of the copied interpreter, isolated and without site: `boot.py DAEMON_PID SITE CODE ENTRY ARGUMENTS…`.
It is measured, and imports nothing but the standard library.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def main() -> None:
    """Become the entry module."""
    daemon, site, code, entry, *arguments = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    # Die with the daemon (kill -9 included), leave no core dump, let no debugger in.
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != int(daemon):
        sys.exit("the platform's daemon is gone")
    os.environ.pop("LD_PRELOAD", None)
    sys.path[:] = [code, *sys.path, site]
    sys.argv = [entry, *arguments]
    runpy.run_module(entry, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
