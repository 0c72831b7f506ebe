"""What a card gets, read by the tools that will read it on the board."""

from __future__ import annotations

import hashlib
import json
import lzma
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import pytest

from protocol.errors import ConfigError
from tools.card import cloud_init
from tools.card import settings as forms
from tools.card.command import write
from tools.card.network import keyfile, netplan
from tools.card.payload import File
from tools.card.systems import OF_BOARD, SYSTEMS
from tools.cli import main

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHvO5Wq0pCk3v4bVJp1m2n3o4p5q6r7s8t9u0v1w2x3y me@laptop"
PASSPHRASE, SSID = "correct horse battery", "O'Neil's \"Café\""
SECRETS = {
    "SPARSEFLEET_PASSWORD": "broker-secret",
    "SPARSEFLEET_PAIRING_CODE": "PAIR-1234",
    "SPARSEFLEET_USER_PASSWORD": "user-secret",
    "SPARSEFLEET_WIFI_PASSPHRASE": PASSPHRASE,
}


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed: tools/install-test-tools")
    return path


@pytest.fixture
def everything(tmp_path, monkeypatch) -> list[str]:
    """Flags that use each feature."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "key.pub").write_text(KEY + "\n")
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----\n")
    np.savez(tmp_path / "data.npz", x=np.zeros((5, 1, 8, 8), np.float32), y=np.zeros(5, np.int64))
    return [
        *("--name", "edge-07", "--broker", "mqtts://laptop.local:8883", "--ca", str(tmp_path / "ca.pem")),
        *("--ssh-key", str(tmp_path / "key.pub"), "--wifi", SSID, "--wifi-country", "DE"),
        *("--data", str(tmp_path / "data.npz"), "--timezone", "Europe/Berlin"),
    ]  # fmt: skip


def dry(capsys, card: Path, board: str, *arguments: str) -> dict:
    assert main(["card", "--board", board, "--out", str(card), "--dry-run", "--json", *arguments]) == 0
    report: dict = json.loads(capsys.readouterr().out)
    return report


def boot_partition(folder: Path, **files: str) -> Path:
    """What is on a card that was just flashed."""
    folder.mkdir()
    names = {
        "cmdline.txt": "console=tty1 root=PARTUUID=1234-02 rootwait quiet\n",
        "config.txt": "arm_64bit=1\n",
    }
    for name, text in {**names, **{key.replace("_", "."): text for key, text in files.items()}}.items():
        (folder / name.replace("user.data", "user-data")).write_text(text)
    return folder


BOOKWORM = "Raspberry Pi reference 2025-05-13\nGenerated using pi-gen, stage2\n"
TRIXIE = "Raspberry Pi reference 2025-12-04\nGenerated using pi-gen, stage2\n"


@pytest.mark.parametrize("board", sorted(OF_BOARD))
def test_a_dry_run_without_anything_shows_all_and_writes_nothing(board, tmp_path, capsys):
    report = dry(capsys, tmp_path / "none", board)
    assert not (tmp_path / "none").exists()
    paths = {file["path"] for file in report["files"]}
    assert {"sparsefleet/install.sh", "sparsefleet/client.toml"} <= paths
    assert report["python"] == SYSTEMS[OF_BOARD[board][0]].target.python
    (client,) = [file for file in report["files"] if file["path"].endswith("client.toml")]
    assert f'client_id = "{board}"' in client["text"]
    assert ".local:8883" in client["text"]
    assert any("no examples" in note for note in report["notes"])


@pytest.mark.parametrize(
    ("files", "arguments", "expected"),
    [
        ({"issue_txt": BOOKWORM}, (), ("bookworm", "firstrun", "3.11")),
        ({"issue_txt": BOOKWORM.replace("2025-05", "2025-10")}, (), ("trixie", "firstrun", "3.13")),
        ({"issue_txt": TRIXIE, "user_data": "#cloud-config\n"}, (), ("trixie", "cloud-init", "3.13")),
        ({"user_data": ""}, ("--os", "ubuntu-24.04"), ("ubuntu-24.04", "cloud-init", "3.12")),
    ],
)
def test_the_card_says_which_system_it_holds(files, arguments, expected, tmp_path, capsys):
    report = dry(capsys, boot_partition(tmp_path / "card", **files), "rpi5", *arguments)
    assert (report["os"], report["way"], report["python"]) == expected


@pytest.mark.parametrize(
    ("files", "arguments", "words"),
    [
        ({"issue_txt": BOOKWORM}, ("--os", "trixie"), "holds Raspberry Pi OS 12"),
        ({"issue_txt": BOOKWORM.replace("2025", "2022")}, (), "flash a newer one"),
        ({"user_data": ""}, (), "--os ubuntu-24.04"),
        ({}, ("--broker", "mqtts://x"), "sparsefleet broker init"),
        ({}, ("--broker", "mqtt://x"), "plaintext"),
        ({}, ("--name", "Edge_7"), "a host name has"),
        ({}, ("--user", "root"), "a user has"),
        ({}, ("--wifi", "net", "--wifi-country", "Germany"), "two capitals"),
        ({}, ("--wifi", "net", "--wifi-country", "DE"), "8 to 63"),
        ({}, ("--data", "nowhere.npz"), "nowhere.npz is not there"),
        ({}, ("--password-hash", "plain"), "no crypt"),
    ],
)
def test_what_a_board_would_stumble_over_is_refused_here(
    files, arguments, words, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("SPARSEFLEET_HOME", str(tmp_path / "coordinator"))
    card = boot_partition(tmp_path / "card", **files)
    before = sorted(path.name for path in card.iterdir())
    assert main(["card", "--board", "rpi5", "--out", str(card), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert sorted(path.name for path in card.iterdir()) == before


def test_nothing_is_written_to_a_place_that_is_no_card(tmp_path, capsys):
    (tmp_path / "home").mkdir()
    for board in ("rpi5", "jetson-nano"):
        (tmp_path / "home" / "letter.txt").write_text("dear")
        assert main(["card", "--board", board, "--out", str(tmp_path / "home")]) == 2
        assert "nothing was written" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]


def shown(report: dict, path: str) -> str:
    (found,) = [file for file in report["files"] if file["path"] == path]
    text: str = found["text"]
    return text


@pytest.mark.parametrize("os_name", ["bookworm", "trixie", "ubuntu-22.04", "ubuntu-24.04"])
def test_no_secret_is_shown_and_no_passphrase_or_password_is_stored(os_name, everything, tmp_path, capsys):
    report = dry(capsys, tmp_path / "none", "rpi5", "--os", os_name, *everything)
    text = json.dumps(report)
    assert not [value for value in SECRETS.values() if value in text]
    assert forms.psk(SSID, PASSPHRASE) not in text
    assert "$6$" not in text
    assert "***" in text
    assert KEY in text


def test_keys_and_hashes_are_those_of_their_standards():
    # IEEE 802.11-2020, J.4.2.
    assert forms.psk("IEEE", "password") == "f42c6fc52df0ebef9ebb4b90b38a5f902e83fe1b135a70e23aed762e9710a12e"
    assert forms.psk("any", "AB" * 32) == "ab" * 32
    with pytest.raises(ConfigError, match="8 to 63"):
        forms.psk("any", "short")
    hashed = forms.password_hash("user-secret")
    salt = hashed.split("$")[2]
    again = subprocess.run(
        ["openssl", "passwd", "-6", "-salt", salt, "user-secret"], capture_output=True, text=True, check=True
    )
    assert again.stdout.strip() == hashed


def written(board: str, os_name: str, everything: list[str], card: Path, monkeypatch) -> Path:
    """Write the card with a wheelhouse of one empty file: what is downloaded is test_wheels.py's."""
    wheel = card.parent / "sparsefleet-0.1.0-py3-none-manylinux_2_27_aarch64.whl"
    wheel.touch()
    monkeypatch.setattr("tools.wheelhouse.download", lambda *_: [wheel])
    command = ["card", "--board", board, "--os", os_name, "--out", str(card), "--wheel", str(wheel)]
    assert main([*command, *everything, "--json"]) == 0
    return card


def test_bookworms_script_is_clean_and_named_on_the_command_line_once(
    everything, tmp_path, monkeypatch, capsys
):
    card = boot_partition(tmp_path / "card", issue_txt=BOOKWORM)
    for _ in range(2):
        written("rpi4b", "bookworm", everything, card, monkeypatch)
    words = (card / "cmdline.txt").read_text().split()
    assert words[:4] == ["console=tty1", "root=PARTUUID=1234-02", "rootwait", "quiet"]
    assert words[4:] == [
        "systemd.run=/boot/firmware/firstrun.sh",
        "systemd.run_success_action=reboot",
        "systemd.unit=kernel-command-line.target",
    ]
    assert stat.S_IMODE((card / "sparsefleet/client.toml").stat().st_mode) == 0o600
    for script in ("firstrun.sh", "sparsefleet/install.sh"):
        subprocess.run(["bash", "-n", card / script], check=True)
        done = subprocess.run([tool("shellcheck"), card / script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    # What a shell makes of the quoting.
    text = (card / "firstrun.sh").read_text()
    assert forms.psk(SSID, PASSPHRASE) in text
    assert PASSPHRASE not in text
    assert "user-secret" not in text


IMAGERS = """\
#!/bin/sh

set +e

echo pi5 >/etc/hostname
rm -f /boot/firstrun.sh
sed -i 's| systemd.run.*||g' /boot/cmdline.txt
exit 0
"""


def test_what_imager_has_set_up_is_kept(everything, tmp_path, monkeypatch, capsys):
    card = boot_partition(tmp_path / "card", issue_txt=BOOKWORM)
    before = (card / "cmdline.txt").read_text()
    with pytest.raises(AssertionError):  # Exit code 2: nothing is there to be kept.
        written("rpi5", "bookworm", [*everything, "--keep"], card, monkeypatch)
    assert "has set up nothing" in capsys.readouterr().err
    (card / "firstrun.sh").write_text(IMAGERS)
    for _ in range(2):
        written("rpi5", "bookworm", [*everything, "--keep"], card, monkeypatch)
    ours = "sh /boot/firmware/sparsefleet/install.sh --no-start >/boot/firmware/sparsefleet/first-boot.log 2>&1\n"
    assert (card / "firstrun.sh").read_text() == IMAGERS.replace("rm -f", ours + "rm -f")
    assert (card / "cmdline.txt").read_text() == before

    card = boot_partition(
        tmp_path / "trixie", issue_txt=TRIXIE, user_data="#cloud-config\nuser: {name: me}\n"
    )
    written("rpi5", "trixie", [*everything, "--keep"], card, monkeypatch)
    assert (card / "user-data").read_text() == "#cloud-config\nuser: {name: me}\n"
    assert not (card / "network-config").exists()
    done = subprocess.run([tool("shellcheck"), card / "vendor-data"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_network_of_any_name_survives_the_keyfile():
    assert "ssid=79;39;" in keyfile(forms.Wifi(SSID, "0" * 64, "DE"))
    assert "ssid=Plain net-5\n" in keyfile(forms.Wifi("Plain net-5", "0" * 64, "DE"))


@pytest.mark.parametrize("os_name", ["trixie", "ubuntu-22.04", "ubuntu-24.04"])
def test_cloud_init_accepts_the_files(os_name, everything, tmp_path, monkeypatch, capsys):
    issue = {"issue_txt": TRIXIE} if os_name == "trixie" else {}
    card = boot_partition(tmp_path / "card", user_data="#cloud-config\n", **issue)
    written("rpi5", os_name, everything, card, monkeypatch)
    schema = [tool("cloud-init"), "schema", "--config-file", str(card / "user-data")]
    done = subprocess.run(schema, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Valid" in done.stdout
    # The YAML, read by the library that cloud-init reads it with.
    read = "import json, sys, yaml; print(json.dumps([yaml.safe_load(open(p)) for p in sys.argv[1:]]))"
    paths = [str(card / name) for name in ("user-data", "network-config", "meta-data")]
    loaded = subprocess.run(
        ["/usr/bin/python3", "-c", read, *paths], capture_output=True, text=True, check=True
    )
    user, network, meta = json.loads(loaded.stdout)
    assert user["user"]["ssh_authorized_keys"] == [KEY]
    assert user["user"]["passwd"].startswith("$6$")
    assert user["runcmd"][-1][2].startswith("sh /boot/firmware/sparsefleet/install.sh")
    assert network["wifis"]["wlan0"]["access-points"] == {SSID: {"password": forms.psk(SSID, PASSPHRASE)}}
    assert network["ethernets"]["eth0"]["dhcp4"] is True
    named = f"ds=nocloud;i={meta['instance-id']}"
    assert (named in (card / "cmdline.txt").read_text()) == (os_name == "trixie")


@pytest.mark.parametrize("ssid", ["no", "123", "Null", "1e3", "a: b", "é"])
def test_a_network_whose_name_means_something_in_yaml_is_still_a_name(ssid):
    tool("cloud-init")  # Which brings the library.
    text = cloud_init.yaml(netplan(forms.Wifi(ssid, "0" * 64, "NO")))
    read = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", read], input=text, capture_output=True, text=True, check=True
    )
    wlan = json.loads(done.stdout)["wifis"]["wlan0"]
    assert wlan["access-points"] == {ssid: {"password": "0" * 64}}
    assert wlan["regulatory-domain"] == "NO"


def test_a_jetson_gets_a_folder_to_copy_or_a_unit_in_its_root(everything, tmp_path, monkeypatch, capsys):
    folder = written("jetson-orin-nano", "jetpack6", everything, tmp_path / "bundle", monkeypatch)
    assert sorted(path.name for path in folder.iterdir()) == ["sparsefleet"]
    assert "scp -r" in capsys.readouterr().out
    (tmp_path / "rootfs/etc").mkdir(parents=True)
    (tmp_path / "rootfs/etc/nv_tegra_release").write_text("# R36 (release)\n")
    root = written("jetson-orin-nano", "jetpack6", everything, tmp_path / "rootfs", monkeypatch)
    units = root / "etc/systemd/system"
    assert (units / "multi-user.target.wants/sparsefleet-first-boot.service").is_symlink()
    (connection,) = (root / "etc/NetworkManager/system-connections").iterdir()
    assert stat.S_IMODE(connection.stat().st_mode) == 0o600
    unit = tmp_path / "sparsefleet-first-boot.service"
    shutil.copy(units / unit.name, unit)
    verify = [tool("systemd-analyze"), "verify", "--man=no", str(unit)]
    done = subprocess.run(verify, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert unit.name not in done.stderr, done.stderr


@pytest.mark.parametrize(("suffix", "form"), [(".img", "systemd"), (".img.xz", "systemd")])
def test_imager_gets_the_digest_of_the_unpacked_image_and_its_form(suffix, form, tmp_path, capsys):
    content = b"image" * 100_000
    image = tmp_path / f"raspios{suffix}"
    image.write_bytes(lzma.compress(content) if suffix.endswith("xz") else content)
    command = ["card", "--board", "rpi5", "--os", "bookworm", "--imager", str(image)]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    (entry,) = json.loads((tmp_path / "out/sparsefleet.rpi-imager-manifest").read_text())["os_list"]
    assert entry["extract_sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["extract_size"] == len(content)
    assert entry["image_download_size"] == image.stat().st_size
    assert entry["init_format"] == form
    required = {"name", "description", "icon", "url", "extract_size", "extract_sha256", "image_download_size"}
    assert required | {"release_date", "devices"} <= set(entry)
    if suffix.endswith("xz"):
        image.write_bytes(b"damaged")
        assert main([*command, "--out", str(tmp_path / "other")]) == 2
        assert "cannot be read" in capsys.readouterr().err


def test_a_card_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(ConfigError, match="0 MB free"):
        write([File("a", b"1234")], tmp_path)
    assert list(tmp_path.iterdir()) == []
