"""Faults on purpose: a proxy between clients and broker, and signals to processes (docs/chaos.md)."""
