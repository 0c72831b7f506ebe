"""The device side: a daemon that joins, trains what it is asked to, and reports what that cost."""
