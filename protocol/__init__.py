"""What coordinator, client and exporter agree upon: types, bytes, messages, methods.

This package imports nothing else of ours, and neither torch nor onnxruntime: it must load on a
board with 512 MB in a fraction of a second, and be the same code on both ends of the wire.
"""

PROTOCOL_VERSION = 1
"""First number of every topic. A change that an old device cannot read increases it."""
