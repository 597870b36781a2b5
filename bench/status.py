"""How sweeps stand, from any machine that sees their folder: python -m bench.status"""

from __future__ import annotations

import sys

from bench.contracts import BenchError
from bench.sweeps.status import main

if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench.status: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
