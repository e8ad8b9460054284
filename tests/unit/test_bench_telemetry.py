"""Readings during a run: exact sequences on a simulated clock, energy, sensors that fail, the machine's settings."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace

import pytest

from edge_sdk.bench import telemetry as module
from edge_sdk.bench.samples import Reading
from edge_sdk.bench.telemetry import Telemetry, describe_report
from edge_sdk.nvml import GpuReading
from edge_sdk.runtime.cuda.device import CudaReport
from tests.machine_files import laptop, orin, stat, statm, virtual_machine, write

PAGE = os.sysconf("SC_PAGE_SIZE")
CURRENT = "sys/class/hwmon/hwmon1/curr1_input"


class World:
    """Time that passes only while the telemetry waits; at each moment something may happen.

    Args:
        seconds: how often the telemetry may wait before the block ends.
        happens: by the number of the wait, counted from 1, what happens when it is over.
    """

    def __init__(self, seconds=0, happens=None):
        self.ms, self.left, self.happens = 0.0, seconds, happens or {}
        self.waited: list[float] = []
        self.ended = threading.Event()

    def now_ms(self):
        return self.ms

    def wait(self, seconds):
        if self.left == 0:
            self.ended.set()
            return True
        self.left -= 1
        self.waited.append(seconds)
        self.ms += seconds * 1e3
        self.happens.get(len(self.waited), lambda: None)()
        return False

    def run(self, root, **options):
        """A whole block; its telemetry."""
        with Telemetry(self.now_ms, root=root, wait=self.wait, **options) as telemetry:
            assert self.ended.wait(10)
        return telemetry


class Gpu:
    """The management library as telemetry uses it."""

    status = "NVML"

    def __init__(self, *readings, joules=None):
        self.readings, self.joules, self.closed = list(readings), joules, False

    def read(self):
        return self.readings.pop(0) if len(self.readings) > 1 else self.readings[0]

    def energy_j(self):
        return self.joules

    def close(self):
        self.closed = True


def test_a_reading_at_the_beginning_every_second_and_at_the_end(tmp_path):
    orin(tmp_path)

    def second():
        write(tmp_path, statm(1500) | stat(200, 1000, 50) | {CURRENT: 2000})
        write(
            tmp_path,
            {"sys/class/thermal/cooling_device2/cur_state": 1, "sys/class/hwmon/hwmon3/oc3_event_cnt": 40},
        )

    telemetry = World(2, {2: second}).run(tmp_path)
    clocks = {"cpu0": 1190.4, "cpu4": 729.6, "gpu": 306.0}
    calm = Reading(
        at_ms=0.0,
        rss_bytes=1000 * PAGE,
        clock_mhz=clocks,
        temperature_c={"cpu": 51.25, "gpu": 49.0},
        power_w={"VDD_IN": 6.2, "VDD_CPU_GPU_CV": 1.248},
        stolen=None,
    )
    hot = calm.model_copy(
        update={
            "at_ms": 2000.0,
            "rss_bytes": 1500 * PAGE,
            "power_w": {"VDD_IN": 10.0, "VDD_CPU_GPU_CV": 1.248},
            "throttled": ("power alarm oc3: 3 events", "gpu-throttle-alert: state 1"),
            "stolen": 0.2,
        }
    )
    assert telemetry.readings == (
        calm,
        calm.model_copy(update={"at_ms": 1000.0}),
        hot,
        hot.model_copy(update={"throttled": ("gpu-throttle-alert: state 1",), "stolen": None}),
    )
    assert telemetry.energy_j() == pytest.approx(6.2 + (6.2 + 10.0) / 2)


def test_readings_stay_on_the_grid_and_slow_ones_skip_what_they_missed(tmp_path):
    virtual_machine(tmp_path)
    world = World(4)
    slow = {3: 2600.0}  # the third reading: what comes first is the one at the beginning

    def memory():
        count.append(1)
        world.ms += slow.get(len(count), 0.0)
        return 7

    count: list[int] = []
    telemetry = world.run(tmp_path, device_memory=memory)
    assert [reading.at_ms for reading in telemetry.readings] == [0, 1000, 2000, 5000, 6000, 6000]
    assert world.waited == pytest.approx([1.0, 1.0, 0.4, 1.0])
    assert {reading.device_bytes for reading in telemetry.readings} == {7}


def test_a_reading_may_be_forced_and_all_are_in_order(tmp_path):
    orin(tmp_path)
    clock = time.monotonic
    with Telemetry(lambda: clock() * 1e3, root=tmp_path, period_s=0.001) as telemetry:
        forced = [telemetry.read() for _ in range(50)]
    moments = [reading.at_ms for reading in telemetry.readings]
    assert moments == sorted(moments)
    assert set(map(id, forced)) <= set(map(id, telemetry.readings))


def test_the_thread_ends_with_the_block_and_with_an_error(tmp_path):
    def threads():
        return [thread.name for thread in threading.enumerate() if thread.name == "telemetry"]

    telemetry = Telemetry(lambda: 0.0, root=tmp_path)

    def block():
        with telemetry:
            assert threads() == ["telemetry"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()
    assert threads() == []
    assert len(telemetry.readings) == 2


def test_a_sensor_that_hangs_does_not_hold_up_the_end(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_PATIENCE_S", 0.05)
    entered, released = threading.Event(), threading.Event()
    answers = iter([1])

    def memory():
        for answer in answers:
            return answer
        entered.set()
        released.wait(10)
        return 2

    telemetry = Telemetry(lambda: 0.0, root=tmp_path, period_s=0.001, device_memory=memory)
    with telemetry:
        assert entered.wait(10)
    assert "a sensor does not answer; the last reading is missing" in caplog.text
    assert telemetry.machine().throttle_events == {}
    released.set()


@pytest.mark.parametrize("broken", ["sensors", "NVML", "GPU memory", "memory", "stolen time", "energy"])
def test_what_fails_in_an_unforeseen_way_is_told_once_and_the_run_goes_on(broken, tmp_path, caplog):
    orin(tmp_path)
    gpu = Gpu(GpuReading())
    telemetry = Telemetry(lambda: 0.0, root=tmp_path, gpu=gpu, device_memory=lambda: 5)

    def fail():
        raise RuntimeError("the sensor is on fire")

    holder, name = {
        "sensors": (telemetry._reader, "read"),
        "NVML": (gpu, "read"),
        "GPU memory": (telemetry, "_device_memory"),
        "memory": (telemetry, "_rss_bytes"),
        "stolen time": (telemetry._processors, "stolen"),
        "energy": (telemetry._energy, "joules"),
    }[broken]
    setattr(holder, name, fail)
    with telemetry:
        telemetry.read()
    told = [record.message for record in caplog.records]
    assert told == [f"Telemetry: {broken} cannot be read, and will be missing."]
    assert len(telemetry.readings) == 3
    seen = telemetry.readings[1]
    assert (seen.rss_bytes is None) == (broken == "memory")
    assert (not seen.temperature_c) == (broken == "sensors")
    assert (seen.device_bytes is None) == (broken == "GPU memory")
    assert (telemetry.energy_j() is None) == (broken == "energy")


def test_a_slow_reading_is_told_once_and_the_cost_is_known(tmp_path, monkeypatch, caplog):
    moments = iter([0.0, 0.001, 5.0, 5.4, 6.0, 6.3])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(moments))
    telemetry = Telemetry(lambda: 0.0, root=tmp_path)
    for _ in range(3):
        telemetry.read()
    assert [record.message for record in caplog.records] == ["Telemetry: a reading took 400 ms."]
    cost = telemetry.cost
    assert (cost.readings, cost.median_ms, cost.worst_ms) == (3, pytest.approx(300), pytest.approx(400))
    assert cost.cpu_ms > 0
    assert telemetry.machine().telemetry_cost == cost


def test_the_gpus_figures_stand_beside_the_machines(tmp_path):
    laptop(tmp_path)
    reading = GpuReading({"gpu": 1980.0}, {"gpu": 63.0}, {"gpu": 200.0}, ("gpu: power cap",), None, 5000)
    gpu = Gpu(reading, joules=100.0)
    world = World(1, {1: lambda: setattr(gpu, "joules", 130.0)})
    telemetry = world.run(tmp_path, gpu=gpu, device_memory=lambda: 1)
    last = telemetry.readings[-1]
    assert last.clock_mhz == {"cpu0": 2900.0, "cpu1": 3000.0, "gpu": 1980.0}
    assert last.temperature_c == {"x86_pkg_temp": 61.0, "gpu": 63.0}
    assert last.power_w == {"gpu": 200.0}
    assert last.throttled == ("gpu: power cap",)
    assert last.device_bytes == 5000
    assert telemetry.energy_j() == pytest.approx(30)
    assert telemetry.sources == (
        "clocks, temperatures, power",
        "energy: powercap package-0, powercap dram, NVML gpu",
        "NVML",
        "GPU memory: of all processes",
    )
    assert gpu.closed


def test_device_memory_is_this_processes_own_where_that_is_known_at_all(tmp_path):
    virtual_machine(tmp_path)
    before, during = GpuReading(used_bytes=900), GpuReading(used_bytes=1000, own_bytes=100)
    telemetry = World(1).run(tmp_path, gpu=Gpu(before, during))
    assert [reading.device_bytes for reading in telemetry.readings] == [None, 100, 100]
    assert telemetry.sources == ("NVML", "GPU memory: of this process")


def test_energy_of_a_block_is_the_difference_of_two_looks(tmp_path):
    laptop(tmp_path)
    telemetry = Telemetry(lambda: 0.0, root=tmp_path)
    before = telemetry.energy_j()
    write(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": 72_500_000})
    assert telemetry.energy_j() - before == pytest.approx(12.5)


def test_counters_that_only_root_may_read_are_told(tmp_path, monkeypatch):
    laptop(tmp_path)
    secret = {str(path) for path in tmp_path.glob("sys/class/powercap/*/energy_uj")}
    real_open, real_access = os.open, os.access

    def refuse(path, flags):
        if str(path) in secret:
            raise PermissionError(13, "Permission denied")
        return real_open(path, flags)

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) not in secret and real_access(path, mode))
    telemetry = Telemetry(lambda: 0.0, root=tmp_path)
    telemetry.read()
    assert telemetry.energy_j() is None
    assert telemetry.sources == (
        "clocks, temperatures",
        "no powercap: its energy counters are readable by root alone",
    )


def test_a_machine_that_tells_nothing_has_memory_and_stolen_time(tmp_path):
    virtual_machine(tmp_path)
    world = World(1, {1: lambda: write(tmp_path, stat(150, 920, 30))})
    telemetry = world.run(tmp_path)
    assert telemetry.readings == (
        Reading(at_ms=0.0, rss_bytes=500 * PAGE),
        Reading(at_ms=1000.0, rss_bytes=500 * PAGE, stolen=0.2),
        Reading(at_ms=1000.0, rss_bytes=500 * PAGE),
    )
    machine = telemetry.machine()
    assert machine.telemetry == ()
    assert (machine.clocks_locked, machine.governors, machine.throttle_events) == (None, (), {})


def test_no_proc_at_all_is_no_error(tmp_path):
    telemetry = Telemetry(lambda: 0.0, root=tmp_path / "nothing")
    assert telemetry.read() == Reading(at_ms=0.0)


REPORT = CudaReport(
    device="Orin",
    compute_capability="8.7",
    integrated=True,
    memory="mapped",
    memory_reason="the fastest of three",
    memory_ms={"pinned": 0.5, "mapped": 0.25},
    priorities="on",
    graphs={"keyframe": "captured", "delta": "refused: it allocates"},
)


def test_how_the_machine_was_set_is_as_the_run_began_and_events_are_those_of_the_run(tmp_path):
    orin(tmp_path)

    def changes():
        write(tmp_path, {"sys/class/hwmon/hwmon3/oc3_event_cnt": 42, "var/lib/nvpmodel/status": "pmode:0002"})
        write(tmp_path, {"sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "performance"})

    telemetry = World(1, {1: changes}).run(tmp_path)
    write(tmp_path, {"sys/class/hwmon/hwmon3/oc3_event_cnt": 99})  # after the run
    machine = telemetry.machine(REPORT)
    assert machine.accelerator == "Orin"
    assert machine.power_mode == "15W"
    assert machine.clocks_locked is False
    assert machine.governors == ("nvhost_podgov", "schedutil")
    assert machine.limits[-1] == "gpu at most 625 of 1020 MHz"
    assert machine.throttle_events == {"power alarm oc3": 5}
    assert machine.telemetry == ("clocks, temperatures, power", "energy: power of VDD_IN, summed up")
    assert machine.engine_report == describe_report(REPORT)
    assert telemetry.machine().engine_report == {}


def test_what_a_gpu_backend_chose_in_words():
    assert describe_report(REPORT) == {
        "compute capability": "8.7",
        "memory of its own": "no, the machine's",
        "stream priorities": "on",
        "host memory": "mapped: the fastest of three",
        "one frame in and out, pinned": "0.500 ms",
        "one frame in and out, mapped": "0.250 ms",
        "graph of keyframe": "captured",
        "graph of delta": "refused: it allocates",
    }
    plain = replace(REPORT, integrated=False, memory=None, memory_ms={}, graphs={})
    assert describe_report(plain) == {
        "compute capability": "8.7",
        "memory of its own": "yes",
        "stream priorities": "on",
    }


def test_a_run_on_the_cpu_asks_no_gpu(monkeypatch):
    monkeypatch.setattr(module, "Nvml", None)
    assert Telemetry.of(lambda: 0.0, on_gpu=False).sources == Telemetry(lambda: 0.0).sources


def test_a_run_on_a_gpu_says_what_its_library_is_missing(monkeypatch):
    monkeypatch.setattr(module, "Nvml", lambda: Gpu(GpuReading()))
    monkeypatch.setattr(Gpu, "status", "no NVML: no CUDA driver shows a GPU")
    monkeypatch.setattr(module, "used_gpu_memory", lambda: 4096)
    telemetry = Telemetry.of(lambda: 0.0, on_gpu=True)
    assert telemetry.read().device_bytes == 4096
    assert telemetry.sources[-2:] == ("no NVML: no CUDA driver shows a GPU", "GPU memory: of all processes")


def test_a_reading_of_this_machine_is_out_of_the_way(caplog):
    caplog.set_level(logging.WARNING)
    telemetry = Telemetry.of(lambda: time.monotonic() * 1e3, on_gpu=False)
    for _ in range(20):
        telemetry.read()
    assert telemetry.cost.median_ms < 50
    assert telemetry.cost.cpu_ms / 20 < 50
    assert telemetry.readings[-1].rss_bytes > 10_000_000
    assert caplog.text == ""
