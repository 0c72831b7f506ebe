"""What people run: the sparsefleet command and what is behind each subcommand."""
