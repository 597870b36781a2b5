"""Where things lie: the folder of this checkout, and what is below it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
