"""What we know of each board: one TOML file per board, with the origin of its figures.

    profile = detect()            # the machine this runs on; "unknown" rather than an error
    profile = load("rpi5")        # by name

A profile is used where there is no sensor: its watts are published or guessed, never measured on
the machine at hand, and the relative uncertainty says how far that carries. To add a board, add
its file; nothing else changes.
"""

from device_profiles.profile import Profile, detect, load, names

__all__ = ["Profile", "detect", "load", "names"]
