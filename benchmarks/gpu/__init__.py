"""Checks and times the GPU engine in one run: ``python -m benchmarks.gpu``."""
