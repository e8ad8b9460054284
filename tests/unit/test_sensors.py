"""Temperatures, power, energy, clocks and throttling, read from files as Linux lays them out."""

from __future__ import annotations

import os
import tempfile
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.sensors import Clocks, ClockSettings, EnergyMeter, PowerModes, SensorReader, SysFiles, Throttles
from edge_sdk.sensors.files import named
from edge_sdk.sensors.power import Rails
from edge_sdk.sensors.throttle import events_between
from tests.machine_files import POWER_MODES, folder, laptop, orin, policy, virtual_machine, write

ZONE = "sys/class/powercap/intel-rapl:0"


class Seconds:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Seconds()


def test_the_sensors_of_a_jetson(tmp_path):
    sensors = SensorReader(orin(tmp_path)).read()
    assert sensors.temperature_c == {"cpu": 51.25, "gpu": 49.0}
    assert sensors.power_w == {"VDD_IN": pytest.approx(6.2), "VDD_CPU_GPU_CV": pytest.approx(1.248)}
    assert sensors.clock_mhz == pytest.approx({"cpu0": 1190.4, "cpu4": 729.6, "gpu": 306.0})
    assert sensors.fan_rpm == {"pwm_tach": 2140}
    assert sensors.throttled == ()
    assert sensors.throttle_counts == {"power alarm oc1": 0, "power alarm oc2": 2, "power alarm oc3": 37}


def test_the_sensors_of_a_laptop(tmp_path, clock):
    reader = SensorReader(laptop(tmp_path), clock)
    assert reader.read().power_w == {}, "one reading of a counter is no power"
    clock.now = 2.0
    write(tmp_path, {f"{ZONE}/energy_uj": 90_000_000, f"{ZONE}:1/energy_uj": 62_000_000})
    sensors = reader.read()
    assert sensors.power_w == pytest.approx({"package-0": 15.0, "dram": 1.0})
    assert sensors.temperature_c == {"x86_pkg_temp": 61.0}
    assert sensors.clock_mhz == {"cpu0": 2900.0, "cpu1": 3000.0}
    assert sensors.fan_rpm == {"thinkpad": 2800}
    assert sensors.throttled == ()
    assert sensors.throttle_counts == {"cpu core thermal": 6, "cpu package thermal": 10}


def test_a_reading_is_kept_for_a_second(tmp_path, clock):
    reader = SensorReader(laptop(tmp_path), clock)
    before = reader.read()
    write(tmp_path, {"sys/class/thermal/thermal_zone0/temp": 70000})
    clock.now = 0.99
    assert reader.read() is before
    clock.now = 1.0
    assert reader.read().temperature_c == {"x86_pkg_temp": 70.0}


def test_two_zones_of_one_name_are_both_shown(tmp_path):
    for number, milli_c in ((0, 40000), (1, 41000), (10, 42000)):
        write(
            tmp_path, folder(f"sys/class/thermal/thermal_zone{number}", {"type": "acpitz", "temp": milli_c})
        )
    assert SensorReader(tmp_path).read().temperature_c == {"acpitz": 40, "acpitz 2": 41, "acpitz 3": 42}
    assert named([("a", 1), ("a", 2), ("a 2", 3)]) == {"a": 1, "a 2": 2, "a 2 2": 3}


def test_other_monitors_have_their_power_as_one_number(tmp_path):
    write(tmp_path, folder("sys/class/hwmon/hwmon2", {"name": "ina238", "power1_input": 23500000}))
    labelled = {
        "name": "amdgpu",
        "power1_input": 9000000,
        "power1_label": "PPT",
        "in1_input": 1,
        "curr1_input": 1,
    }
    write(tmp_path, folder("sys/class/hwmon/hwmon10", labelled))
    reader = SensorReader(tmp_path)
    assert reader.read().power_w == pytest.approx({"ina238": 23.5, "PPT": 9.0})
    assert reader.rails.whole() == (), "neither is known to be the whole of the machine"


def test_a_machine_that_tells_nothing_has_no_sensors(tmp_path):
    reader = SensorReader(virtual_machine(tmp_path))
    sensors = reader.read()
    everything = (
        sensors.temperature_c,
        sensors.power_w,
        sensors.clock_mhz,
        sensors.fan_rpm,
        sensors.throttle_counts,
    )
    assert everything == ({}, {}, {}, {}, {})
    assert sensors.throttled == ()
    assert reader.clocks.settings() == ClockSettings(None, (), ())
    assert PowerModes(reader.files).current() is None
    meter = EnergyMeter(reader.files, reader.rails, Seconds())
    assert (meter.source, meter.joules()) == (None, None)


def test_clock_settings_tell_what_a_power_mode_leaves(tmp_path):
    settings = Clocks(SysFiles(orin(tmp_path))).settings()
    assert settings == ClockSettings(
        locked=False,
        governors=("nvhost_podgov", "schedutil"),
        limits=(
            "cpu0 at most 1510 of 1728 MHz",
            "cpu4 at most 1510 of 1728 MHz",
            "gpu at most 625 of 1020 MHz",
        ),
    )
    assert Clocks(SysFiles(laptop(tmp_path / "laptop"))).settings() == ClockSettings(
        False, ("powersave",), ()
    )


def test_clocks_are_locked_where_every_lower_limit_is_the_upper_one(tmp_path):
    files = SysFiles(orin(tmp_path))
    for number in (0, 4):
        write(tmp_path, policy(number, 1510400, 1510400, 1510400, 1728000, "performance"))
    assert Clocks(files).settings().locked is False, "the GPU's still float"
    write(tmp_path, {"sys/class/devfreq/17000000.gpu/min_freq": 624750000})
    assert Clocks(files).settings().locked is True


@pytest.mark.parametrize(
    "name",
    ["57000000.gpu", "17000000.gp10b", "17000000.gv11b", "17000000.ga10b", "17000000.gpu", "gpu-gpc-0"],
)
def test_the_gpu_of_every_jetson_is_found(name, tmp_path):
    for device, hertz in (
        (name, 500_000_000),
        ("gpu-nvd-0", 7),
        ("15340000.vic", 8),
        ("bwmgr", 3_199_000_000),
    ):
        write(tmp_path, {f"sys/class/devfreq/{device}/cur_freq": hertz})
    assert Clocks(SysFiles(tmp_path)).read() == {"gpu": 500.0, "emc": 3199.0}


def test_the_clock_of_memory_is_told_to_root(tmp_path):
    write(tmp_path, {"sys/kernel/debug/bpmp/debug/clk/emc/rate": 2133000000})
    assert Clocks(SysFiles(tmp_path)).read() == {"emc": 2133.0}


def test_of_many_processors_a_sample_is_read(tmp_path):
    for number in range(64):
        write(tmp_path, policy(number, 1000 * (number + 1), 1, 2, 2, "powersave"))
    assert list(Clocks(SysFiles(tmp_path)).read()) == [f"cpu{number}" for number in range(0, 64, 4)]


def test_a_limit_that_is_lowered_is_throttling_and_one_that_was_low_is_not(tmp_path, clock):
    reader = SensorReader(orin(tmp_path), clock, keep_s=0)
    assert reader.read().throttled == ()
    gpu = "sys/class/devfreq/17000000.gpu/max_freq"
    write(tmp_path, {gpu: 510000000})
    assert reader.read().throttled == ("gpu: limit lowered from 625 to 510 MHz",)
    write(tmp_path, {gpu: 1020000000})
    assert reader.read().throttled == ()


@pytest.mark.parametrize(
    ("machine", "files", "phrases"),
    [
        (orin, {"sys/class/hwmon/hwmon3/oc3_event_cnt": 38}, ("power alarm oc3: 1 event",)),
        (orin, {"sys/class/hwmon/hwmon3/oc1_event_cnt": 5}, ("power alarm oc1: 5 events",)),
        (orin, {"sys/class/thermal/cooling_device2/cur_state": 1}, ("gpu-throttle-alert: state 1",)),
        (orin, {"sys/class/thermal/cooling_device4/cur_state": 18}, ("devfreq-17000000.gpu: state 18",)),
        (orin, {"sys/class/thermal/cooling_device1/cur_state": 4}, ()),
        (orin, {"sys/class/thermal/cooling_device3/cur_state": 4}, ()),
        (laptop, {"sys/class/thermal/cooling_device0/cur_state": 2}, ("Processor: state 2",)),
        (laptop, {"sys/class/thermal/cooling_device1/cur_state": 9}, ()),
        (laptop, {"sys/class/thermal/cooling_device2/cur_state": 25}, ("intel_powerclamp: state 25",)),
        (
            laptop,
            {
                f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/package_throttle_count": 13
                for cpu in (0, 1)
            },
            ("cpu package thermal: 3 events",),
        ),
        (
            laptop,
            {f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count": 4 for cpu in (0, 1)},
            ("cpu core thermal: 2 events",),
        ),
    ],
)
def test_what_throttles_is_told_in_words_and_fans_and_settings_are_no_throttling(
    machine, files, phrases, tmp_path
):
    reader = SensorReader(machine(tmp_path), Seconds(), keep_s=0)
    assert reader.read().throttled == ()
    write(tmp_path, files)
    assert reader.read().throttled == phrases
    still = tuple(phrase for phrase in phrases if "event" not in phrase)
    assert reader.read().throttled == still, "an event is told once, a state as long as it holds"


@pytest.mark.parametrize(
    ("before", "after", "gone"),
    [
        ({}, {}, {}),
        ({"a": 3}, {"a": 3}, {}),
        ({"a": 3}, {"a": 5, "b": 2}, {"a": 2, "b": 2}),
        ({"a": 3}, {"a": 1}, {"a": 1}),
        ({"a": 3}, {"a": 0}, {}),
        ({"a": 3}, {}, {}),
    ],
)
def test_events_between_two_counts(before, after, gone):
    assert events_between(before, after) == gone


def test_energy_counters_add_up_and_go_on_after_their_end(tmp_path, clock):
    files = SysFiles(laptop(tmp_path))
    meter = EnergyMeter(files, Rails(files), clock)
    assert meter.source == "powercap package-0, powercap dram"
    assert meter.joules() == 0.0
    write(tmp_path, {f"{ZONE}/energy_uj": 90_000_000})
    assert meter.joules() == pytest.approx(30)
    write(tmp_path, {f"{ZONE}/energy_uj": 10_000_000, f"{ZONE}:1/energy_uj": 61_000_000})
    assert meter.joules() == pytest.approx(30 + 20 + 1)
    (tmp_path / ZONE / "energy_uj").unlink()
    assert meter.joules() == pytest.approx(51), "a counter that has gone stands still"


@given(steps=st.lists(st.integers(0, 99_999_999), max_size=20))
def test_no_step_of_a_counter_is_lost_over_its_end(steps):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write(root, folder(ZONE, {"name": "package-0", "energy_uj": 0, "max_energy_range_uj": 100_000_000}))
        files = SysFiles(root)
        meter = EnergyMeter(files, Rails(files), Seconds())
        for count, spent in enumerate(accumulate(steps), 1):
            write(root, {f"{ZONE}/energy_uj": spent % 100_000_000})
            assert meter.joules() == pytest.approx(sum(steps[:count]) / 1e6)


def test_a_counter_that_does_not_say_where_it_ends_never_runs_backwards(tmp_path, clock):
    write(tmp_path, folder(ZONE, {"name": "package-0", "energy_uj": 50_000_000}))
    files = SysFiles(tmp_path)
    meter = EnergyMeter(files, Rails(files), clock)
    write(tmp_path, {f"{ZONE}/energy_uj": 10_000_000})
    assert meter.joules() == 0.0
    write(tmp_path, {f"{ZONE}/energy_uj": 12_000_000})
    assert meter.joules() == pytest.approx(2)


def test_without_counters_the_power_of_the_module_is_summed_up(tmp_path, clock):
    files = SysFiles(orin(tmp_path))
    asked = []
    meter = EnergyMeter(files, Rails(files), clock, lambda: asked.append(1) or 5.0, "NVML gpu")
    assert meter.source == "power of VDD_IN, summed up"
    assert not asked, "the module's power has the GPU's in it"
    current = "sys/class/hwmon/hwmon1/curr1_input"
    write(tmp_path, {current: 1000})
    clock.now = 1.0
    assert meter.joules() == pytest.approx((6.2 + 5.0) / 2)
    clock.now = 3.0
    assert meter.joules() == pytest.approx(5.6 + 10.0)
    clock.now = 300.0
    assert meter.joules() == pytest.approx(15.6), "five minutes in which nobody looked are unknown, not 5 W"
    clock.now = 301.0
    write(tmp_path, {current: "?"})
    assert meter.joules() == pytest.approx(15.6)


def test_the_rails_of_a_board_without_an_input_rail_add_up_but_for_one_within_another(tmp_path):
    for number, rails in enumerate(
        (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), ("NC", "VDDQ_VDD2_1V8AO", "NC"))
    ):
        files: dict[str, str | int] = {"name": "ina3221"}
        for channel, label in enumerate(rails, 1):
            files |= {f"in{channel}_label": label, f"in{channel}_input": 5000, f"curr{channel}_input": 400}
        write(tmp_path, folder(f"sys/class/hwmon/hwmon{number}", files))
    rails = Rails(SysFiles(tmp_path))
    assert list(rails.read()) == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    assert rails.whole() == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert rails.read_whole(rails.whole()) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("files", "mode"),
    [
        ({"etc/nvpmodel.conf": POWER_MODES, "var/lib/nvpmodel/status": "pmode:0002"}, "MAXN_SUPER"),
        ({"etc/nvpmodel.conf": POWER_MODES, "var/lib/nvpmodel/status": "pmode:0000 fmode:quiet"}, "15W"),
        ({"etc/nvpmodel.conf": POWER_MODES, "var/lib/nvpmodel/status": "pmode:0009"}, "mode 9"),
        ({"var/lib/nvpmodel/status": "pmode:0001"}, "mode 1"),
        ({"etc/nvpmodel.conf": POWER_MODES}, None),
        ({"etc/nvpmodel.conf": POWER_MODES, "var/lib/nvpmodel/status": "something else"}, None),
        ({}, None),
    ],
)
def test_the_power_mode_is_read_without_nvpmodel(files, mode, tmp_path):
    assert PowerModes(SysFiles(write(tmp_path, files))).current() == mode


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (FileNotFoundError(2, "no"), 1),
        (PermissionError(13, "no"), 1),
        (OSError(5, "no"), 3),
        (BlockingIOError(11, "no"), 9),
    ],
)
def test_what_cannot_be_read_is_left_alone_and_what_is_asleep_is_not(error, asked, tmp_path, monkeypatch):
    count = []

    def refuse(path, flags):
        count.append(path)
        raise error

    files = SysFiles(write(tmp_path, {"a": 1}))
    monkeypatch.setattr(os, "open", refuse)
    assert [files.number(tmp_path / "a") for _ in range(9)] == [None] * 9
    assert len(count) == asked


def test_a_file_that_wakes_up_is_read_again(tmp_path, monkeypatch):
    files = SysFiles(write(tmp_path, {"a": 7}))
    answers = [5, 5, None, 5, 5, None, 5, 5, 5, None]
    real = os.open

    def flaky(path, flags):
        error = answers.pop(0)
        if error:
            raise OSError(error, "no")
        return real(path, flags)

    monkeypatch.setattr(os, "open", flaky)
    assert [files.number(tmp_path / "a") for _ in range(10)] == [
        None,
        None,
        7,
        None,
        None,
        7,
        None,
        None,
        None,
        None,
    ]
    assert answers == [None], "after three failures in a row it is not asked any more"


def test_reading_leaves_no_file_open(tmp_path):
    reader = SensorReader(orin(tmp_path), Seconds(), keep_s=0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        reader.read()
    assert len(os.listdir("/proc/self/fd")) == before


def test_counts_of_throttling_are_read_by_hand_too(tmp_path):
    files = SysFiles(orin(tmp_path))
    throttles = Throttles(files, Clocks(files))
    write(tmp_path, {"sys/class/hwmon/hwmon3/oc2_event_cnt": 4})
    assert throttles.counts()["power alarm oc2"] == 4
    (tmp_path / "sys/class/hwmon/hwmon3/oc2_event_cnt").unlink()
    assert "power alarm oc2" not in throttles.counts()
