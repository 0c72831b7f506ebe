"""FedPaI (Wang et al., 2025, arXiv 2504.00308): prune at initialisation with GraSP, then train sparse.

FedPaI-U, the unstructured variant. Two modes differ in whose mask it is:

- masks = "shared" (our default): round 0 collects every client's scores, and their mean gives one
  mask for all. Indices travel once.
- masks = "personal" (the paper's): each client keeps the mask of its own scores, uploads weights on
  it, and the server keeps the top kappa = density * N of the plain mean. With non-IID clients the
  masks barely overlap, and the mean shrinks what few clients hold: measure before you choose.

Other scores than GraSP's are in saliency.py. Those that need no data need no round 0 either: the
server computes the mask. With score = "snip" and a shared mask this is SSFL (Ohib et al., 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from protocol.errors import ConfigError
from protocol.layout import Layout, Vector
from protocol.messages import Training
from protocol.method import TRAIN, Batch, Global, LocalTraining, Mean, Memory, Method, Turn
from protocol.pruning import emptied, floor_of, largest
from protocol.saliency import grasp, snip, without_data
from protocol.sparse import Indices, Mask, SparseVector, num_kept, top_k

SCORE = "score"
SCORES = "scores"  # State: those of the kept weights, which rank them (`nested`).


class FedPaI(Method, frozen=True):
    """The method's hyperparameters; the paper's defaults."""

    name: ClassVar[str] = "fedpai"
    device_floats: ClassVar[int] = 5

    density: Annotated[float, msgspec.Meta(gt=0, le=1)]
    masks: Literal["shared", "personal"] = "shared"
    score: Literal["grasp", "snip", "synflow", "magnitude", "random"] = "grasp"
    temperature: Annotated[float, msgspec.Meta(gt=0)] = 200.0  # Of the logits in GraSP's loss.
    examples_per_class: Annotated[int, msgspec.Meta(ge=1)] = 10  # Fewer where a client has fewer.
    # Not in the paper: least share of the density that each layer keeps; without a value 0.5 for small models, else 0.
    floor: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None

    @property
    def needs_data(self) -> bool:
        """Whether clients score."""
        return self.score in ("grasp", "snip")

    @property
    def first_round(self) -> int:
        """Round 0 collects scores for the shared mask."""
        return 0 if self.masks == "shared" and self.needs_data else 1

    @property
    def fixed_mask(self) -> bool:
        """The shared mask is fixed; the top kappa of personal ones moves."""
        return self.masks == "shared"

    def check(self, training: Training, download_values: str) -> None:
        """Personal masks come from personal data."""
        if self.masks == "personal" and not self.needs_data:
            raise ConfigError(f"score = {self.score!r} is the same for all clients: use masks = 'shared'")

    def stage(self, round_number: int) -> str:
        """Score once, then train."""
        return SCORE if round_number == 0 else TRAIN

    def begin(self, layout: Layout, initial: Vector) -> Global:
        """Start dense until scores have come, or at the mask that needs none."""
        if self.needs_data:
            return Global(initial, Mask.full(layout.size))
        mask = Mask.of_model(without_data(self.score, layout, initial, self.density), layout)
        return _ranked(initial, mask, np.abs(initial), layout)

    def broadcast(
        self, turn: Turn, current: Global, initial: Vector, layout: Layout
    ) -> dict[str, SparseVector]:
        """Send the global weights; personal masks are scored on the initial ones."""
        bodies = {"weights": current.vector}
        if self.masks == "personal":
            bodies["initial"] = SparseVector(Mask.full(initial.size), initial)
        return bodies

    @property
    def tolerates_staleness(self) -> bool:
        """With one mask, uploads are changes within it."""
        return self.masks == "shared"

    @property
    def unequal_steps(self) -> bool:
        """Personal weights count once per client, however far they went."""
        return self.masks == "shared"

    @property
    def nests(self) -> bool:
        """The scores of the shared mask rank its weights."""
        return self.masks == "shared"

    def nested(self, current: Global, share: float, layout: Layout) -> Mask:
        """Keep the largest scores; not in the paper. A layer keeps its floor."""
        stored = current.mask.below(layout.num_prunable)
        floor = floor_of(self.floor, layout)
        places = largest(current.state[SCORES], stored, layout, share * self.density, floor=floor)
        return Mask.of_model(stored.indices[places], layout)

    # Client half

    def inputs(self, turn: Turn, memory: Memory) -> tuple[str, ...]:
        """The initial weights are needed only until the personal mask exists."""
        if self.masks == "personal" and "mask" not in memory:
            return ("weights", "initial")
        return ("weights",)

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Return scores, or what training changed (shared), or the trained weights (personal)."""
        layout, weights = local.layout, received["weights"]
        if turn.stage == SCORE:
            batches = local.scoring_batches(self.examples_per_class)
            return SparseVector(Mask.full(layout.num_prunable), self.scores(weights, batches, local))
        if self.masks == "shared":
            return SparseVector(weights.mask, local.fit(weights).values - weights.values)
        if "mask" not in memory:
            batches = local.scoring_batches(self.examples_per_class)
            scores = self.scores(received["initial"], batches, local)
            memory["mask"] = self.places(scores, layout)
        return local.fit(weights.restrict(Mask.of_model(memory["mask"], layout)))

    def scores(self, model: SparseVector, batches: Sequence[Batch], local: LocalTraining) -> Vector:
        """Return the scores of a dense model's prunable weights; the largest are kept."""
        if self.score == "snip":
            return snip(model, batches, local)
        return grasp(model, batches, local, self.temperature)

    def places(self, scores: npt.NDArray[np.floating], layout: Layout) -> Indices:
        """Return the prunable positions that scores of the client's data keep."""
        everywhere = Mask.full(layout.num_prunable)
        return largest(scores, everywhere, layout, self.density, floor=floor_of(self.floor, layout))

    # Server half

    def weight(self, turn: Turn, num_examples: int) -> int:
        """Scores and personal weights count once per client, as in the paper; deltas by examples."""
        return num_examples if turn.stage == TRAIN and self.masks == "shared" else 1

    def upload_size(self, turn: Turn, layout: Layout) -> tuple[int, int]:
        """Scores of the prunable weights, or a model."""
        if turn.stage == SCORE:
            return layout.num_prunable, layout.num_prunable
        return layout.size, layout.num_prunable

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Take the mask from the mean score; add the mean delta; or keep the top kappa of the mean."""
        if turn.stage == SCORE:
            mask = Mask.of_model(self.places(mean.values, layout), layout)
            return _ranked(current.weights, mask, mean.values, layout)
        if self.masks == "shared":
            moved = mean.values
            if mean.coverage is not None:  # Of those that trained each weight.
                moved = np.divide(moved, mean.coverage, out=np.zeros_like(moved), where=mean.coverage > 0)
            return Global((current.weights + moved).astype(np.float32), current.mask, current.state)
        weights = mean.values.astype(np.float32)
        kept = num_kept(self.density, layout.num_prunable)
        mask = Mask.of_model(top_k(np.abs(weights[: layout.num_prunable]), kept), layout)
        return Global(SparseVector.of(weights, mask).dense(), mask)

    def alarm(self, current: Global, layout: Layout) -> str:
        """A layer without weights passes nothing on: the model answers with chance."""
        return emptied(current.mask, layout)


def _ranked(weights: Vector, mask: Mask, scores: npt.NDArray[np.floating], layout: Layout) -> Global:
    """The dense weights within a mask, and its scores."""
    kept = scores[mask.below(layout.num_prunable).indices].astype(np.float32)
    return Global(SparseVector.of(weights, mask).dense(), mask, {SCORES: kept})
