"""Who is there: the clients that have joined and not left."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from protocol.messages import Join, Leave

log = logging.getLogger(__name__)


class Fleet:
    """The population, as the retained states of the clients tell it."""

    def __init__(self) -> None:
        """Nobody is there."""
        self.present: dict[str, Join] = {}
        self._rejections: Counter[str] = Counter()
        self._quarantined: set[str] = set()

    @property
    def trusted(self) -> list[str]:
        """Who is there and not in quarantine."""
        return [client_id for client_id in self.present if client_id not in self._quarantined]

    def distrust(self, client_ids: Iterable[str]) -> None:
        """Put clients in quarantine that were there before a restart."""
        self._quarantined.update(client_ids)

    def reject(self, client_id: str, most: int) -> bool:
        """Count a rejected update; return whether the client is in quarantine from now on."""
        self._rejections[client_id] += 1
        if client_id in self._quarantined or self._rejections[client_id] < most:
            return False
        self._quarantined.add(client_id)
        return True

    def join(self, message: Join) -> bool:
        """Note a client. Return whether it is new or was restarted, rather than announced again."""
        before = self.present.get(message.client_id)
        if before is not None and message.session < before.session:
            return False
        self.present[message.client_id] = message
        return before is None or before.session != message.session

    def leave(self, message: Leave) -> bool:
        """Forget a client. A will that comes after the client's next start or connection is stale."""
        before = self.present.get(message.client_id)
        of = (message.session, message.connection)
        if before is None or of != (before.session, before.connection):
            return False
        del self.present[message.client_id]
        log.info("client left client=%s session=%d", message.client_id, message.session)
        return True
