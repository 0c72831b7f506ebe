"""A board is recognised by what its device tree says, and every figure says where it comes from."""

from importlib import resources
from pathlib import Path

import pytest

from device_profiles import detect, load, machine_name, names
from edge_client.energy.choose import SENSORS
from protocol.errors import ConfigError


def tree(root: Path, model: str | None, compatible: str | None = None) -> Path:
    folder = root / "proc/device-tree"
    folder.mkdir(parents=True)
    if model is not None:
        (folder / "model").write_bytes(model.encode() + b"\0")
    if compatible is not None:
        (folder / "compatible").write_bytes(compatible.encode() + b"\0")
    return root


# The texts are those of recorded boards; the second of a pair is what must not decide.
BOARDS = [
    ("Raspberry Pi Zero 2 W Rev 1.0", "raspberrypi,model-zero-2-w\0brcm,bcm2837", "rpi-zero2w"),
    ("Raspberry Pi 3 Model B Plus Rev 1.3", "raspberrypi,3-model-b-plus\0brcm,bcm2837", "rpi3bplus"),
    ("Raspberry Pi 4 Model B Rev 1.4", "raspberrypi,4-model-b\0brcm,bcm2711", "rpi4b"),
    ("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b\0brcm,bcm2712", "rpi5"),
    ("Raspberry Pi Compute Module 4 Rev 1.0", "raspberrypi,4-compute-module\0brcm,bcm2711", "rpi-cm4"),
    ("Raspberry Pi Compute Module 5 Rev 1.0", "raspberrypi,5-compute-module\0brcm,bcm2712", "rpi-cm5"),
    ("NVIDIA Jetson TX2 Developer Kit", "nvidia,p2597-0000+p3310-1000\0nvidia,tegra186", "jetson-tx2"),
    (
        "NVIDIA Jetson Xavier NX Developer Kit",
        "nvidia,p3449-0000+p3668-0000\0nvidia,tegra194",
        "jetson-xavier-nx",
    ),
    (
        "NVIDIA Jetson AGX Xavier Developer Kit",
        "nvidia,p2972-0000+p2888-0001\0nvidia,tegra194",
        "jetson-agx-xavier",
    ),
    (
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
        "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234",
        "jetson-orin-nx",
    ),
    (
        "NVIDIA Jetson AGX Orin Developer Kit",
        "nvidia,p3737-0000+p3701-0000\0nvidia,tegra234",
        "jetson-agx-orin",
    ),
    (
        "NVIDIA Jetson Nano Developer Kit",
        "nvidia,p3450-0000\0nvidia,jetson-nano\0nvidia,tegra210",
        "jetson-nano",
    ),
    (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234",
        "jetson-orin-nano",
    ),
]


@pytest.mark.parametrize(("model", "compatible", "name"), BOARDS)
def test_each_board_is_recognised_by_its_model_text(
    tmp_path: Path, model: str, compatible: str, name: str
) -> None:
    assert detect(tree(tmp_path, model)).name == name


@pytest.mark.parametrize(("model", "compatible", "name"), BOARDS)
def test_each_board_is_recognised_by_compatible_alone(
    tmp_path: Path, model: str, compatible: str, name: str
) -> None:
    assert detect(tree(tmp_path, None, compatible)).name == name
    assert detect(tree(tmp_path / "carrier", "Maker's Carrier", compatible)).name == name


def test_an_orin_nx_with_an_orin_nano_string_is_not_an_orin_nano(tmp_path: Path) -> None:
    compatible = "nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234"
    model = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert detect(tree(tmp_path, model, compatible)).name == "jetson-orin-nx"
    # On another maker's carrier nobody can tell which profile's figures would be right.
    assert detect(tree(tmp_path / "carrier", "reComputer (Orin NX 16GB)", compatible)).name == "unknown"


def test_a_pi_3b_is_not_a_3b_plus(tmp_path: Path) -> None:
    root = tree(tmp_path, "Raspberry Pi 3 Model B Rev 1.2", "raspberrypi,3-model-b\0brcm,bcm2837")
    assert detect(root).name == "unknown"


@pytest.mark.parametrize(
    ("system", "machine", "name"),
    [
        ("Linux", "x86_64", "x86-64"),
        ("Darwin", "arm64", "apple-silicon"),
        ("Darwin", "x86_64", "x86-64"),
        ("Linux", "riscv64", "unknown"),
        ("Linux", "aarch64", "unknown"),
    ],
)
def test_without_a_device_tree_the_platform_decides(
    tmp_path: Path, system: str, machine: str, name: str
) -> None:
    assert detect(tmp_path, system, machine).name == name


def test_a_device_tree_that_no_profile_fits_is_unknown_whatever_the_processor(tmp_path: Path) -> None:
    assert detect(tree(tmp_path, "Some Board"), "Linux", "x86_64").name == "unknown"


def test_bytes_that_are_not_text_do_not_stop_the_detection(tmp_path: Path) -> None:
    root = tree(tmp_path, "Raspberry Pi 4 Model B Rev 1.4")
    (root / "proc/device-tree/compatible").write_bytes(b"\xff\xfe\0")
    assert detect(root).name == "rpi4b"


def test_threads_are_at_most_the_cpus_of_the_process(tmp_path: Path) -> None:
    root = tree(tmp_path, "Raspberry Pi 4 Model B Rev 1.4")
    assert detect(root, num_cpus=2).threads == 2
    assert detect(root, num_cpus=64).threads == load("rpi4b").threads == 4


def test_this_machine_has_a_profile() -> None:
    assert detect().name in names()


@pytest.mark.parametrize("name", names())
def test_every_profile_loads_and_says_where_its_watts_come_from(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert profile.source
    assert profile.boundary
    assert profile.uncertainty is None or 0.3 <= profile.uncertainty <= 0.5
    assert profile.threads <= profile.cores


BOARD_NAMES = [name for name in names() if name.startswith(("rpi", "jetson"))]


@pytest.mark.parametrize("name", BOARD_NAMES)
def test_every_board_says_what_it_is_and_what_each_of_its_power_sources_leaves_out(name: str) -> None:
    profile = load(name)
    assert profile.soc
    assert profile.cpu
    assert profile.features
    assert profile.memory_mb
    assert profile.budget_mb
    assert profile.thermal
    assert profile.throttle
    assert profile.python
    assert profile.onnxruntime
    assert profile.power
    for source in profile.power:
        assert source.sensor in SENSORS
        assert source.leaves_out


def test_boards_whose_watts_nobody_published_have_none_and_no_model() -> None:
    unknown = [name for name in BOARD_NAMES if load(name).idle_w is None]
    assert unknown == [
        "jetson-agx-orin",
        "jetson-agx-xavier",
        "jetson-orin-nx",
        "jetson-tx2",
        "jetson-xavier-nx",
    ]
    assert {source.sensor for name in unknown for source in load(name).power} == {"ina3221"}


@pytest.mark.parametrize(
    "change", [("uncertainty = 0.3\n", ""), ("idle_w = 2.9", "idle_w = 9.0"), ('"rpi5"', '"x"')]
)
def test_a_damaged_profile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple[str, str]
) -> None:
    good = (resources.files("device_profiles") / "rpi5.toml").read_text()
    (tmp_path / "rpi5.toml").write_text(good.replace(*change))
    monkeypatch.setattr("device_profiles.profile.resources.files", lambda _: tmp_path)
    with pytest.raises(ConfigError, match=r"rpi5\.toml is damaged"):
        load("rpi5")


def test_a_tree_of_another_machine_with_a_dmi_table_is_a_pc(tmp_path: Path) -> None:
    assert detect(tmp_path).name == "unknown"
    dmi = tmp_path / "sys/class/dmi/id"
    dmi.mkdir(parents=True)
    (dmi / "sys_vendor").write_text("LENOVO\n")
    (dmi / "product_name").write_text("20XW\n")
    assert detect(tmp_path).name == "x86-64"
    assert machine_name(tmp_path) == "LENOVO 20XW"


def test_the_names_are_the_boards_of_the_project() -> None:
    expected = (
        "apple-silicon jetson-agx-orin jetson-agx-xavier jetson-nano jetson-orin-nano jetson-orin-nx jetson-tx2 "
        "jetson-xavier-nx rpi-cm4 rpi-cm5 rpi-zero2w rpi3bplus rpi4b rpi5 unknown x86-64"
    )
    assert names() == tuple(expected.split())


def test_no_two_profiles_claim_the_same_board() -> None:
    profiles = [load(name) for name in names()]
    patterns = [text for p in profiles for text in (*p.models, *p.modules, *p.compatible)]
    assert len(patterns) == len(set(patterns))


def test_a_busy_core_of_a_pi_4_adds_seven_eighths_of_a_watt() -> None:
    # (5.8 - 2.3) / 4
    assert load("rpi4b").core_w == pytest.approx(0.875)


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no device profile 'rpi4'; did you mean 'rpi4b'"):
        load("rpi4")
    with pytest.raises(ConfigError, match="known are apple-silicon, "):
        load("../../etc/passwd")
