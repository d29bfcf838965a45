"""Windows of the energy meter, on a clock the test moves."""

from __future__ import annotations

import time

import pytest

from benchmarks.energy_accuracy import constant, ramp, sine, square, window_error
from edgetune.device.board import identify_entry
from edgetune.device.catalogue import TotalRule
from edgetune.device.energy import EnergyMeter
from edgetune.device.power import Reading, find_power
from edgetune.device.power.constant import UserConstant
from tests.pace import slowness


class Bench:
    """A source that reads what the test says at the time the test says."""

    name = "bench"
    scope = "module"
    measured = True

    def __init__(self, watts=10.0):
        self.now = 0.0
        self.watts = watts
        self.told = []

    def read(self):
        if isinstance(self.watts, Exception):
            raise self.watts
        return Reading(self.watts(self.now) if callable(self.watts) else self.watts)

    def clock(self):
        return self.now

    def meter(self, **options):
        return EnergyMeter(self, clock=self.clock, thread=False, warn=self.told.append, **options)

    def run(self, meter, seconds, step=0.1):
        for _ in range(round(seconds / step)):
            self.now += step
            meter.sample()


class Counter(Bench):
    """A counter of joules."""

    def read_j(self):
        return self.watts if self.watts is None else self.watts(self.now)

    def read(self):
        return Reading(None)


def test_a_steady_load_is_watts_times_seconds():
    bench = Bench(10.0)
    with bench.meter() as meter, meter.window() as window:
        bench.run(meter, 30)
    assert window.joules == pytest.approx(300.0)
    assert window.seconds == pytest.approx(30.0)
    assert window.watts == pytest.approx(10.0)
    assert window.samples >= 299
    assert window.dropped == 0
    assert window.largest_gap_s == pytest.approx(0.1)
    assert window.coverage == 1.0


def test_windows_nest_and_overlap():
    bench = Bench(lambda t: 10.0 + t)
    with bench.meter() as meter:
        first, second = meter.window(), meter.window()
        with meter.window() as outer:
            bench.run(meter, 5)
            with first:
                bench.run(meter, 2)
                second.__enter__()
                bench.run(meter, 3)
            bench.run(meter, 5)
            second.__exit__(None, None, None)
    assert outer.joules == pytest.approx(150 + 112.5)
    assert first.joules == pytest.approx(50 + (100 - 25) / 2)
    assert second.joules == pytest.approx(80 + (225 - 49) / 2)


def test_a_border_between_readings_is_interpolated():
    bench = Bench(lambda t: 100.0 * t)
    meter = bench.meter(interval_s=10.0)  # no reading is made at a border closer than two seconds to the last
    meter.sample()
    bench.now = 1.0
    with meter.window() as window:
        bench.now = 2.0
    assert window.joules == pytest.approx(0.0)  # nothing is known yet but the watts of the last reading
    bench.now = 4.0
    meter.sample()
    assert window.joules == pytest.approx(100 * (4 - 1) / 2)


def test_an_open_window_shows_what_has_been_used_so_far():
    bench = Bench(10.0)
    with bench.meter() as meter, meter.window() as window:
        bench.run(meter, 2)
        bench.now += 0.05
        assert window.joules == pytest.approx(20.5)
        assert window.seconds == pytest.approx(2.05)


def test_a_window_not_yet_entered_says_nothing():
    bench = Bench(10.0)
    bench.now = 100.0
    with bench.meter() as meter:
        bench.run(meter, 1)
        window = meter.window()
        assert (window.joules, window.net_joules, window.seconds, window.samples) == (None, None, 0.0, 0)
        assert (window.dropped, window.largest_gap_s, window.coverage) == (0, 0.0, 0.0)


def test_net_joules_are_above_the_idle_power():
    bench = Bench(4.0)

    def sleep(seconds):
        bench.now += seconds

    with EnergyMeter(bench, clock=bench.clock, thread=False, sleep=sleep) as meter:
        with meter.window() as before:
            bench.run(meter, 1)
        assert before.net_joules is None
        assert meter.idle(5.0) == pytest.approx(4.0)
        bench.watts = 10.0
        bench.run(meter, 0.1)
        with meter.window() as window:
            bench.run(meter, 10)
    assert window.joules == pytest.approx(100.0)
    assert window.net_joules == pytest.approx(60.0)


def test_reads_that_fail_now_and_then_are_bridged_and_counted():
    bench = Bench(10.0)
    with bench.meter() as meter, meter.window() as window:
        for turn in range(100):
            bench.watts = None if turn % 10 == 5 else 10.0
            bench.run(meter, 0.1)
    assert window.joules == pytest.approx(100.0)
    assert window.dropped == 10
    assert window.largest_gap_s == pytest.approx(0.2)
    assert window.coverage == 1.0
    assert bench.told == []


def test_a_sensor_that_vanishes_is_noticed_and_leaves_no_figure():
    bench = Bench(10.0)
    with bench.meter() as meter, meter.window() as window:
        bench.run(meter, 10)
        bench.watts = None
        bench.run(meter, 10)
        assert meter.watts is None
    assert window.joules is None
    assert window.net_joules is None
    assert window.estimated_joules == pytest.approx(200.0)  # what a cap goes on counting
    assert window.coverage == pytest.approx(0.5, abs=0.01)
    assert len(bench.told) == 1
    assert "stopped answering" in bench.told[0]


def test_a_short_loss_in_a_long_window_keeps_the_figure():
    bench = Bench(10.0)
    with bench.meter() as meter, meter.window() as window:
        bench.run(meter, 100)
        bench.watts = None
        bench.run(meter, 8)
        bench.watts = 10.0
        bench.run(meter, 92)
    assert window.joules == pytest.approx(2000.0)
    assert window.coverage == pytest.approx(0.96, abs=0.01)
    assert window.largest_gap_s == pytest.approx(8.1)


def test_a_sensor_that_freezes_is_noticed():
    bench = Bench(lambda t: 10.0 if t > 20 else 10.0 + t % 1)
    with bench.meter() as meter, meter.window() as window:
        bench.run(meter, 70)
        assert not window.frozen
        bench.run(meter, 30)
    assert window.frozen
    assert len(bench.told) == 1
    assert "repeated one reading" in bench.told[0]


class Rails(Bench):
    """Two rails that make the total and one that is only listed."""

    rule = TotalRule(rails=["IN", "SYS"], scope="module")

    def read(self):
        rails = self.watts(self.now)
        return Reading(rails["IN"] + rails["SYS"], rails)


def test_a_counted_rail_that_freezes_is_noticed_though_others_move():
    bench = Rails(lambda t: {"IN": 5.0, "SYS": 4.0 + t % 1, "LISTED": t})
    with bench.meter() as meter, meter.window() as window:
        bench.run(meter, 70)
    assert window.frozen
    assert len(bench.told) == 1
    assert "one reading of IN" in bench.told[0]


@pytest.mark.parametrize("rails", [{"IN": 0.0}, {"IN": 0.5}])
def test_a_small_or_resting_rail_may_stand_still(rails):
    bench = Rails(lambda t: {"SYS": 4.0 + t % 1, **rails})
    with bench.meter() as meter, meter.window() as window:
        bench.run(meter, 90)
    assert not window.frozen
    assert bench.told == []


def test_a_listed_rail_that_moves_hides_no_frozen_total():
    bench = Rails(lambda t: {"IN": 5.0, "SYS": 4.0, "LISTED": t})
    with bench.meter() as meter, meter.window() as window:
        bench.run(meter, 70)
    assert window.frozen
    assert len(bench.told) == 1


def test_windows_of_a_source_that_never_answers_do_not_pile_up_and_never_have_joules():
    bench = Bench(None)
    with bench.meter() as meter:
        with meter.window() as first:
            bench.run(meter, 1)
        for _ in range(500):
            with meter.window():
                bench.run(meter, 0.5, step=0.25)
        assert len(meter._pending) < 15
        bench.watts = 10.0
        bench.run(meter, 5)
        assert (first.joules, first.coverage) == (None, 0.0)
        with meter.window() as window:
            bench.run(meter, 10)
    assert window.joules == pytest.approx(100.0)


def test_a_users_constant_is_not_called_frozen():
    bench = Bench()
    told = []
    meter = EnergyMeter(UserConstant(6.0), clock=bench.clock, thread=False, warn=told.append)
    with meter, meter.window() as window:
        for _ in range(2000):
            bench.now += 0.1
            meter.sample()
    assert window.joules == pytest.approx(1200.0)
    assert told == []


def test_a_source_that_raises_is_a_dropped_read_and_one_warning():
    bench = Bench(ZeroDivisionError("oops"))
    with bench.meter() as meter, meter.window() as window:
        bench.run(meter, 1)
    assert window.joules is None
    assert window.dropped >= 10
    assert bench.told == ["the power source bench failed (oops); energy has a hole."]


def test_without_a_source_every_figure_is_unknown():
    with EnergyMeter(None) as meter:
        with meter.window() as window:
            pass
        assert meter.idle(0.0) is None
        assert meter.watts is None
    assert window.joules is None
    assert window.net_joules is None
    assert window.estimated_joules is None
    assert window.samples == 0
    assert window.coverage == 0.0
    assert meter._open_windows == meter._pending == []


def test_a_counter_is_subtracted_not_summed():
    bench = Counter(lambda t: 7.0 * t + (3.0 if t > 5 else 0.0))
    with bench.meter() as meter:
        meter.sample()
        bench.run(meter, 1, step=0.5)
        with meter.window() as window:
            bench.run(meter, 30, step=10.0)  # however seldom it is read
    assert window.joules == pytest.approx(213.0)
    assert window.coverage == 1.0


def test_a_counter_that_stands_still_is_unknown_and_noticed():
    bench = Counter(lambda t: 5.0)
    with bench.meter() as meter, meter.window() as window:
        bench.run(meter, 4)
    assert window.joules is None
    assert window.dropped == 0
    assert "stands still" in bench.told[0]


def test_windows_of_a_dead_sensor_do_not_pile_up():
    bench = Bench(10.0)
    with bench.meter() as meter:
        bench.run(meter, 1)
        bench.watts = None
        for _ in range(1000):
            with meter.window():
                bench.run(meter, 1, step=0.5)
        assert len(meter._pending) < 70
        assert meter._open_windows == []


def test_the_first_reading_may_come_after_the_window_opened():
    bench = Bench(None)
    with bench.meter() as meter, meter.window() as window:
        bench.run(meter, 1)
        bench.watts = 10.0
        bench.run(meter, 19)
    assert window.joules == pytest.approx(200.0, abs=1.1)
    assert window.largest_gap_s == pytest.approx(1.1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("make", "limit"),
    [
        (lambda: constant(), 0.01), (lambda: ramp(50), 0.01), (lambda: sine(1.0, 1.0), 0.01),
        (lambda: square(0.1, 1.0), 0.01), (lambda: square(1.0, 1.0), 0.01), (lambda: square(10.0, 1.0), 0.10),
    ],
)  # fmt: skip
def test_known_traces_at_10_hz(make, limit, seed):
    error = window_error(make(), 30.0, 10.0, 0.0, jitter=0.05, drop=0.05, seed=seed)
    assert error < limit


def test_the_thread_samples_a_fixture_at_the_pace_and_ends(open_board):
    system = open_board("orin-nano-super-jp6")
    board, entry = identify_entry(system)
    source = find_power(system, board, entry)
    with EnergyMeter(source, interval_s=0.02) as meter:
        with meter.window() as window:
            time.sleep(0.6)
        thread = meter._thread
    assert not thread.is_alive()
    assert window.joules == pytest.approx(5.251904 * window.seconds, rel=1e-6)
    assert 5 < window.samples <= window.seconds / 0.02 * 1.1 + 3
    assert 0 < meter.sampling_cpu_s < 0.1 * slowness()  # some thirty readings
