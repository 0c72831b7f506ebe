"""A fleet as it should be outside one machine: TLS, pairing, signatures, in processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from coordinator.report import read_csv
from edge_client.kernels import library_path
from export.export import export_model
from tests.conftest import MOSQUITTO, PASSWORD, ROOT, free_port
from tools.split import split

METHOD = {"name": "fedpai", "density": 0.1}


def outside() -> str:
    """An address of this machine that others could reach, or its loopback if it has none."""
    addresses = [
        one.address for many in psutil.net_if_addrs().values() for one in many if one.family == socket.AF_INET
    ]
    return next((one for one in addresses if not one.startswith("127.")), "127.0.0.1")


def command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("secure")
    export_model("cnn", (1, 8, 8), 10, folder / "artifact", library_path())
    split(source="digits", out=folder / "data", clients=2, how="iid", seed=0)
    return folder


@pytest.mark.slow
def test_paired_devices_train_over_tls_and_a_stranger_does_not(home, federate, monkeypatch, tmp_path):
    one = federate(home, 2)
    secrets = tmp_path / "secrets"
    monkeypatch.setenv("SPARSEFLEET_HOME", str(secrets))
    port = int(one.url.rpartition(":")[2])
    one.url = f"mqtts://{outside()}:{port}"
    one.write(METHOD, rounds=2, broker={"bind": "0.0.0.0", "port": port, "client_password": PASSWORD})
    one.start_coordinator("--out", str(one.out))
    (code,) = command("fleet", "code", "--uses", "2").splitlines()[:1]
    one.client_environment = {"SPARSEFLEET_PAIRING_CODE": code}
    while not (secrets / "ca" / "ca.pem").exists() and one.coordinator.poll() is None:
        pass
    ca = ("--ca", str(secrets / "ca" / "ca.pem"))
    one.start_clients(*ca)
    one.await_event(event="client-joined", client="client-001")
    # It knows the password and the authority, and is not paired.
    stranger = [
        sys.executable,
        "-m",
        "tools.cli",
        "client",
        "--client-id",
        "stranger",
        "--broker",
        one.url,
        *ca,
    ]
    stranger += ["--data", str(home / "data" / "client-000.npz"), "--state", str(tmp_path / "stranger")]
    environment = {**os.environ, "SPARSEFLEET_PASSWORD": PASSWORD}
    refused = subprocess.run(stranger, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, "sparsefleet fleet code" in refused.stderr) == (2, True), refused.stderr
    one.finish()
    assert [row["updates"] for row in read_csv(one.out / "rounds.csv")] == ["2"] * 3
    devices = json.loads(command("fleet", "list", "--json"))
    assert [(device["client_id"], device["status"]) for device in devices["devices"]] == [
        ("client-000", "accepted"),
        ("client-001", "accepted"),
    ]
    assert devices["codes"] == 0
    # The next run needs no code, and no new key is believed.
    for client in one.clients.values():
        assert client.wait(30) == 0
    one.client_environment = {}
    one.out = tmp_path / "second"
    one.start_coordinator("--out", str(one.out))
    one.start_clients(*ca)
    one.finish()
    assert [row["updates"] for row in read_csv(one.out / "rounds.csv")] == ["2"] * 3
    assert "Traceback" not in one.logs()


@pytest.mark.slow
@pytest.mark.mosquitto
@pytest.mark.parametrize("login", [[], ["--by-certificate"]], ids=["password", "certificate"])
def test_a_generated_mosquitto_carries_a_federation(login, home, federate, monkeypatch, tmp_path):
    """Everything as `sparsefleet broker config` wrote it: for the broker, the coordinator, and each device."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path / "secrets"))
    one, folder, port = federate(home, 2), tmp_path / "broker", free_port()
    names = ["client-000", "client-001"]
    devices = [flag for name in names for flag in ("--device", name)]
    command(
        "broker", "config", "--out", str(folder), "--host", "localhost", "--port", str(port), *devices, *login
    )
    with (folder / "mosquitto.conf").open("a") as config:
        config.write(f"user root\nlog_dest file {folder}/log\n")
    broker = subprocess.Popen([MOSQUITTO, "-c", str(folder / "mosquitto.conf")], stderr=subprocess.DEVNULL)
    try:
        written = msgspec.toml.decode((folder / "coordinator" / "broker.toml").read_text())["broker"]
        for file in ("ca", "certificate", "key"):
            if file in written:
                written[file] = str(folder / "coordinator" / written[file])
        one.write(METHOD, rounds=2, broker=written)
        # Its address is this machine's own, but devices are elsewhere.
        one.start_coordinator(
            "--out", str(one.out), "--set", 'security.unsigned="refuse"', password=written.get("password", "")
        )
        code = command("fleet", "code", "--uses", "2").splitlines()[0]
        for name in names:
            settings = folder / "devices" / name / "client.toml"
            text = (folder / "devices" / name / "broker.toml").read_text()
            data = home / "data" / f"{name}.npz"
            settings.write_text(
                f'client_id = "{name}"\ndata = "{data}"\nthreads = 1\nexit_after_run = true\n{text}'
                f'[identity]\npairing_code = "{code}"\nunsigned = "refuse"\n'
            )
            arguments = [sys.executable, "-m", "tools.cli", "client", "--config", str(settings)]
            with (one.folder / f"{name}.log").open("ab") as log:
                one.clients[name] = subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=log)
        one.finish()
    finally:
        broker.kill()
        broker.wait()
    assert [row["updates"] for row in read_csv(one.out / "rounds.csv")] == ["2"] * 3
    assert not [event for event in one.events() if event["event"] in ("turned-away", "rejected")]
