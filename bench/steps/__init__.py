"""The steps of a cell, a module for each: identify, load, baseline, train, sample, score, record (see bench/run.py)."""
