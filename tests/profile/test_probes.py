"""The registry, and what the probe of a block says of one."""

from __future__ import annotations

import errno
import gc
import os
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from edgetune.device.energy import EnergyMeter
from edgetune.device.power import PowerSource, Reading
from edgetune.device.power.base import Facts
from edgetune.model.spec import ViTSpec
from edgetune.profile.probes import PROBES, TIGHT, Bench, Timing, probe

torch = pytest.importorskip("torch")

SPEC = ViTSpec(name="probe", width=96, depth=1, heads=3, patch_size=1, image_size=1)


def quick_bench() -> Bench:
    torch.set_num_threads(1)
    return Bench("cpu", True, time.monotonic() + 30, None)


def test_probes_are_keyed_by_operation_and_lever() -> None:
    assert {
        ("matmul", "fp32"),
        ("matmul", "bf16"),
        ("matmul", "fp16"),
        ("copy", "plain"),
        ("block", "eager"),
        ("block", "lean"),
        ("tensors", "all"),
    } <= set(PROBES)
    with pytest.raises(ValueError, match="block with eager already"):
        probe("block", "eager")(PROBES["block", "eager"])


def test_a_block_is_split_into_three_parts() -> None:
    from edgetune.profile.block import block_lines

    costs = {line["block"]["part"]: line["block"] for line in block_lines(quick_bench(), SPEC, tokens=20, batch=2)}
    assert set(costs) == {"forward", "pass_gradient", "weight_gradient"}
    assert all(cost["seconds"] > 0 for cost in costs.values())
    a_width = 2 * 20 * 96 * 4
    assert costs["forward"]["saved_bytes"] == 0
    assert costs["pass_gradient"]["saved_bytes"] == pytest.approx(10 * a_width, rel=0.02)
    assert costs["weight_gradient"]["saved_bytes"] == pytest.approx(6 * a_width, rel=0.02)


def test_the_lean_block_keeps_ten_widths_and_is_split_alike() -> None:
    from edgetune.profile.block import lean_block_lines

    costs = {line["block"]["part"]: line["block"] for line in lean_block_lines(quick_bench(), SPEC, tokens=20, batch=2)}
    assert set(costs) == {"forward", "pass_gradient", "weight_gradient"}
    assert all(cost["seconds"] > 0 for cost in costs.values())
    assert {cost["lever"] for cost in costs.values()} == {"lean"}
    assert costs["pass_gradient"]["saved_bytes"] == pytest.approx(10 * 2 * 20 * 96 * 4, rel=0.03)


def test_counting_saved_bytes_leaks_no_graph() -> None:
    from edgetune.model.vit import Block
    from edgetune.profile.block import saved_bytes

    block = Block(SPEC)
    x = torch.randn(2, 20, 96, requires_grad=True)
    outputs = []

    def forward() -> object:
        y = block(x)[0]
        outputs.append(weakref.ref(y))
        return y

    gc.disable()  # a cycle would be collected late or never, and its memory with it
    try:
        saved_bytes(forward, block)
        assert outputs[0]() is None
    finally:
        gc.enable()


def test_a_matrix_product_that_has_no_kernel_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no kernel image is available for execution on the device")

    monkeypatch.setattr(torch, "ones", refuse)
    (line,) = PROBES["matmul", "bf16"](quick_bench())
    assert line == {"gemm": {"bf16": None}}


def test_the_disk_of_the_working_folder_is_timed_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = PROBES["copy", "file"](quick_bench())
    assert line["compute"]["write_bytes_per_s"] > 0
    assert line["compute"]["read_bytes_per_s"] > 0
    assert list(tmp_path.iterdir()) == []

    def refuse(**options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (line,) = PROBES["copy", "file"](quick_bench())
    assert "could not be timed (Read-only file system)" in line["warning"]


def test_memory_touched_for_the_first_time_is_no_faster_than_a_copy() -> None:
    (fresh,), (copied,) = PROBES["copy", "fresh"](quick_bench()), PROBES["copy", "plain"](quick_bench())
    assert 0 < fresh["compute"]["fresh_bytes_per_s"] < 2 * copied["compute"]["copy_bytes_per_s"]


def tensor_costs(quick: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    bench = Bench("cpu", quick, time.monotonic() + 60, None)
    return [line["tensor"] for line in PROBES["tensors", "all"](bench)]


def test_what_trainers_do_with_tensors_is_timed_on_few_numbers_and_on_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """And every price that a plan may ask for is one of these, so that none is missing in somebody's plan."""
    from edgetune.plan.tensors import _GUESSED_COPIES

    monkeypatch.setattr(Bench, "tensor_s", 0.01)
    timed: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cost in tensor_costs(quick=False):
        timed.setdefault((cost["operation"], cost["lever"]), []).append(cost)
    assert set(timed) == set(_GUESSED_COPIES)
    for (operation, _), costs in timed.items():
        assert all(cost["seconds"] > 0 for cost in costs)
        if operation != "ready":
            few, many = costs
            assert 10 * few["numbers"] < many["numbers"]
            assert few["seconds"] < many["seconds"]


def test_a_quick_profile_times_what_is_done_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "tensor_s", 0.01)
    levers = {cost["lever"] for cost in tensor_costs(quick=True)}
    assert levers == {"int8", "fp32", "lean/adamw/factored", "lean/adamw/fp32", "autograd/adamw"}


def test_what_is_told_most_is_probed_before_what_is_told_least() -> None:
    """A slow board's time is up before the last of them."""
    order = list(PROBES)
    assert order.index(("block", "eager")) < order.index(("tensors", "all"))
    assert order.index(("block", "lean")) < order.index(("tensors", "all")) < order.index(("block", "lean-bf16"))


class Metered(PowerSource):
    """A steady sensor with an averaging window of its own."""

    name, scope, measured = "test", "module", True

    def __init__(self, window_s: float | None, watts: float = 10.0) -> None:
        self.window_s, self.watts = window_s, watts

    def read(self) -> Reading:
        return Reading(self.watts)

    def facts(self) -> Facts:
        return Facts(interval_s=self.window_s)


@pytest.mark.parametrize(
    ("window_s", "least_s", "known"),
    [(None, 0.2, True), (0.05, 0.2, True), (0.2, 0.2, False), (3.4, 0.2, False), (None, 0.03, False)],
)
def test_joules_need_three_windows_of_the_sensor_and_ten_readings(
    window_s: float | None, least_s: float, known: bool
) -> None:
    with EnergyMeter(Metered(window_s), interval_s=0.01) as meter:
        bench = Bench("cpu", True, time.monotonic() + 30, meter)
        timing = bench.time(lambda: time.sleep(0.01), least_s)
    if known:
        assert timing.joules == pytest.approx(10.0 * timing.seconds, rel=0.5)
    else:
        assert timing.joules is None


def test_a_sensor_too_slow_for_a_probe_does_not_stretch_it() -> None:
    with EnergyMeter(Metered(3.4)) as slow, EnergyMeter(Metered(0.5)) as quick:
        assert Bench("cpu", False, time.monotonic(), slow)._energy_s() is None
        assert Bench("cpu", False, time.monotonic(), quick)._energy_s() == pytest.approx(1.575)


def test_of_calls_that_take_turns_each_is_what_it_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine does for a while, it does to all three."""
    bench = Bench("cpu", False, time.monotonic() + 30, None)
    took = {"first": 0.01, "second": 0.03, "third": 0.04}
    asked: list[str] = []

    def once(call: Any) -> float:
        asked.append(call())
        time.sleep(0.001)
        return took[asked[-1]] * (2 if len(asked) // 3 % 3 == 1 else 1)  # every third turn is slow

    monkeypatch.setattr(bench, "_once", once)
    first, second, third = bench.time_parts(*(lambda name=name: name for name in took))
    assert asked[:6] == [*took, *took]
    assert (first.seconds, second.seconds, third.seconds) == pytest.approx((0.01, 0.02, 0.01))


def test_where_a_sensor_answers_parts_have_joules_in_later_rounds() -> None:
    with EnergyMeter(Metered(None), interval_s=0.005) as meter:
        bench = Bench("cpu", True, time.monotonic() + 30, meter)
        calls = (lambda: time.sleep(0.005), lambda: time.sleep(0.015))
        assert [timing.joules for timing in bench.time_parts(*calls)] == [None, None]
        bench.again = True
        first, second = bench.time_parts(*calls)
    assert first.joules == pytest.approx(10 * first.seconds, rel=0.5)
    assert second.joules is not None
    assert second.seconds > 0.005


def test_what_noise_eats_up_is_little_and_never_nothing() -> None:
    bench = Bench("cpu", True, time.monotonic() + 30, None)
    first, second = bench.time_parts(lambda: time.sleep(0.02), lambda: time.sleep(0.001))
    assert first.seconds > 0.02
    assert 0 < second.seconds < 0.01


def test_blocks_take_turns_until_caches_hold_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = quick_bench()
    memory = {"SC_PHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", memory.__getitem__)
    assert bench.copies(1 << 20) == bench.copies(1) == 24
    assert bench.copies(10 << 20) == 10
    assert bench.copies(1 << 30) == 1
    assert bench.copies(1 << 30, least=3) == 3
    memory["SC_PHYS_PAGES"] = 1 << 17  # a board of 512 MiB
    assert bench.copies(10 << 20) == 4


def test_a_block_beside_another_has_its_own_weights_and_no_gradients_of_its_own() -> None:
    from edgetune.profile.block import LeanBlock

    one = LeanBlock(SPEC, 5, 1, "cpu", None)
    other = one.another()
    assert not {id(values) for values in one._weights.values()} & {id(values) for values in other._weights.values()}
    assert one._totals is other._totals
    with torch.no_grad():
        other.both(trained=True)


@pytest.mark.parametrize("lever", ["eager-tight", "lean-tight"])
def test_blocks_under_the_lean_allocator_have_probes_of_their_own(lever: str) -> None:
    assert ("block", lever) in TIGHT
    bench = Bench("cpu", False, time.monotonic() + 0.5, None)  # time for the first shape
    assert {line["block"]["lever"] for line in PROBES["block", lever](bench)} == {lever}


def test_joules_lost_in_a_difference_are_unknown_not_zero() -> None:
    from edgetune.profile.probes import _less

    assert _less(Timing(2.0, 10.0, 2.0), Timing(1.0, 4.0, 1.0)).joules == 6.0
    assert _less(Timing(2.0, 4.0, 2.0), Timing(1.0, 4.0, 1.0)).joules is None
    assert _less(Timing(2.0, 3.0, 2.0), Timing(1.0, 4.0, 1.0)).joules is None
    assert _less(Timing(2.0, None, 2.0), Timing(1.0, 4.0, 1.0)).joules is None


def test_timing_stops_at_its_deadline() -> None:
    bench = Bench("cpu", False, time.monotonic() + 0.2, None)
    began = time.monotonic()
    timing = bench.time(lambda: time.sleep(0.05), least_s=60)
    assert time.monotonic() - began < 2
    assert timing.seconds >= 0.05
    assert bench.late()


def test_late_blocks_are_left_out_and_named() -> None:
    bench = Bench("cpu", True, time.monotonic() - 1, None)
    (line,) = PROBES["block", "eager"](bench)
    assert "time for probes was up" in line["warning"]
