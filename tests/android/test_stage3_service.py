"""The client stays alive, and stays away from the server while its phone asks for rest."""

from __future__ import annotations

import pytest

from tests.android.fleet import Fleet, until

pytestmark = [pytest.mark.android, pytest.mark.timeout(1800)]


def log_of(fleet: Fleet, number: int) -> str:
    return fleet.installation(number).logs(1000)


def test_a_client_that_dies_comes_back(running: Fleet) -> None:
    installation = running.installation(0)
    until(lambda: "connected as node" in log_of(running, 0), 300)
    before, (restarts, loop) = log_of(running, 0).count("connected as node"), _service(running)
    children = rf"for p in /proc/[0-9]*; do ! grep -q '^PPid:[^0-9]*{loop}$' $p/status || kill -9 ${{p#/proc/}}; done"
    installation.device.run(children)
    until(lambda: _service(running) == (restarts + 1, loop))
    until(lambda: log_of(running, 0).count("connected as node") > before, 300)
    assert "the client ended with 137; again in 1 s" in log_of(running, 0)


def _service(fleet: Fleet) -> tuple[int, int]:
    found = fleet.installation(0).status()
    return found["restarts"], found["running"]


@pytest.mark.parametrize(
    ("name", "value", "good", "said"),
    [
        ("capacity", "29", "80", "battery is at 29 %, below 30 %"),
        ("temp", "430", "285", "battery has 43 °C, above 42 °C"),
    ],
)
def test_a_phone_with_a_low_or_hot_battery_stays_away_until_it_recovers(
    name: str, value: str, good: str, said: str, running: Fleet
) -> None:
    battery = running.devices[1].battery / name

    def times(words: str) -> int:
        return log_of(running, 1).count(words)

    until(lambda: times("connected as node"), 300)
    back = times("connected as node")
    battery.write_text(f"{value}\n")
    try:
        until(lambda: times(f"device.condition does not hold: {said}"), 300)
        until(lambda: log_of(running, 1).splitlines()[-1].endswith("resting until device.condition holds"), 300)
        assert times("connected as node") == back
    finally:
        battery.write_text(f"{good}\n")
    until(lambda: times("connected as node") > back, 300)
    assert running.installation(1).running  # it rested, and did not end
