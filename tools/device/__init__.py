"""The client as a service of a board: installed, updated with a way back, and removed.

Standard library only, so that it runs from a wheel before anything is installed:

    sudo env PYTHONPATH=wheels/sparsefleet-....whl python3 -m tools.device install --wheels wheels --config client.toml
"""
