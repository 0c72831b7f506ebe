"""SSFL (Ohib et al., 2024, arXiv 2405.09037): one mask from the clients' mean saliency |g w|, before training."""

from __future__ import annotations

from typing import ClassVar, Literal

from protocol.methods.fedpai import FedPaI


class SSFL(FedPaI, frozen=True):
    """FedPaI with a shared mask of SNIP scores."""

    name: ClassVar[str] = "ssfl"

    masks: Literal["shared"] = "shared"
    score: Literal["snip"] = "snip"
