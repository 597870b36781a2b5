"""All records as one table: python -m bench.table --where method=pair,dreambooth --latex table.tex"""

from __future__ import annotations

import sys

from bench.analysis.table import main
from bench.contracts import BenchError

if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"bench.table: {error}")
