"""Benchmark harness for customizing text-to-image models."""
