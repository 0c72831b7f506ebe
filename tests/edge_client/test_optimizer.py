from __future__ import annotations

import numpy as np
import pytest
import torch

from edge_client.optimizer import Sgd
from protocol.messages import Training


@pytest.mark.parametrize("size", [1, 17, 1000])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.01)])
def test_steps_are_those_of_torch(size, momentum, weight_decay):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(size).astype(np.float32)
    theirs = torch.tensor(weights, requires_grad=True)
    reference = torch.optim.SGD([theirs], lr=0.1, momentum=momentum, weight_decay=weight_decay)
    training = Training(
        local_epochs=1, batch_size=1, learning_rate=0.1, momentum=momentum, weight_decay=weight_decay
    )
    ours = Sgd(training, size)
    for _ in range(5):
        gradient = rng.standard_normal(size).astype(np.float32)
        theirs.grad = torch.tensor(gradient)
        reference.step()
        ours.step(weights, gradient)
        np.testing.assert_allclose(weights, theirs.detach().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "wrong", [np.zeros(3, np.float64), np.zeros(4, np.float32), np.zeros(6, np.float32)[::2]]
)
def test_another_array_is_refused_before_the_library_reads_it(wrong):
    optimizer = Sgd(Training(local_epochs=1, batch_size=1, learning_rate=0.1), 3)
    with pytest.raises(ValueError, match="expected 3 contiguous float32"):
        optimizer.step(np.zeros(3, np.float32), wrong)
    with pytest.raises(ValueError, match="expected 3 contiguous float32"):
        optimizer.step(wrong, np.zeros(3, np.float32))
