"""Datasets: their files, prompts, images and checksums, and the registry of weights."""
