"""What a card gets so that a board configures itself at its first boot: one file for each way in.

A variant (firstrun.py, cloud_init.py, jetson.py) turns `Settings` into a list of `File`s, and reads and writes
nothing; payload.py is what all of them bring; command.py looks at the card and writes.
"""
