"""What a machine tells of itself as Linux shows it: temperatures, power, energy, clocks, throttling, power mode."""

from edge_sdk.sensors.clocks import Clocks, ClockSettings
from edge_sdk.sensors.energy import EnergyMeter
from edge_sdk.sensors.files import SysFiles
from edge_sdk.sensors.power_mode import PowerModes
from edge_sdk.sensors.reader import SensorReader, Sensors
from edge_sdk.sensors.throttle import Throttles

__all__ = [
    "ClockSettings",
    "Clocks",
    "EnergyMeter",
    "PowerModes",
    "SensorReader",
    "Sensors",
    "SysFiles",
    "Throttles",
]
