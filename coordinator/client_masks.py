"""Each client's last own mask, which its next body may refer to, in bounded memory.

Where clients have masks of their own, their positions need not travel twice. A thousand clients' masks of a large model
would be gigabytes: what does not fit is not kept, and the receipt says so, so that the client sends positions again.
"""

from __future__ import annotations

from protocol.sparse import Mask

MOST_BYTES = 32 << 20


class ClientMasks:
    """Client -> mask."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        """Nothing is kept."""
        self._masks: dict[str, Mask] = {}
        self._lost: set[str] = set()  # Whose last mask found no room.
        self._room_bytes = most_bytes

    def get(self, client_id: str) -> Mask | None:
        """Return a client's mask, if it was kept."""
        return self._masks.get(client_id)

    def knows(self, client_id: str) -> bool:
        """Whether a client's next body may refer to the mask of its last one."""
        return client_id not in self._lost

    def keep(self, client_id: str, mask: Mask, common: Mask | None) -> bool:
        """Replace a client's mask; return whether it is kept. The `common` one is known anyway."""
        old = self._masks.pop(client_id, None)
        if old is not None:
            self._room_bytes += old.indices.nbytes
        self._lost.discard(client_id)
        if common is not None and mask.same(common):
            return True
        if mask.indices.nbytes > self._room_bytes:
            self._lost.add(client_id)
            return False
        self._room_bytes -= mask.indices.nbytes
        self._masks[client_id] = mask
        return True
