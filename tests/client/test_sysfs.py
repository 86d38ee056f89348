"""What is read of a device, from trees of files as kernels of phones and computers show them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path

import pytest

from fedcaptor.client.sysfs import Cores, EnergyMeter, temperature

BATTERY = "class/power_supply/battery"
DISCHARGED = {
    f"{BATTERY}/type": "Battery\n",
    f"{BATTERY}/status": "Discharging\n",
    f"{BATTERY}/current_now": "-500000\n",
    f"{BATTERY}/voltage_now": "4000000\n",
    f"{BATTERY}/charge_counter": "3000000\n",
}
RAPL = {
    "class/powercap/intel-rapl:0/energy_uj": "9000000",
    "class/powercap/intel-rapl:0/max_energy_range_uj": "10000000",
    "class/powercap/intel-rapl:0:0/energy_uj": "5",  # a part of the package, which is not to count twice
}


def tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def cores(*kilohertz: int) -> dict[str, str]:
    places = (f"devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq" for core in count())
    return dict(zip(places, map(str, kilohertz), strict=False))


@pytest.mark.parametrize(
    ("threads", "expected"), [(1, (7,)), (2, (4, 5, 6, 7)), (4, (4, 5, 6, 7)), (5, tuple(range(8)))]
)
def test_the_fastest_cores_of_three_kinds(tmp_path: Path, threads: int, expected: tuple[int, ...]) -> None:
    told = Cores(tree(tmp_path, cores(*[1_800_000] * 4, *[2_400_000] * 3, 3_000_000)))
    assert told.fastest(range(8), threads) == expected


def test_cores_that_a_process_may_not_use_are_not_chosen(tmp_path: Path) -> None:
    told = Cores(tree(tmp_path, cores(1_800_000, 2_400_000, 3_000_000)))
    assert told.fastest({0, 1}, 1) == (1,)


def test_without_all_frequencies_no_core_is_chosen(tmp_path: Path) -> None:
    assert Cores(tmp_path).fastest({0, 1}, 1) is None
    assert Cores(tree(tmp_path, cores(2_000_000))).fastest({0, 1}, 1) is None


def test_frequencies_of_this_moment_are_averaged(tmp_path: Path) -> None:
    place = "devices/system/cpu/cpu{}/cpufreq/scaling_cur_freq"
    told = Cores(tree(tmp_path, {place.format(0): "1000000", place.format(1): "2000000"}))
    assert told.megahertz((0, 1)) == 1500
    assert told.megahertz((5,)) is None


def test_the_hottest_zone_counts_and_sensors_that_are_off_do_not(tmp_path: Path) -> None:
    assert temperature(tmp_path) is None
    zones = {0: "38500", 1: "41200\n", 2: "-274000", 3: "4294967295", 4: "off"}
    assert temperature(tree(tmp_path, {f"class/thermal/thermal_zone{n}/temp": t for n, t in zones.items()})) == 41.2


def metered(root: Path, seconds: int, changes: Mapping[str, str] | None = None) -> EnergyMeter:
    """A meter after so many samples, one a second; then the tree changes."""
    ticks = count(step=0.5)
    meter = EnergyMeter(root, lambda: next(ticks))
    for _ in range(seconds):
        meter.sample()
    tree(root, changes or {})
    return meter


def test_a_batterys_current_and_voltage_over_time(tmp_path: Path) -> None:
    ticks = iter([0.0, 0.0, 1.0, 10.0])
    meter = EnergyMeter(tree(tmp_path, DISCHARGED), lambda: next(ticks))  # 2 W
    tree(tmp_path, {f"{BATTERY}/current_now": "-1000000"})  # 4 W
    meter.sample()
    assert meter.stop() == pytest.approx(30)  # 3 W over 10 s
    assert meter.source == "battery, current × voltage, whole device"


def test_a_charged_battery_tells_no_energy(tmp_path: Path) -> None:
    meter = metered(tree(tmp_path, DISCHARGED | {f"{BATTERY}/status": "Charging\n"}), 3)
    assert meter.stop() is None
    assert meter.problem == "energy: the battery's status is Charging, must be Discharging: unplug the device"


def test_the_charge_tells_where_the_current_does_not(tmp_path: Path) -> None:
    files = {name: text for name, text in DISCHARGED.items() if "current" not in name}
    charge = f"{BATTERY}/charge_counter"
    meter = metered(tree(tmp_path, files), 3, {charge: "2999000"})
    assert meter.stop() == pytest.approx(1e-3 * 3600 * 4)  # 1 mAh at 4 V
    same = metered(tree(tmp_path, {charge: "2999000"}), 3)
    assert same.stop() is None
    assert same.problem is not None
    assert "--seconds" in same.problem


def test_a_processors_counter_that_began_anew_once(tmp_path: Path) -> None:
    meter = metered(tree(tmp_path, RAPL), 1, {"class/powercap/intel-rapl:0/energy_uj": "500000"})
    assert meter.stop() == pytest.approx(1.5)
    assert meter.source == "RAPL, processor package"


def test_a_device_that_tells_nothing_says_so(tmp_path: Path) -> None:
    meter = metered(tmp_path, 2)
    assert (meter.stop(), meter.source) == (None, None)
    assert meter.problem == "energy: no battery and no RAPL counter can be read"
