"""sparsefleet bench: the objects that it prints, with and without the other engines. No test is timed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_client import break_even
from edge_client.kernels import library_path
from protocol.layout import PRUNABLE
from protocol.sparse import Mask
from tools.bench import calibrate, graphs, layers, profile, rivals, roofline, subject, wire
from tools.cli import main

ROOT = Path(__file__).resolve().parent.parent.parent

# Documented in docs/bench.md; other programs read them.
STEP_FIELDS = {
    "sparse_s",
    "dense_torch_s",
    "ratio_torch",
    "dense_ort_training_s",
    "ratio_ort_training",
    "sparseprop_s",
    "ratio_sparseprop",
    "dense_s",
    "ratio_dense",
    "flop_density",
    "peak_rss_bytes",
    "isa",
    "model",
    "batch",
    "density",
    "masks",
    "threads",
    "runtime",
}

# Hides what a board does not have; what is under test must then go on without.
BOARD = """
import sys
for name in ("torch", "onnx", "export", "onnxruntime.training", "sparseprop", "matplotlib"):
    sys.modules[name] = None
from tools.cli import main
sys.exit(main(sys.argv[1:]))
"""


def on_a_board(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BOARD, *arguments], cwd=ROOT, capture_output=True, text=True)


def objects(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_step_is_one_object_with_every_documented_field(capsys):
    command = ["bench", "step", "--model", "cnn", "--batch", "32", "--density", "0.1", "--masks", "erk"]
    assert main([*command, "--threads", "1", "--seconds", "0.01", "--json"]) == 0
    printed = capsys.readouterr()
    (found,) = objects(printed.out)
    assert found.keys() >= STEP_FIELDS
    assert (found["model"], found["batch"], found["density"], found["masks"]) == ("cnn", 32, 0.1, "erk")
    for ratio, side in [("ratio_torch", "dense_torch_s"), ("ratio_dense", "dense_s")]:
        assert found[ratio] == pytest.approx(found[side] / found["sparse_s"])
    # ERK keeps half of the fc layer, which meets one pixel, and 2 % of the large convolution.
    assert found["flop_density"] == pytest.approx(0.034, abs=5e-4)
    assert 1e7 < found["peak_rss_bytes"] < found["bench_peak_rss_bytes"]
    if found["sparseprop_s"] is None:
        assert "sparseprop is null" in printed.err


def test_only_the_sides_that_were_asked_for_are_measured(capsys):
    command = ["bench", "step", "--model", "cnn", "--density", "1", "--seconds", "0.01", "--json"]
    assert main([*command, "--against", "dense"]) == 0
    (found,) = objects(capsys.readouterr().out)
    assert found["dense_s"]
    assert found["dense_torch_s"] is found["ratio_torch"] is found["ratio_ort_training"] is None
    assert found["flop_density"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["step", "--against", "tensorflow"], "the sides are dense_torch"),
        (["step", "--model", "cnn", "--artifact", "x"], "both given"),
        (["step", "--model", "nope"], "unknown model 'nope'"),
        (["layers", "--artifact", "nowhere"], "sparsefleet export"),
        (["--model", "cnn", "step"], "--model: write the options of `bench step` after its name"),
    ],
)
def test_a_wrong_option_is_explained(capsys, arguments, said):
    assert main(["bench", *arguments]) != 0
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("density", ["0", "1.5", "x"])
def test_a_density_is_above_0_and_at_most_1(capsys, density):
    with pytest.raises(SystemExit):
        main(["bench", "gemm", "--density", density])
    assert "is not a density" in capsys.readouterr().err


def test_gemm_counts_three_products(capsys):
    command = ["bench", "gemm", "--size", "64", "--batch", "40", "--density", "0.25", "--seconds", "0.01"]
    assert main([*command, "--json"]) == 0
    (found,) = objects(capsys.readouterr().out)
    operations = 3 * 2 * 40 * 64 * 64
    assert found["ratio_torch"] == pytest.approx(found["dense_torch_s"] / found["sparse_s"])
    assert found["sparse_gflop_per_s"] * found["sparse_s"] * 1e9 == pytest.approx(0.25 * operations)
    assert found["dense_torch_gflop_per_s"] * found["dense_torch_s"] * 1e9 == pytest.approx(operations)


def test_a_board_measures_steps_without_torch():
    command = ["bench", "step", "--model", "cnn", "--density", "0.1", "--seconds", "0.01", "--json"]
    done = on_a_board(*command)
    assert done.returncode == 0, done.stderr
    (found,) = objects(done.stdout)
    assert found["graph"] == "packaged"
    for name in ("torch", "ort_training", "sparseprop"):
        assert found[f"ratio_{name}"] is None
    assert found["dense_torch_s"] is found["dense_ort_training_s"] is found["sparseprop_s"] is None
    assert found["sparse_s"] > 0
    assert found["ratio_dense"] > 0
    for missing in ("dense_torch", "dense_ort_training", "sparseprop"):
        assert f"{missing} is null" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_board_measures_everything_into_a_folder(tmp_path):
    done = on_a_board("bench", "--model", "cnn", "--out", str(tmp_path), "--seconds", "0.01")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {path.stem for path in tmp_path.glob("*.csv")} == set(found)
    assert set(found) == {"step", "gemm", "layers", "roofline", "memory"}
    assert [row["ratio_torch"] for row in found["gemm"]] == [None] * 3
    assert len(found["step"]) == 6
    assert "sparsefleet[plots]" in done.stderr
    assert not (tmp_path / "speedup.png").exists()


def test_the_memory_of_a_client_is_that_of_a_process_without_torch(capsys):
    assert main(["bench", "memory", "--model", "cnn", "--density", "0.1", "--json"]) == 0
    (found,) = objects(capsys.readouterr().out)
    assert found["torch_loaded"] is False
    assert 1e7 < found["idle_rss_bytes"] < found["peak_rss_bytes"] < 2e8


def test_each_layer_has_a_rate_and_its_share_of_the_roofline():
    found = layers.measure(subject.from_model("cnn"), 20, 0.1, seconds=0.01)
    assert [row["shape"] for row in found["layers"]] == ["32x1x3x3", "64x32x3x3", "64x64x3x3", "10x1024"]
    for row in found["layers"]:
        operations = 2 * row["stored_weights"] * row["pixels"] * 20
        assert row["forward_gflop_per_s"] * row["forward_s"] * 1e9 == pytest.approx(operations)
        assert row["share"] == pytest.approx(row["gflop_per_s"] / row["gather_l1_gflop_per_s"])
        by_memory = row["forward_memory_s"] / row["forward_s"]
        assert row["forward_limit_share"] == pytest.approx(max(row["forward_share"], by_memory))
    assert [row["input_gradient_s"] is None for row in found["layers"]] == [True, False, False, False]
    assert "64x64x3x3" in "\n".join(layers.lines(found))


def test_memorys_limit_moves_what_a_layer_must():
    shortcut = subject.Layer(
        "shortcut",
        (8, 4, 1, 1),
        {"stride": 2},
        (1, 4, 8, 8, 16),
        (1, 8, 4, 4, 16),
        {"dx_step": 2},
        (1, 8, 4, 4, 16),
        (1, 4, 4, 4, 16),
    )
    moved = {name: step() for name, step in layers._memory_steps(shortcut, roofline.Limits.load()).items()}
    x, y = 4 * 4 * 8 * 8 * 16, 4 * 8 * 4 * 4 * 16  # Bytes; a quarter of x lies under a window.
    assert moved == {"forward": x // 4 + y, "input_gradient": x // 4 + y, "weight_gradient": x // 4 + y}


def test_a_profile_has_every_operator_of_the_graph(capsys):
    command = ["bench", "profile", "--model", "cnn", "--batch", "8", "--density", "0.1"]
    assert main([*command, "--json"]) == 0
    (found,) = objects(capsys.readouterr().out)
    counts = {row["operator"]: row["count"] for row in found["operators"]}
    in_graph = [node.op_type for node in wire.nodes(graphs.read("cnn")[1])]
    ours = {name: in_graph.count(name) for name in set(in_graph) if name.startswith("Sparse")}
    assert ours.items() <= counts.items()
    assert sum(row["share"] for row in found["operators"]) == pytest.approx(1)
    assert "SparseConvGrad" in "\n".join(profile.lines(found))


@pytest.mark.slow
def test_layers_of_one_geometry_are_measured_once():
    found = layers.measure(subject.from_model("resnet8"), 3, 0.01, seconds=0.0)
    assert sum(row["count"] for row in found["layers"]) == 10
    counts = {row["layer"]: row["count"] for row in found["layers"]}
    assert counts["blocks.0.conv1.weight"] == 2  # Both convolutions of the first block.


def test_the_geometry_of_layers_is_read_from_the_graph():
    found = {layer.weight: layer for layer in subject.from_model("lenet").layers(5)}
    # 28x28 with padding, pooled to 14x14, 10x10 without padding, then vectors.
    assert [layer.pixels for layer in found.values()] == [28 * 28, 10 * 10, 1, 1, 1]
    assert found["3.weight"].shape == (16, 6, 5, 5)


def test_initial_values_follow_hes_rule():
    layout = subject.from_model("cnn").manifest.layout
    model = subject.weights(layout, Mask.full(layout.size), np.random.default_rng(0))
    tensors = layout.views(model.dense())
    for piece in layout.of_role(PRUNABLE):
        fan_in = math.prod(piece.shape[1:])
        assert tensors[piece.name].std() == pytest.approx(math.sqrt(2 / fan_in), rel=0.15)
    assert np.all(tensors["1.running_var"] == 1)
    assert np.all(tensors["1.weight"] == 1)
    assert np.all(tensors["1.bias"] == 0)
    assert np.all(tensors["1.running_mean"] == 0)


@pytest.mark.parametrize("rival", [rivals.torch_step, rivals.ort_training_step, rivals.sparseprop_step])
def test_a_rival_trains(rival):
    if rival is rivals.sparseprop_step:
        pytest.importorskip("sparseprop")
    rng = np.random.default_rng(0)
    one = subject.from_model("cnn")
    layout = one.manifest.layout
    kept = np.flatnonzero(rng.random(layout.num_prunable) < 0.1)
    task = rivals.Task(one.manifest, Mask.of_model(kept, layout), one.batch(32, rng), 1)
    step = rival(task)
    losses = [step() for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_a_calibration_is_kept_where_the_client_finds_it(tmp_path):
    found = calibrate.measure(1, 0.1)
    assert 0.1 <= found["winograd_from"] <= found["dense_from"] <= 1.0
    assert found["sparse_s"][-1] > found["sparse_s"][0]
    calibrate.keep(tmp_path, found)
    try:
        assert break_even.apply(library_path(), tmp_path).endswith("(calibrated)")
        assert break_even.current(library_path()) == (found["dense_from"], found["winograd_from"])
    finally:
        break_even.use(library_path(), 0.0, 0.0)
