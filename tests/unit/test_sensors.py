"""Temperatures and power, read from folders as Linux lays them out."""

from __future__ import annotations

import pytest

from edge_sdk.sensors import SensorReader


def tree(root, files):
    for path, text in files.items():
        (root / "sys/class" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys/class" / path).write_text(text)


def test_the_sensors_of_a_jetson(tmp_path):
    tree(
        tmp_path,
        {
            "thermal/thermal_zone0/type": "cpu-thermal\n", "thermal/thermal_zone0/temp": "51250\n",
            "thermal/thermal_zone1/type": "gpu-thermal\n", "thermal/thermal_zone1/temp": "49000\n",
            "thermal/thermal_zone2/type": "cv0-thermal\n", "thermal/thermal_zone2/temp": "-256000\n",
            "thermal/thermal_zone3/type": "soc0-thermal\n",
            "thermal/thermal_zone4/type": "tj-thermal\n", "thermal/thermal_zone4/temp": "broken\n",
            "hwmon/hwmon1/name": "ina3221\n",
            "hwmon/hwmon1/in1_label": "VDD_IN\n", "hwmon/hwmon1/in1_input": "5000\n",
            "hwmon/hwmon1/curr1_input": "1240\n",
            "hwmon/hwmon1/in2_label": "VDD_SOC\n", "hwmon/hwmon1/in2_input": "4992\n",
            "hwmon/hwmon1/curr2_input": "250\n",
            "hwmon/hwmon1/in3_label": "VDD_OFF\n", "hwmon/hwmon1/in3_input": "5000\n",
            "hwmon/hwmon1/in4_label": "shunt\n", "hwmon/hwmon1/in4_input": "12\n", "hwmon/hwmon1/curr4_input": "1490\n",
            "hwmon/hwmon2/name": "ina238\n", "hwmon/hwmon2/power1_input": "23500000\n",
            "hwmon/hwmon10/name": "nct6798\n", "hwmon/hwmon10/in1_input": "1000\n", "hwmon/hwmon10/curr1_input": "1\n",
        },
    )  # fmt: skip
    sensors = SensorReader(tmp_path).read()
    assert sensors.temperature_c == {"cpu": 51.25, "gpu": 49.0}
    assert sensors.power_w == {
        "VDD_IN": pytest.approx(6.2),
        "VDD_SOC": pytest.approx(1.248),
        "ina238": pytest.approx(23.5),
    }


def test_power_from_energy_counters_is_the_mean_since_the_last_reading(tmp_path):
    now_s = [0.0]
    zone = "powercap/intel-rapl:0"
    counters = {f"{zone}/name": "package-0\n", f"{zone}/max_energy_range_uj": "100000000\n"}
    cores = {f"{zone}/intel-rapl:0:0/energy_uj": "5\n", "powercap/intel-rapl:0:0/energy_uj": "5\n"}
    again = {"powercap/intel-rapl-mmio:0/energy_uj": "5\n", "powercap/intel-rapl-mmio:0/name": "package-0\n"}
    tree(tmp_path, {**counters, **cores, **again, f"{zone}/energy_uj": "60000000\n"})
    reader = SensorReader(tmp_path, lambda: now_s[0])
    assert reader.read().power_w == {}  # one reading is no power
    now_s[0] = 2.0
    tree(tmp_path, {f"{zone}/energy_uj": "90000000\n"})
    assert reader.read().power_w == {"package-0": pytest.approx(15)}
    now_s[0] = 2.5
    tree(tmp_path, {f"{zone}/energy_uj": "99000000\n"})
    assert reader.read().power_w == {"package-0": pytest.approx(15)}  # kept for a second
    now_s[0] = 4.0
    tree(tmp_path, {f"{zone}/energy_uj": "10000000\n"})
    assert reader.read().power_w == {"package-0": pytest.approx(10)}  # 20 J in 2 s, over the counter's end


def test_two_zones_of_one_name_are_both_shown(tmp_path):
    for number, milli_c in ((0, "40000"), (1, "41000"), (10, "42000")):
        tree(tmp_path, {f"thermal/thermal_zone{number}/type": "acpitz\n"})
        tree(tmp_path, {f"thermal/thermal_zone{number}/temp": milli_c})
    assert SensorReader(tmp_path).read().temperature_c == {"acpitz": 40, "acpitz 2": 41, "acpitz 3": 42}


def test_a_machine_that_tells_nothing_has_no_sensors(tmp_path):
    sensors = SensorReader(tmp_path).read()
    assert (sensors.temperature_c, sensors.power_w) == ({}, {})
