"""What we know of each board: one TOML file per board, with the origin of its figures.

    profile = detect()            # the machine this runs on; "unknown" rather than an error
    profile = load("rpi5")        # by name

A profile says which power sources the board has, in order of preference, and what each leaves out.
Its watts are used where there is no sensor: published or guessed, never measured on the machine at
hand, and the relative uncertainty says how far that carries; what nobody published is left out. To
add a board, add its file; nothing else changes.
"""

from device_profiles.profile import PowerSource, Profile, detect, load, machine_name, names

__all__ = ["PowerSource", "Profile", "detect", "load", "machine_name", "names"]
