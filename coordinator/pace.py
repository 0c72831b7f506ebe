"""Boards of unequal speed finish together: fewer local steps for slower ones. Pure.

A client that makes fewer steps moves less, so a plain mean would lean towards fast boards' data. FedNova
(Wang et al., 2020, arXiv 2007.07481) weighs each client's mean *step* by its examples instead. Here each
update's weight is multiplied by what its client was spared,

    weight = examples * |a(full)| / |a(made)|,    |a(t)| = (t - rho (1 - rho^t) / (1 - rho)) / (1 - rho)

with rho the momentum and |a(t)| the sum of the shares with which t gradients enter the update (t without
momentum). That is FedNova whose effective number of steps is a harmonic mean, and optimises the same
objective as the run in which nobody was spared any; without spared steps it is plain FedAvg.
"""

from __future__ import annotations

import math

LEAST_SHARE = 0.25  # Of the full steps: beyond a factor of four, a few noisy steps would stand for many.
ROUNDING = 1e-6  # Of a quotient of floats.
FINENESS = 16  # Weights are integers: multiplied by it, rounding changes them by less than a thirtieth.


def local_steps(full: int, step_s: float | None, target_s: float) -> int:
    """Return how many of `full` steps fit into `target_s`; all, where a step's time is not known."""
    if step_s is None or step_s * full <= target_s:
        return full
    return min(full, max(least_steps(full), int(target_s / step_s + ROUNDING)))


def least_steps(full: int) -> int:
    """Return how many of `full` steps everybody makes, however slow."""
    return max(1, math.ceil(LEAST_SHARE * full))


def entering(steps: int, momentum: float) -> float:
    """Return |a(steps)|: how much of a gradient enters an update, summed over its steps."""
    if momentum == 0:
        return float(steps)
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def weight(plain: int, full: int, made: int, momentum: float) -> int:
    """Return the weight of an update whose plain one is `plain` and whose client made `made` of `full` steps."""
    return max(1, round(FINENESS * plain * entering(full, momentum) / entering(made, momentum)))
