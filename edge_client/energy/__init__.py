"""Joules per phase: what a sensor or model says, how sure it is, and never a guess in its place."""
