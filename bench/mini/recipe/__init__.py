"""Rebuilds every weight of `mini` from nothing: `python -m bench.mini.recipe --out DIR`."""
