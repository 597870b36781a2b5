"""How sweeps stand, from any machine that sees their folder: python -m bench.status"""

from __future__ import annotations

import sys

from bench.environment import one_sentence
from bench.sweeps.status import main

if __name__ == "__main__":
    try:
        with one_sentence("bench.status"):
            main()
    except KeyboardInterrupt:
        sys.exit(130)
