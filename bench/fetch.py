"""Datasets and weights, staged on this machine and verified: python -m bench.fetch parkhouse"""

from __future__ import annotations

import sys

from bench.data.fetch import main

if __name__ == "__main__":
    sys.exit(main())
