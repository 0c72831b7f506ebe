"""What travels down to a client for its task: the artifact's files, and bodies with the masks they refer to."""

from __future__ import annotations

import hashlib
from collections import Counter

from edge_client.link import Link
from edge_client.spool import Spool
from protocol import codec
from protocol.artifact import MANIFEST, Manifest, check, parse
from protocol.errors import DigestMismatch
from protocol.layout import Layout
from protocol.messages import Task
from protocol.seeded import initial
from protocol.sparse import Mask, SparseVector

MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = 256 << 20


class Downloads:
    """Fetches each thing once; all of it raises what `Link.fetch` raises."""

    def __init__(self, link: Link, spool: Spool) -> None:
        """Nothing is here but what the spool has."""
        self._link, self._spool = link, spool
        self.fixed: dict[str, Mask] = {}  # The run's fixed mask, under the digest of its body and its own.
        self._masks: dict[str, Mask] = {}  # And the last round's: what bodies may refer to.

    def manifest(self, task: Task) -> Manifest:
        """Return the task's manifest."""
        return self._spool.manifest(task.artifact.digest) or parse(
            self._link.fetch(task.artifact, MAX_MANIFEST_BYTES)
        )

    def artifact(self, task: Task, manifest: Manifest, names: tuple[str, ...]) -> None:
        """Fetch what a runtime needs of the artifact.

        Raises:
            ArtifactError: a file is not what the manifest says.
        """
        digest = task.artifact.digest
        folder = self._spool.artifact_folder(digest)
        for name in names:
            entry = manifest.file(name)
            if not (folder / name).is_file():
                data = self._link.fetch(entry.ref, MAX_FILE_BYTES)
                self._spool.keep_file(digest, name, data)
            check(folder / name, entry)
        if not (folder / MANIFEST).is_file():  # Last: a manifest that is there vouches for the rest.
            self._spool.keep_file(digest, MANIFEST, manifest.raw)

    def bodies(self, task: Task, names: tuple[str, ...], manifest: Manifest) -> dict[str, bytes]:
        """Fetch bodies by name, and the mask they refer to."""
        limit = codec.max_body_bytes(manifest.layout.size)
        mask = task.blobs.get("mask")
        if mask is not None and mask.digest not in self._masks:
            vector = self._decode(self._link.fetch(mask, limit), manifest)
            # Under the digest of its body and of itself: tasks name the one, bodies the other.
            self.fixed = {mask.digest: vector.mask, vector.mask.digest: vector.mask}
            self._masks = dict(self.fixed)
        wanted = {name: task.blobs[name] for name in names if name in task.blobs}
        uses = Counter(ref.digest for ref in wanted.values())
        for name, ref in wanted.items():
            if task.bases.get(name) in self._masks and uses[ref.digest] == 1:
                wanted[name] = task.blobs[f"{name}.change"]
        # Once where two names mean one body: a client that was averaged last has the weights for its mean.
        distinct = {ref.digest: ref for ref in wanted.values()}
        fetched = {digest: self._link.fetch(ref, limit) for digest, ref in distinct.items()}
        return {name: fetched[ref.digest] for name, ref in wanted.items()}

    def vectors(
        self, task: Task, names: tuple[str, ...], bodies: dict[str, bytes], manifest: Manifest
    ) -> dict[str, SparseVector]:
        """Decode the bodies, and draw what is the initial model.

        Raises:
            MalformedMessage, LimitExceeded: a body is none (protocol/codec.py).
            DigestMismatch: the model that is drawn here is not the coordinator's.
        """
        found = {name: self._decode(data, manifest) for name, data in bodies.items()}
        return found | {name: _drawn(task, manifest.layout) for name in names if name in task.seeded}

    def remember(self, mask: Mask | None) -> None:
        """Keep this round's mask: the next one's weights may come as its change."""
        self._masks = {**self.fixed, **({} if mask is None else {mask.digest: mask})}

    def _decode(self, data: bytes, manifest: Manifest) -> SparseVector:
        layout = manifest.layout
        ends = layout.ends_of(layout.num_prunable)
        return codec.decode(data, layout.size, layout.num_prunable, self._masks, ends=ends)


def _drawn(task: Task, layout: Layout) -> SparseVector:
    if task.initial is None:
        raise DigestMismatch("the task names bodies that are the initial model, but not its seed")
    flat = initial(layout, task.initial.seed, task.initial.gain)
    digest = hashlib.sha256(flat.astype("<f4").tobytes()).hexdigest()
    if digest != task.initial.digest:
        raise DigestMismatch(
            f"the initial model drawn here is {digest[:12]}..., the coordinator's {task.initial.digest[:12]}...: "
            "do both run the same version of sparsefleet?"
        )
    return SparseVector(Mask.full(layout.size), flat)
