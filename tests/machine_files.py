"""Files of machines as Linux shows them: a Jetson, a laptop, a virtual machine."""

from __future__ import annotations

from pathlib import Path

POWER_MODES = """\
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""


def write(root: Path, files: dict[str, str | int]) -> Path:
    """Put files beneath a root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    return root


Values = dict[str, str | int]


def folder(name: str, files: Values) -> Values:
    """The same files in a folder."""
    return {f"{name}/{file}": text for file, text in files.items()}


def policy(number: int, current: int, low: int, high: int, most: int, governor: str) -> dict[str, str | int]:
    """A frequency policy; clocks in kilohertz."""
    return folder(
        f"sys/devices/system/cpu/cpufreq/policy{number}",
        {
            "scaling_cur_freq": current,
            "scaling_min_freq": low,
            "scaling_max_freq": high,
            "cpuinfo_max_freq": most,
            "scaling_governor": governor,
        },
    )


def statm(pages: int) -> dict[str, str | int]:
    """Memory of this process, in pages."""
    return {"proc/self/statm": f"90000 {pages} 2000 1 0 50000 0"}


def stat(busy: int, idle: int, stolen: int) -> dict[str, str | int]:
    """Processor time so far, in ticks."""
    return {"proc/stat": f"cpu  {busy} 0 0 {idle} 0 0 0 {stolen} 5 0\ncpu0 1 0 0 1 0 0 0 0 0 0\nintr 5"}


def orin(root: Path) -> Path:
    """A Jetson Orin Nano in its 15 W mode, with clocks as the load asks."""
    write(root, {"etc/nvpmodel.conf": POWER_MODES, "var/lib/nvpmodel/status": "pmode:0000"})
    write(root, statm(1000) | stat(100, 900, 0))
    write(root, policy(0, 1190400, 115200, 1510400, 1728000, "schedutil"))
    write(root, policy(4, 729600, 115200, 1510400, 1728000, "schedutil"))
    gpu: Values = {"cur_freq": 306000000, "min_freq": 306000000, "max_freq": 624750000}
    gpu |= {"available_frequencies": "306000000 624750000 1020000000", "governor": "nvhost_podgov"}
    write(root, folder("sys/class/devfreq/17000000.gpu", gpu))
    write(root, folder("sys/class/devfreq/15340000.vic", {"cur_freq": 115200000, "max_freq": 729600000}))
    thermal = "sys/class/thermal"
    for number, (kind, milli_c) in enumerate(
        (("cpu-thermal", 51250), ("gpu-thermal", 49000), ("cv0-thermal", -256000))
    ):
        write(root, folder(f"{thermal}/thermal_zone{number}", {"type": kind, "temp": milli_c}))
    cooling = ("cpufreq-cpu0", "pwm-fan", "gpu-throttle-alert", "hot-surface-alert", "devfreq-17000000.gpu")
    for number, kind in enumerate(cooling):
        state = 3 if kind in ("pwm-fan", "hot-surface-alert") else 0
        write(root, folder(f"{thermal}/cooling_device{number}", {"type": kind, "cur_state": state}))
    rails: Values = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": 5000, "curr1_input": 1240}
    rails |= {
        "in2_label": "VDD_CPU_GPU_CV",
        "in2_input": 4992,
        "curr2_input": 250,
        "in3_label": "NC",
        "in3_input": 0,
    }
    rails |= {"curr3_input": 0, "in7_label": "sum of shunt voltages", "in7_input": 12}
    write(root, folder("sys/class/hwmon/hwmon1", rails))
    alarms: Values = {
        "name": "soctherm_oc",
        "oc1_event_cnt": 0,
        "oc2_event_cnt": 2,
        "oc3_event_cnt": 37,
        "oc1_throt_en": 1,
    }
    write(root, folder("sys/class/hwmon/hwmon3", alarms))
    return write(root, folder("sys/class/hwmon/hwmon0", {"name": "pwm_tach", "rpm": 2140}))


def laptop(root: Path) -> Path:
    """A PC of two processors of one core, whose energy counters anybody may read."""
    write(root, statm(2000) | stat(100, 900, 0))
    for cpu in (0, 1):
        write(root, policy(cpu, 2900000 + cpu * 100000, 400000, 4200000, 4200000, "powersave"))
        counts: Values = {"core_throttle_count": 3, "package_throttle_count": 10, "core_power_limit_count": 0}
        write(root, folder(f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle", counts))
    write(root, folder("sys/class/thermal/thermal_zone0", {"type": "x86_pkg_temp", "temp": 61000}))
    for number, (kind, state) in enumerate(
        (("Processor", 0), ("TCC Offset", 5), ("intel_powerclamp", -1), ("Fan", 1))
    ):
        write(root, folder(f"sys/class/thermal/cooling_device{number}", {"type": kind, "cur_state": state}))
    write(root, folder("sys/class/hwmon/hwmon2", {"name": "thinkpad", "fan1_input": 2800}))
    zones = {
        "intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys",
        "intel-rapl-mmio:0": "package-0",
    }  # fmt: skip
    for zone, name in zones.items():
        counter: Values = {"name": name, "energy_uj": 60_000_000, "max_energy_range_uj": 100_000_000}
        write(root, folder(f"sys/class/powercap/{zone}", counter))
    return root


def virtual_machine(root: Path) -> Path:
    """A virtual machine, which tells nothing but memory and time."""
    (root / "sys/class/thermal").mkdir(parents=True)
    return write(root, statm(500) | stat(100, 890, 10))
