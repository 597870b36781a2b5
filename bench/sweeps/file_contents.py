"""What the files of a sweep hold: each key and the types of its value."""

from __future__ import annotations

from typing import Any

SHAPE: dict[str, Any] = {  # of sweep.json
    **{"settings": dict, "code": dict, "estimate": (dict, type(None)), "started": (int, float), "mode": str},
    **{"bases": list, "cells": list},
}
WORKER: dict[str, Any] = {  # of workers/*.json
    **{"done": int, "failed": int, "loads": int, "cells": list, "why": str, "gpu": (str, type(None))},
    **{"host": str, "pid": int, "machine": str},
}
