"""Experiments that support a claim: each is one command, and says what it found."""
