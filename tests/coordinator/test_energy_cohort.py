"""Who is asked if joules count: pure, so every rule is held against made-up devices."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.energy_cohort import DAY_S, PATIENCE, Device, Limits, choose, rest


def device(name: str, spent_j: float = 0.0, **more: object) -> Device:
    spends = ((0.0, spent_j),) if spent_j else ()
    return replace(Device(name, reports_joules=True, spends=spends), **more)  # type: ignore[arg-type]


def asked(
    devices: list[Device], count: int, limits: Limits | None = None, number: int = 1, now_s: float = 10.0
) -> tuple:
    return choose(devices, count, limits or Limits(), 0, number, now_s).asked


def test_those_are_asked_that_have_spent_the_least():
    assert asked([device("a", 30.0), device("b", 10.0), device("c", 20.0)], 2) == ("b", "c")


def test_only_the_last_day_counts():
    assert asked([device("a", 30.0), device("b", 10.0)], 1, now_s=10.0) == ("b",)
    yesterdays = [device("a", 30.0), device("b", spends=((0.0, 10.0), (DAY_S, 5.0)))]
    assert asked(yesterdays, 1, now_s=DAY_S + 1) == ("a",)


def test_equal_devices_are_drawn_by_the_seed_and_the_round():
    devices = [device(name) for name in "abcdefgh"]
    drawn = {choose(devices, 3, Limits(), 0, number, 0.0).asked for number in range(1, PATIENCE + 1)}
    assert len(drawn) == PATIENCE
    assert choose(devices, 3, Limits(), 1, 1, 0.0) != choose(devices, 3, Limits(), 0, 1, 0.0)


@pytest.mark.parametrize(
    ("what", "limits", "reason"),
    [
        ({"battery_percent": 19.0}, Limits(battery_floor_percent=20), "low battery: 19 % of 20 %"),
        ({"temperature_c": 75.5}, Limits(temperature_ceiling_c=75), "hot: 76 of 75 °C"),
        ({"throttling": "under-voltage"}, Limits(), "slowed: under-voltage"),
        ({"throttling": "throttled"}, Limits(), "slowed: throttled"),
    ],
)
def test_an_unwell_device_rests_until_its_report_is_old(what, limits, reason):
    limits = replace(limits, rest_s=600)
    unwell = device("a", seen_s=100.0, **what)
    found = rest(unwell, limits, 100.0)
    assert found is not None
    assert (found.reason, found.until_s) == (reason, 700.0)
    assert rest(unwell, limits, 699.0) is not None
    assert rest(unwell, limits, 700.0) is None  # Only a round can tell how it is by now.
    assert choose([unwell], 1, limits, 0, 1, 100.0).asked == ()


def test_a_device_at_its_limits_is_well():
    limits = Limits(battery_floor_percent=20, temperature_ceiling_c=75)
    assert rest(device("a", seen_s=0.0, battery_percent=20.0, temperature_c=75.0), limits, 1.0) is None
    assert rest(device("a", seen_s=0.0), limits, 1.0) is None  # It cannot tell: nothing is made up.


def test_a_round_that_would_exceed_the_day_is_not_begun():
    limits = Limits(joules_per_day=100.0)
    assert rest(device("a", 60.0, next_j=40.0), limits, 10.0) is None
    found = rest(device("a", 60.0, next_j=41.0), limits, 10.0)
    assert found is not None
    assert found.reason == "over budget: 60 J spent, 41 J to come, of 100 J a day"
    assert found.until_s == DAY_S  # When the 60 J of second 0 are a day old.


def test_it_rests_until_enough_is_a_day_old():
    spends = ((0.0, 10.0), (100.0, 20.0), (200.0, 60.0))
    found = rest(device("a", spends=spends, next_j=35.0), Limits(joules_per_day=100.0), 300.0)
    assert found is not None
    assert found.until_s == DAY_S + 100  # 25 J too many: the first two are 30.
    assert rest(device("a", spends=spends, next_j=35.0), Limits(joules_per_day=100.0), DAY_S + 100) is None


def test_a_device_whose_round_exceeds_any_day_never_runs():
    found = rest(device("a", next_j=101.0), Limits(joules_per_day=100.0), 0.0)
    assert found is not None
    assert math.isinf(found.until_s)


def test_a_device_without_joules_rests_and_is_told_the_cure():
    found = rest(Device("a", reports_joules=False), Limits(), 0.0)
    assert found is not None
    assert found.reason.startswith("no joules: set `energy`")
    assert math.isinf(found.until_s)


DEVICES = st.lists(
    st.builds(
        Device,
        client_id=st.uuids().map(str),
        reports_joules=st.booleans(),
        spends=st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 50)), max_size=4).map(
            lambda s: tuple(sorted(s))
        ),
        next_j=st.floats(0, 60),
        last_asked=st.integers(0, 20),
        seen_s=st.floats(0, 1000),
        battery_percent=st.none() | st.floats(0, 100),
        temperature_c=st.none() | st.floats(0, 100),
        throttling=st.sampled_from(["", "", "throttled"]),
    ),
    max_size=8,
    unique_by=lambda d: d.client_id,
)
LIMITS = st.builds(
    Limits,
    joules_per_day=st.sampled_from([math.inf, 60.0, 100.0]),
    battery_floor_percent=st.sampled_from([0.0, 30.0]),
    temperature_ceiling_c=st.sampled_from([math.inf, 70.0]),
    rest_s=st.sampled_from([1.0, 500.0]),
)


@given(DEVICES, st.integers(1, 8), LIMITS, st.integers(0, 2**63), st.integers(20, 40), st.randoms())
def test_the_choice_depends_on_nothing_else_and_keeps_the_limits(
    devices, count, limits, seed, number, shuffle
):
    choice = choose(devices, count, limits, seed, number, 1000.0)
    shuffled = list(devices)
    shuffle.shuffle(shuffled)
    assert choose(shuffled, count, limits, seed, number, 1000.0) == choice
    assert not set(choice.asked) & set(choice.resting)
    able = [d for d in devices if rest(d, limits, 1000.0) is None]
    assert len(choice.asked) == min(count, len(able))
    for one in devices:
        if one.client_id in choice.asked:
            assert one.reports_joules
            assert one.spent_j(1000.0) + one.next_j <= limits.joules_per_day
        else:
            assert one.client_id in choice.resting or len(able) > count


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0.1, 100), min_size=2, max_size=9),
    st.integers(1, 4),
    st.integers(0, 1000),
    st.integers(0, 8),
)
@example([1.0, 43.0, 43.0, 16.0, 16.0, 43.0, 43.0], 1, 0, 0)
def test_nobody_starves_and_nobody_exceeds_its_budget(costs, count, seed, newcomers):
    """Rounds of a minute each; some devices join later, with nothing spent yet."""
    budget_j, minute_s, names = 300.0, 60.0, [f"d{n}" for n in range(len(costs))]
    spends: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    last, longest = dict.fromkeys(names, 0), 0
    limits = Limits(joules_per_day=budget_j)
    for number in range(1, 120):
        here = names if number > 20 else names[: max(1, len(names) - newcomers)]
        if number == 21:
            last |= {name: 20 for name in names if not spends[name]}
        now_s = number * minute_s
        known = [
            Device(
                name, True, tuple(spends[name]), next_j=cost if spends[name] else 0.0, last_asked=last[name]
            )
            for name, cost in zip(names, costs, strict=True)
            if name in here
        ]
        choice = choose(known, count, limits, seed, number, now_s)
        able = len(known) - len(choice.resting)
        for name in choice.asked:
            spends[name].append((now_s, costs[names.index(name)]))
        for one in known:
            if one.client_id in choice.asked or one.client_id in choice.resting:
                last[one.client_id] = number
            elif able:  # In turns of the whole fleet: fewer are able when others rest.
                waited = (number - last[one.client_id]) / math.ceil(len(names) / count)
                longest = max(longest, math.ceil(waited))
    # Patience, then at most one turn of those who wait longer; and one more where the number of able ones changed.
    assert longest <= PATIENCE + 2
    for name, cost in zip(names, costs, strict=True):
        assert sum(joules for _, joules in spends[name]) <= max(budget_j, cost) + 1e-6


def test_costly_devices_are_asked_less_often_in_proportion():
    costs = {"cheap": 1.0, "middle": 2.0, "costly": 4.0}
    spent, times, last = dict.fromkeys(costs, 0.0), dict.fromkeys(costs, 0), dict.fromkeys(costs, 0)
    for number in range(1, 701):
        known = [Device(name, True, ((0.0, spent[name]),), last_asked=last[name]) for name in costs]
        (name,) = choose(known, 1, Limits(), 0, number, 1.0).asked
        spent[name] += costs[name]
        times[name] += 1
        last[name] = number
    # 4 : 2 : 1 of 700.
    assert times == pytest.approx({"cheap": 400, "middle": 200, "costly": 100}, abs=8)
