"""ProxSkip's control variates within the one fixed mask of FedPaI: all that moves has K coordinates.

Nobody has published this combination. Control variates shrink by the density, the way down is as
sparse as the way up, indices travel once, and nothing is pruned between client and mean, so that the
control variates sum to zero exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import msgspec

from protocol.layout import Layout, Vector
from protocol.method import Global, LocalTraining, Mean, Memory, Turn
from protocol.methods.fedpai import SCORE, FedPaI
from protocol.methods.proxskip import ProxSkip
from protocol.sparse import SparseVector


class FedPaIProxSkip(ProxSkip, frozen=True):
    """ProxSkip's hyperparameters, and those of the score that makes the mask."""

    name: ClassVar[str] = "fedpai_proxskip"
    trains_dense: ClassVar[bool] = False
    fixed_mask: ClassVar[bool] = True

    variant: Literal["dense"] = "dense"
    score: Literal["grasp", "snip", "synflow", "magnitude", "random"] = "grasp"
    examples_per_class: Annotated[int, msgspec.Meta(ge=1)] = 10
    floor: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None

    @property
    def pai(self) -> FedPaI:
        """The method that makes the mask."""
        return FedPaI(
            self.density, score=self.score, examples_per_class=self.examples_per_class, floor=self.floor
        )

    @property
    def first_round(self) -> int:
        """As FedPaI."""
        return self.pai.first_round

    def stage(self, round_number: int) -> str:
        """As FedPaI."""
        return self.pai.stage(round_number)

    def begin(self, layout: Layout, initial: Vector) -> Global:
        """As FedPaI."""
        return self.pai.begin(layout, initial)

    # Client half

    def client(
        self, turn: Turn, received: Mapping[str, SparseVector], local: LocalTraining, memory: Memory
    ) -> SparseVector:
        """Score, then skip."""
        half = self.pai.client if turn.stage == SCORE else super().client
        return half(turn, received, local, memory)

    # Server half

    def weight(self, turn: Turn, num_examples: int) -> int:
        """Scores count alike."""
        return 1 if turn.stage == SCORE else super().weight(turn, num_examples)

    def upload_size(self, turn: Turn, layout: Layout) -> tuple[int, int]:
        """Scores, or a model."""
        return self.pai.upload_size(turn, layout)

    def aggregate(self, turn: Turn, current: Global, mean: Mean, layout: Layout) -> Global:
        """Make the mask, then average."""
        half = self.pai.aggregate if turn.stage == SCORE else super().aggregate
        return half(turn, current, mean, layout)

    def alarm(self, current: Global, layout: Layout) -> str:
        """What breaks either half."""
        return super().alarm(current, layout) or self.pai.alarm(current, layout)
