"""Measurements: always a ratio of medians within one process, never an absolute time alone."""
