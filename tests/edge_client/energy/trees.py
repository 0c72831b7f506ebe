"""File trees of boards, in the formats that their kernels write. Figures as recorded or documented."""

from __future__ import annotations

from pathlib import Path

PI_ANSWER = """ 3V7_WL_SW_A current(0)=0.08783610A
   3V3_SYS_A current(1)=0.07124289A
   1V8_SYS_A current(2)=0.17566740A
  DDR_VDD2_A current(3)=0.02342232A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.18347480A
    0V8_SW_A current(6)=0.32693670A
  VDD_CORE_A current(7)=3.61920000A
   3V3_DAC_A current(17)=0.00030525A
   3V3_ADC_A current(18)=0.00048840A
   0V8_AON_A current(16)=0.00543300A
      HDMI_A current(22)=0.01269840A
 3V7_WL_SW_V volt(8)=3.69160000V
   3V3_SYS_V volt(9)=3.31012700V
   1V8_SYS_V volt(10)=1.79706600V
  DDR_VDD2_V volt(11)=1.10366100V
  DDR_VDDQ_V volt(12)=0.60512760V
   1V1_SYS_V volt(13)=1.10476000V
    0V8_SW_V volt(14)=0.80146450V
  VDD_CORE_V volt(15)=0.87624390V
   3V3_DAC_V volt(20)=3.30677400V
   3V3_ADC_V volt(21)=3.30402600V
   0V8_AON_V volt(19)=0.79626300V
      HDMI_V volt(23)=5.06788000V
     EXT5V_V volt(24)=5.06520000V
      BATT_V volt(25)=0.00512820V
"""
# By hand, rail by rail: 0.32426 + 0.23582 + 0.31569 + 0.02585 + 0 + 0.20270 + 0.26203 + 3.17131
# + 0.00101 + 0.00161 + 0.00433 + 0.06435
PI_RAILS_W = 4.60896


def write(root: Path, files: dict[str, str | int | bytes]) -> Path:
    """Write files below `root`: text gets the newline that the kernel ends it with, bytes stay as they are."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
    return root


def device_tree(model: str, *compatible: str) -> dict[str, str | int | bytes]:
    """Both files end in NUL, and so does each entry of the list."""
    return {
        "proc/device-tree/model": f"{model}\0".encode(),
        "proc/device-tree/compatible": "".join(f"{entry}\0" for entry in compatible).encode(),
    }


STAT = (
    "cpu  400 0 0 1600 0 0 0 0 0 0\n"
    + "".join(f"cpu{n} 100 0 0 400 0 0 0 0 0 0\n" for n in range(4))
    + "intr 1"
)


def pi(root: Path, model: str, *compatible: str, clock_khz: int = 1_500_000) -> Path:
    """Return a Raspberry Pi without a sensor."""
    policy = "sys/devices/system/cpu/cpufreq/policy0"
    return write(
        root,
        {
            **device_tree(model, *compatible),
            "proc/stat": STAT,
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 52350,
            f"{policy}/scaling_cur_freq": clock_khz,
            f"{policy}/cpuinfo_max_freq": clock_khz,
            f"{policy}/related_cpus": "0 1 2 3",
            "sys/class/hwmon/hwmon0/name": "cpu_thermal",
            "sys/class/hwmon/hwmon3/name": "rpi_volt",
            "sys/class/hwmon/hwmon3/in0_lcrit_alarm": 0,
        },
    )


def pi5(
    root: Path, model: str = "Raspberry Pi 5 Model B Rev 1.0", entry: str = "raspberrypi,5-model-b"
) -> Path:
    """Return a Raspberry Pi 5 with the firmware's answers in place of its device."""
    pi(root, model, entry, "brcm,bcm2712", clock_khz=2_400_000)
    return write(
        root,
        {
            "dev/vcio_gencmd/pmic_read_adc": PI_ANSWER.encode(),
            "dev/vcio_gencmd/get_throttled": b"throttled=0x0",
            "sys/class/hwmon/hwmon1/name": "rp1_adc",
        },
    )


def hwmon3221(
    root: Path,
    place: str,
    number: int,
    rails: dict[int, tuple[str, int, int]],
    shunt_uohm: int = 5000,
    **more: int,
) -> Path:
    """Write a JetPack 5 or 6 chip: channel -> label, mV, mA."""
    folder = f"sys/bus/i2c/drivers/ina3221/{place}/hwmon/hwmon{number}"
    files: dict[str, str | int | bytes] = {
        f"{folder}/name": "ina3221",
        f"{folder}/in7_label": "sum of shunt voltages",
    }
    for n, (label, millivolts, milliamperes) in rails.items():
        files |= {
            f"{folder}/in{n}_label": label,
            f"{folder}/in{n}_input": millivolts,
            f"{folder}/curr{n}_input": milliamperes,
            f"{folder}/shunt{n}_resistor": shunt_uohm,
            f"{folder}/in{n + 3}_input": milliamperes * shunt_uohm // 1000,
        }
    files |= {f"{folder}/{name}": value for name, value in more.items()}
    return write(root, files)


def iio3221(root: Path, place: str, rails: list[tuple[str, int, int]], number: int = 0) -> Path:
    """Write a JetPack 4 chip: label, mV, mA from channel 0."""
    folder = f"sys/bus/i2c/drivers/ina3221x/{place}/iio:device{number}"
    files: dict[str, str | int | bytes] = {f"{folder}/name": "ina3221x", f"{folder}/running_mode": 1}
    for n, (label, millivolts, milliamperes) in enumerate(rails):
        files |= {
            f"{folder}/rail_name_{n}": label,
            f"{folder}/in_voltage{n}_input": millivolts,
            f"{folder}/in_current{n}_input": milliamperes,
            f"{folder}/warn_current_limit_{n}": "32760 ma",
            f"{folder}/polling_delay_{n}": "0 ms",
        }
    return write(root, files)


def jetson(root: Path, model: str, *compatible: str) -> Path:
    """Return a Jetson's identity, zones and throttling, without its sensors."""
    thermal = "sys/class/thermal"
    return write(
        root,
        {
            **device_tree(model, *compatible),
            "proc/stat": STAT,
            f"{thermal}/thermal_zone0/type": "cpu-thermal",
            f"{thermal}/thermal_zone0/temp": 51187,
            f"{thermal}/thermal_zone2/type": "cv0-thermal",
            f"{thermal}/thermal_zone2/temp": -256000,
            f"{thermal}/thermal_zone8/type": "tj-thermal",
            f"{thermal}/thermal_zone8/temp": 52031,
            f"{thermal}/cooling_device0/type": "pwm-fan",
            f"{thermal}/cooling_device0/cur_state": 1,
            f"{thermal}/cooling_device10/type": "cpu-throttle-alert",
            f"{thermal}/cooling_device10/cur_state": 0,
            "sys/class/hwmon/hwmon3/name": "soctherm_oc",
            "sys/class/hwmon/hwmon3/oc1_event_cnt": 0,
            "sys/class/hwmon/hwmon3/oc2_event_cnt": 0,
            "sys/class/hwmon/hwmon3/oc3_event_cnt": 2,
            "var/lib/nvpmodel/status": "pmode:0001",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >",
        },
    )


def orin_nano(
    root: Path, model: str = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
) -> Path:
    """Return an Orin Nano under JetPack 6."""
    jetson(root, model, "nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234")
    rails = {1: ("VDD_IN", 5072, 1312), 2: ("VDD_CPU_GPU_CV", 5072, 352), 3: ("VDD_SOC", 5064, 304)}
    return hwmon3221(root, "1-0040", 1, rails, samples=64, update_interval=422, curr4_input=1968)


def orin_nx(root: Path) -> Path:
    """Return an Orin NX, whose sensor is that of an Orin Nano."""
    return orin_nano(root, "NVIDIA Jetson Orin NX Engineering Reference Developer Kit")


def agx_orin(root: Path) -> Path:
    """Return an AGX Orin: no total, a child rail on the second chip, channels that are not connected."""
    jetson(root, "NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0000", "nvidia,tegra234")
    rails = {1: ("VDD_GPU_SOC", 19904, 260), 2: ("VDD_CPU_CV", 19904, 160), 3: ("VIN_SYS_5V0", 5056, 1080)}
    hwmon3221(root, "1-0040", 2, rails, 2000)
    return hwmon3221(
        root, "1-0041", 4, {1: ("NC", 0, 0), 2: ("VDDQ_VDD2_1V8AO", 5056, 100), 3: ("NC", 0, 0)}, 2000
    )


def agx_xavier(root: Path) -> Path:
    """Return an AGX Xavier under JetPack 5: six rails on two chips."""
    jetson(root, "NVIDIA Jetson AGX Xavier Developer Kit", "nvidia,p2972-0000+p2888-0001", "nvidia,tegra194")
    hwmon3221(root, "1-0040", 3, {1: ("GPU", 19000, 100), 2: ("CPU", 19000, 200), 3: ("SOC", 19000, 150)})
    return hwmon3221(
        root, "1-0041", 4, {1: ("CV", 19000, 10), 2: ("VDDRQ", 19000, 40), 3: ("SYS5V", 5000, 400)}
    )


def xavier_nx(root: Path) -> Path:
    """Return a Xavier NX under JetPack 5."""
    jetson(root, "NVIDIA Jetson Xavier NX Developer Kit", "nvidia,p3449-0000+p3668-0000", "nvidia,tegra194")
    rails = {1: ("VDD_IN", 4960, 960), 2: ("VDD_CPU_GPU_CV", 4960, 200), 3: ("VDD_SOC", 4960, 240)}
    return hwmon3221(root, "7-0040", 5, rails)


def nano(root: Path) -> Path:
    """Return a Nano of 4 GB under JetPack 4."""
    jetson(
        root, "NVIDIA Jetson Nano Developer Kit", "nvidia,p3450-0000", "nvidia,jetson-nano", "nvidia,tegra210"
    )
    return iio3221(
        root, "6-0040", [("POM_5V_IN", 5072, 400), ("POM_5V_GPU", 5072, 8), ("POM_5V_CPU", 5072, 64)]
    )


def nano_2gb(root: Path) -> Path:
    """Return a Nano of 2 GB, which has no sensor."""
    return jetson(root, "NVIDIA Jetson Nano 2GB Developer Kit", "nvidia,p3542-0000", "nvidia,tegra210")


def tx2(root: Path) -> Path:
    """Return a TX2 under JetPack 4: the total is on the second chip."""
    jetson(root, "NVIDIA Jetson TX2 Developer Kit", "nvidia,p2597-0000+p3310-1000", "nvidia,tegra186")
    iio3221(
        root, "0-0040", [("VDD_SYS_GPU", 19000, 10), ("VDD_SYS_SOC", 19000, 40), ("VDD_4V0_WIFI", 4700, 8)]
    )
    rails = [("VDD_IN", 19072, 200), ("VDD_SYS_CPU", 19072, 30), ("VDD_SYS_DDR", 4720, 200)]
    return iio3221(root, "0-0041", rails, 1)


def thor(root: Path) -> Path:
    """Return a Thor, for which there is no profile: its input is on an INA238."""
    jetson(root, "NVIDIA Jetson AGX Thor Developer Kit", "nvidia,p3834-0008", "nvidia,tegra264")
    hwmon3221(root, "2-0040", 5, {1: ("VDD_GPU", 12040, -20), 2: ("VDD_CPU_SOC_MSS", 12040, 540)})
    return monitor(root, 6, "ina238", 19950, 1150, 22942500, label="VIN")


def monitor(
    root: Path, number: int, chip: str, millivolts: int, milliamperes: int, microwatts: int, **more: str | int
) -> Path:
    """Write an ina2xx monitor as the kernel shows it."""
    folder = f"sys/class/hwmon/hwmon{number}"
    return write(
        root,
        {
            f"{folder}/name": chip,
            f"{folder}/in1_input": millivolts,
            f"{folder}/curr1_input": milliamperes,
            f"{folder}/power1_input": microwatts,
            **{f"{folder}/{name}": value for name, value in more.items()},
        },
    )


def laptop(root: Path, rapl: bool = True, status: str = "Discharging") -> Path:
    """Return an x86 laptop."""
    battery = "sys/class/power_supply/BAT0"
    write(
        root,
        {
            "sys/class/dmi/id/sys_vendor": "LENOVO",
            "sys/class/dmi/id/product_name": "20XW",
            "proc/stat": STAT,
            f"{battery}/type": "Battery",
            f"{battery}/status": status,
            f"{battery}/voltage_now": 11580000,
            f"{battery}/current_now": 812000,
            f"{battery}/charge_now": 3120000,
            "sys/class/power_supply/AC/type": "Mains",
        },
    )
    zone = "sys/class/powercap/intel-rapl:0"
    if rapl:
        write(root, {f"{zone}/name": "package-0", f"{zone}/energy_uj": 262143300000})
        write(root, {f"{zone}/max_energy_range_uj": 262143328850})
    return root
