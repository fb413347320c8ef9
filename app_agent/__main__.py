"""`python -m attestgate.app_agent SETTINGS`: the program in the enclave."""

from __future__ import annotations

import sys

from attestgate.app_agent.main import main

sys.exit(main(sys.argv[1:]))
