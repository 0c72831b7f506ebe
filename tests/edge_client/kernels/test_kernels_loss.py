"""SoftmaxCrossEntropy and its gradient against the reference, torch and arithmetic by hand."""

import numpy as np
import pytest

from edge_client.kernels import reference


def test_loss_by_hand(run_op):
    # softmax of (0, ln 3) is (1/4, 3/4); the labels pick 1/4 and 3/4.
    scores = np.log([[1.0, 3.0], [1.0, 3.0]]).astype(np.float32)
    labels = np.array([0, 1])
    loss, log_prob = run_op("SoftmaxCrossEntropy", scores, labels)
    assert loss.shape == ()
    np.testing.assert_allclose(loss, -(np.log(1 / 4) + np.log(3 / 4)) / 2, rtol=1e-6)
    np.testing.assert_allclose(np.exp(log_prob), [[1 / 4, 3 / 4], [1 / 4, 3 / 4]], rtol=1e-6)
    (d_scores,) = run_op("SoftmaxCrossEntropyGrad", np.array(2, np.float32), log_prob, labels)
    # 2 / N * (softmax - one-hot), N = 2
    np.testing.assert_allclose(d_scores, [[-3 / 4, 3 / 4], [1 / 4, -1 / 4]], rtol=1e-6)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 10), (7, 2), (16, 10), (33, 100)])
def test_loss_agrees_with_the_reference_and_torch(n, k, run_op, import_torch, rng):
    scores = (30 * rng.standard_normal((n, k))).astype(np.float32)
    labels = rng.integers(0, k, n)
    loss, log_prob = run_op("SoftmaxCrossEntropy", scores, labels)
    for actual, expected in zip(
        (loss, log_prob), reference.softmax_cross_entropy(scores, labels), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    (d_scores,) = run_op("SoftmaxCrossEntropyGrad", np.array(0.5, np.float32), log_prob, labels)
    expected = reference.softmax_cross_entropy_grad(np.array(0.5, np.float32), log_prob, labels)
    np.testing.assert_allclose(d_scores, expected, rtol=1e-5, atol=1e-7)

    torch = import_torch()
    x = torch.tensor(scores, requires_grad=True)
    torch_loss = torch.nn.functional.cross_entropy(x, torch.tensor(labels))
    (0.5 * torch_loss).backward()
    np.testing.assert_allclose(loss, torch_loss.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(d_scores, x.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_huge_scores_do_not_overflow(run_op):
    loss, log_prob = run_op("SoftmaxCrossEntropy", np.array([[3e38, -3e38]], np.float32), np.array([0]))
    assert loss == 0
    assert log_prob[0, 0] == 0


@pytest.mark.parametrize("label", [-1, 3, 2**40])
def test_a_label_out_of_range_names_row_and_value_and_the_session_survives(label, make_node, rng):
    scores = rng.standard_normal((4, 3)).astype(np.float32)
    good, bad = np.array([0, 1, 2, 0]), np.array([0, 1, label, 0])
    message = f"label {label} in row 2 is not one of the 3 classes"
    node = make_node("SoftmaxCrossEntropy", (scores, good))
    loss, log_prob = node(scores, good)
    with pytest.raises(Exception, match=message):
        node(scores, bad)
    assert node(scores, good)[0] == loss
    one = np.array(1, np.float32)
    gradient = make_node("SoftmaxCrossEntropyGrad", (one, log_prob, good))
    with pytest.raises(Exception, match=message):
        gradient(one, log_prob, bad)
    assert np.isfinite(gradient(one, log_prob, good)[0]).all()


def test_wrong_shapes_are_errors(run_op):
    scores, labels = np.zeros((4, 3), np.float32), np.zeros(4, np.int64)
    for message, inputs in [
        (r"labels has shape \[3\], expected \[4\]", (scores, labels[:3])),
        (r"scores has shape \[4\], expected \[N, K\]", (scores[:, 0], labels)),
        (r"scores has shape \[0, 3\], expected \[N, K\] with N, K >= 1", (scores[:0], labels[:0])),
    ]:
        with pytest.raises(Exception, match=message):
            run_op("SoftmaxCrossEntropy", *inputs)
    with pytest.raises(Exception, match=r"dloss has shape \[2\], expected a scalar"):
        run_op("SoftmaxCrossEntropyGrad", np.zeros(2, np.float32), scores, labels)
