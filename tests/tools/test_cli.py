"""The command line: help with examples, and errors in one line that name the cure."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tools.cli import main

COMMANDS = ["demo", "export", "data", "run", "client", "energy", "bench"]


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that the user can cure; return what it says."""
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "artifact"
    assert main(["export", "cnn", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def experiment(artifact: Path, tmp_path: Path) -> Path:
    shutil.copytree(artifact, tmp_path / "artifact")
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "test.npz", x=rng.random((4, 1, 8, 8), np.float32), y=np.arange(4))
    path = tmp_path / "experiment.toml"
    path.write_text(
        """
        artifact = "artifact"
        data = "data"
        rounds = 1
        method = { name = "fedpai", density = 0.1 }
        training = { local_epochs = 1, batch_size = 8, learning_rate = 0.1 }
        cohort = { clients = 1, join_timeout_s = 0.2 }
        broker = { port = 0 }
        """
    )
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert re.search(rf"example:\s+sparsefleet {command}", capsys.readouterr().out)


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("sparsefleet ")


def test_export_as_json_says_how_far_it_is_from_pytorch(tmp_path, capsys):
    assert main(["export", "cnn", "--out", str(tmp_path / "a"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_parameters"] == 66_154  # 288 + 64 + 18432 + 128 + 36864 + 128 + 10240 + 10
    assert found["worst_relative_difference"] < 1e-4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.learning_rat=0.1", "did you mean training.learning_rate"),
        ("method.densty=0.1", "did you mean 'density'"),
        ("method.density=2.0", "density"),
        ("training.batch_size=0", "batch_size"),
        ("cohort.quorum=1.5", "quorum"),
    ],
)
def test_a_wrong_setting_is_named_with_the_nearest_right_one(override, said, experiment, capsys):
    assert said in fails(capsys, "run", str(experiment), "--set", override)


def test_an_artifact_with_another_digest_is_refused(experiment, capsys):
    with (experiment.parent / "artifact" / "step.onnx").open("ab") as file:
        file.write(b"x")
    said = fails(capsys, "run", str(experiment))
    assert "step.onnx" in said
    assert "export it again" in said


def test_missing_test_data_names_the_command_that_makes_them(experiment, capsys):
    (experiment.parent / "data" / "test.npz").unlink()
    assert "sparsefleet data split" in fails(capsys, "run", str(experiment))


def test_too_few_clients_say_how_to_start_one(experiment, capsys, tmp_path):
    said = fails(capsys, "run", str(experiment), "--out", str(tmp_path / "run"), "-q")
    assert "0 of 1 clients joined" in said
    assert "sparsefleet client" in said


def test_another_machine_is_let_in_only_with_a_password(experiment, capsys, tmp_path):
    override = 'broker.bind="0.0.0.0"'
    said = fails(capsys, "run", str(experiment), "--out", str(tmp_path / "run"), "--set", override)
    assert "client_password" in said


def test_a_run_folder_is_not_overwritten(experiment, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "rounds.csv").write_text("round_number\n1\n")
    assert "--resume" in fails(capsys, "run", str(experiment), "--out", str(tmp_path / "run"))


def test_nothing_to_resume_is_said(experiment, capsys, tmp_path):
    assert "nothing can be resumed" in fails(capsys, "run", str(experiment), "--resume", str(tmp_path))


def test_a_client_without_data_names_the_file_and_the_cure(capsys, tmp_path):
    arguments = [
        "client",
        "--client-id",
        "a",
        "--data",
        str(tmp_path / "none.npz"),
        "--state",
        str(tmp_path / "s"),
    ]
    said = fails(capsys, *arguments, "--broker", "mqtt://127.0.0.1:1")
    assert "none.npz" in said
    assert "sparsefleet data split" in said


def test_a_client_needs_to_know_who_it_is(capsys):
    assert "--client-id" in fails(capsys, "client")


def test_an_unknown_model_lists_the_known_ones(capsys, tmp_path):
    assert "resnet18" in fails(capsys, "export", "resnet19", "--out", str(tmp_path / "a"))


def test_a_bad_input_shape_shows_a_good_one(capsys, tmp_path):
    assert "1,28,28" in fails(
        capsys, "export", "lenet", "--input-shape", "28x28", "--out", str(tmp_path / "a")
    )
