"""The registry, and what the probe of a block says of one."""

from __future__ import annotations

import gc
import time
import weakref

import pytest

from edgetune.model.spec import ViTSpec
from edgetune.profile.probes import PROBES, Bench, probe

torch = pytest.importorskip("torch")

SPEC = ViTSpec(name="probe", width=96, depth=1, heads=3, patch_size=1, image_size=1)


def quick_bench() -> Bench:
    torch.set_num_threads(1)
    return Bench("cpu", True, time.monotonic() + 30, None)


def test_probes_are_keyed_by_operation_and_lever() -> None:
    assert {("matmul", "fp32"), ("matmul", "bf16"), ("matmul", "fp16"), ("copy", "plain"), ("block", "eager")} <= set(
        PROBES
    )
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
