#!/bin/sh
# Install the sparsefleet client from the folder that holds this script. Needs root, but no network.
# What is secret is removed from the folder once it is installed. Arguments go to `sparsefleet device install`.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

# The wheels are for this Python and no other.
python=
for candidate in "python@PYTHON@" python3 /usr/local/bin/python@PYTHON@ "$HOME/.local/bin/python@PYTHON@"; do
    if "$candidate" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "@PYTHON@")' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if test -z "$python"; then
    echo "Python @PYTHON@ is not here: this card was prepared for another system." >&2
    echo "On JetPack 4 and 5: curl -LsSf https://astral.sh/uv/install.sh | sh; uv python install @PYTHON@" >&2
    exit 2
fi

set -- --config "$here/client.toml" "$@"
if test -f "$here/broker-ca.pem"; then set -- --ca "$here/broker-ca.pem" "$@"; fi
if test -f "$here/data.npz"; then set -- --data "$here/data.npz" "$@"; fi
PYTHONPATH=$(echo "$here"/wheels/sparsefleet-*.whl) "$python" -m tools.device install --wheels "$here/wheels" "$@"
rm -f "$here/client.toml" "$here/data.npz"
