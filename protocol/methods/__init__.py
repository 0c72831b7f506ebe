"""The federated methods, one file each. A new one is a file here and a line in METHODS."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import msgspec

from protocol.errors import ConfigError
from protocol.messages import Setting
from protocol.method import Method
from protocol.methods.early_bird import EarlyBird
from protocol.methods.fedavg import FedAvg
from protocol.methods.feddst import FedDST
from protocol.methods.fedopt import FedOpt
from protocol.methods.fedpai import FedPaI
from protocol.methods.fedpai_proxskip import FedPaIProxSkip
from protocol.methods.fedprox import FedProx
from protocol.methods.flash import Flash
from protocol.methods.gradient_topk import GradientTopK
from protocol.methods.lotteryfl import LotteryFL
from protocol.methods.magnitude import Magnitude
from protocol.methods.proxskip import ProxSkip
from protocol.methods.prunefl import PruneFL
from protocol.methods.scaffold import Scaffold
from protocol.methods.sparsyfed import SparsyFed
from protocol.methods.ssfl import SSFL
from protocol.methods.topk import TopK
from protocol.methods.zerofl import ZeroFL

_ALL: tuple[type[Method], ...] = (
    FedAvg,
    FedPaI,
    EarlyBird,
    SparsyFed,
    Magnitude,
    ProxSkip,
    FedPaIProxSkip,
    TopK,
    GradientTopK,
    FedProx,
    Scaffold,
    FedOpt,
    ZeroFL,
    Flash,
    FedDST,
    LotteryFL,
    PruneFL,
    SSFL,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}


def build(name: str, settings: Mapping[str, Setting]) -> Method:
    """Return the named method with its settings; both ends of the wire call this.

    Raises:
        ConfigError: no such method, an unknown setting (the nearest is named), or a wrong value.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    kind = METHODS[name]
    known = [field.name for field in msgspec.structs.fields(kind)]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(known) or 'none'}"
            raise ConfigError(f"method {name!r} has no setting {key!r}{hint}")
    try:
        return msgspec.convert(dict(settings), kind)
    except msgspec.ValidationError as error:
        raise ConfigError(f"method {name!r}: {error}") from error
