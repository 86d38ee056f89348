"""What Linux and Android tell of a device in /sys: fast cores, their frequencies, temperatures, and energy drawn.

Phones differ in what they let a process read. All that is not told is None, and the caller says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

SYSFS = Path("/sys")
_MICRO, _MILLI = 1e-6, 1e-3
_COULOMBS = 3600.0  # in an ampere hour
_ZONES = range(-40, 150)  # °C: what a sensor that is off shows lies outside
SAMPLES_EVERY = 0.1  # seconds: batteries' gauges are hardly faster


@dataclass(frozen=True)
class Cores:
    """Read what cpufreq tells of processor cores."""

    sysfs: Path = SYSFS

    def fastest(self, among: Collection[int], count: int) -> tuple[int, ...] | None:
        """Return the cores with the highest frequency, and those next to them until there are `count`.

        None where the frequencies of some are not told.
        """
        most = {core: self._kilohertz(core, "cpuinfo_max_freq") for core in among}
        known = {core: value for core, value in most.items() if value is not None}
        if len(known) < len(most) or not known:
            return None
        least = sorted(known.values(), reverse=True)[:count][-1]
        return tuple(sorted(core for core, value in known.items() if value >= least))

    def megahertz(self, cores: Collection[int]) -> float | None:
        """Return the mean frequency at this moment; None where it is not told."""
        found = [self._kilohertz(core, "scaling_cur_freq") for core in cores]
        known = [value for value in found if value is not None]
        return sum(known) / len(known) * _MILLI if known else None

    def _kilohertz(self, core: int, name: str) -> int | None:
        return _number(self.sysfs / f"devices/system/cpu/cpu{core}/cpufreq/{name}")


def temperature(sysfs: Path = SYSFS) -> float | None:
    """Return the temperature in °C of the hottest thermal zone; None where none is told."""
    found = [_number(path) for path in sorted(sysfs.glob("class/thermal/thermal_zone*/temp"))]
    degrees = [value * _MILLI for value in found if value is not None and int(value * _MILLI) in _ZONES]
    return max(degrees, default=None)


@dataclass(eq=False)
class EnergyMeter:
    """Measure what the device draws between its start and `stop`: with display, radio and all else that runs.

    Of a processor by RAPL where that is readable, otherwise of the battery while it is discharged: by its current and
    voltage, sampled when `sample` is called; or by its charge.
    """

    sysfs: Path
    clock: Callable[[], float]
    source: str | None = None
    problem: str | None = None
    _began: float = field(init=False)
    _counters: dict[Path, int] = field(init=False)
    _battery: Path | None = field(init=False)
    _samples: list[tuple[float, float]] = field(init=False, default_factory=list)
    _charge: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._began = self.clock()
        counters = {path: _number(path) for path in self.sysfs.glob("class/powercap/intel-rapl:?/energy_uj")}
        self._counters = {path: value for path, value in counters.items() if value is not None}
        self._battery = _battery(self.sysfs)
        if self._battery is not None:
            self._charge = _number(self._battery / "charge_counter")
        self.sample()

    def sample(self) -> None:
        """Read the battery's power, unless that was done a moment ago."""
        if self._battery is None:
            return
        now = self.clock()
        if self._samples and now - self._samples[-1][0] < SAMPLES_EVERY:
            return
        power = _watts(self._battery)
        if power is not None:
            self._samples.append((now, power))

    def stop(self) -> float | None:
        """Return the joules since the start, with their `source`; None, with the `problem`, where nothing told them."""
        if self._counters:
            self.source = "RAPL, processor package"
            return sum(self._spent(path, before) for path, before in self._counters.items()) * _MICRO
        if self._battery is None:
            self.problem = "energy: no battery and no RAPL counter can be read"
            return None
        if (status := _text(self._battery / "status")) != "Discharging":
            self.problem = (
                f"energy: the battery's status is {status or 'not told'}, must be Discharging: unplug the device"
            )
            return None
        if self._samples:
            self.source = "battery, current × voltage, whole device"
            return sum(power for _, power in self._samples) / len(self._samples) * (self.clock() - self._began)
        return self._by_charge(self._battery)

    def _spent(self, path: Path, before: int) -> int:
        """Return the microjoules of a counter, which may have begun anew once."""
        spent = (_number(path) or before) - before
        return spent if spent >= 0 else spent + (_number(path.parent / "max_energy_range_uj") or 0)

    def _by_charge(self, battery: Path) -> float | None:
        charge, volts = _number(battery / "charge_counter"), _number(battery / "voltage_now")
        if self._charge is None or charge is None or volts is None:
            self.problem = "energy: the battery tells neither current nor charge with its voltage"
            return None
        if charge >= self._charge:
            self.problem = "energy: the battery's charge did not fall by one step: measure for longer (--seconds)"
            return None
        self.source = "battery, charge × voltage, whole device"
        return (self._charge - charge) * _MICRO * _COULOMBS * volts * _MICRO


def _battery(sysfs: Path) -> Path | None:
    found = sorted(sysfs.glob("class/power_supply/*/type"))
    return next((path.parent for path in found if _text(path) == "Battery"), None)


def _watts(battery: Path) -> float | None:
    """Return the power that flows; phones disagree about the sign of a current."""
    current, volts = _number(battery / "current_now"), _number(battery / "voltage_now")
    if current is not None and volts is not None:
        return abs(current) * _MICRO * volts * _MICRO
    power = _number(battery / "power_now")
    return None if power is None else abs(power) * _MICRO


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):  # of drivers: also "no data" and "invalid argument"
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
