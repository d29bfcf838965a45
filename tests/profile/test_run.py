"""The parent's side of the probes: whatever the child does, the profile says so and keeps what was found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from edgetune.profile import run
from edgetune.profile.run import Probed, ProbeOrder, collect
from edgetune.schema import BlockCost, Compute

FOUND = """print('{"compute":{"device":"cpu","threads":2}}', flush=True)
print('{"gemm":{"fp32":1e9}}', flush=True)
"""


def child(body: str) -> list[str]:
    return [sys.executable, "-c", FOUND + body]


def test_findings_are_gathered() -> None:
    block = (
        '{"block":{"width":192,"heads":3,"tokens":50,"batch_size":2,"lever":"eager","part":"forward","seconds":0.5,'
        '"saved_bytes":0,"energy_j":null}}'
    )
    compute, warnings, memory = collect(child(f'print({block!r}); print(\'{{"warning":"warm today"}}\')'), 30)
    assert (compute.device, compute.threads, compute.gemm_flops) == ("cpu", 2, {"fp32": 1e9})
    assert [cost.seconds for cost in compute.block_costs] == [0.5]
    assert warnings == ["warm today"]
    assert memory == {}
    assert compute.probe_error is None


@pytest.mark.parametrize(
    ("quick", "found", "asked"),
    [
        (False, Compute(device="cpu"), [False, True]),
        (True, Compute(device="cpu"), [False]),
        (False, Compute(device="cuda"), [False]),  # whose allocator is torch's own
        (False, Compute(probe_error="torch is not installed"), [False]),
    ],
)
def test_blocks_under_the_lean_allocator_are_timed_in_a_process_of_their_own(
    monkeypatch: pytest.MonkeyPatch, quick: bool, found: Compute, asked: list[bool]
) -> None:
    cost = BlockCost(width=192, heads=3, tokens=50, batch_size=2, lever="lean", part="forward", seconds=0.5)
    orders: list[bool] = []

    def ordered(order: ProbeOrder) -> Probed:
        orders.append(order.tight)
        lever = "lean-tight" if order.tight else "lean"
        costs = [msgspec.structs.replace(cost, lever=lever)] if found.probe_error is None else []
        return Probed(msgspec.structs.replace(found, block_costs=costs), [lever], {})

    monkeypatch.setattr(run, "_ordered", ordered)
    compute, warnings, _ = run.run_probes(quick=quick)
    assert orders == asked
    known = ["lean", "lean-tight"] if found.probe_error is None else []
    assert [each.lever for each in compute.block_costs] == known[: len(asked)]
    assert warnings == ["lean"]


def test_a_profile_says_where_blocks_under_the_lean_allocator_were_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = BlockCost(width=192, heads=3, tokens=50, batch_size=2, lever="lean", part="forward", seconds=0.5)
    answers = [
        Probed(Compute(device="cpu", block_costs=[cost]), [], {}),
        Probed(Compute(probe_error="the probes were killed"), [], {}),
    ]
    monkeypatch.setattr(run, "_ordered", lambda order: answers[order.tight])
    compute, (warning,), _ = run.run_probes(quick=False)
    assert compute.block_costs == [cost]
    assert compute.probe_error is None
    assert "the probes were killed" in warning


def test_what_was_found_in_several_rounds_is_its_median() -> None:
    lines = [
        '{"block":{"width":192,"heads":3,"tokens":50,"batch_size":2,"lever":"eager","part":"forward",'
        f'"seconds":{seconds},"saved_bytes":7,"energy_j":{joules}}}}}'
        for seconds, joules in ((0.5, 4.0), (0.9, "null"), (0.4, 2.0))
    ]
    lines += [
        f'{{"tensor":{{"operation":"keep","lever":"int8","numbers":{numbers},"seconds":{seconds}}}}}'
        for numbers, seconds in ((10, 1.0), (20, 5.0), (10, 3.0))
    ]
    lines += [f'{{"compute":{{"copy_bytes_per_s":{rate},"threads":3}}}}' for rate in (4e9, 1e9, 3e9)]
    compute, *_ = collect(child(f"print({chr(10).join(lines)!r})"), 30)
    (block,) = compute.block_costs
    assert (block.seconds, block.energy_j, block.saved_bytes) == (0.5, 3.0, 7)
    assert [(cost.numbers, cost.seconds) for cost in compute.tensor_costs] == [(10, 2.0), (20, 5.0)]
    assert (compute.copy_bytes_per_s, compute.threads) == (3e9, 3)


def test_gpu_memory_is_gathered_and_nothing_else_of_that_kind() -> None:
    line = '{"memory":{"cuda_total_bytes":8000,"cuda_free_bytes":5000,"total_bytes":1}}'
    assert collect(child(f"print({line!r})"), 30).memory == {"cuda_total_bytes": 8000, "cuda_free_bytes": 5000}


def test_a_child_that_leaves_a_process_behind_is_not_waited_for() -> None:
    began = time.monotonic()
    compute, *_ = collect(child("import subprocess; subprocess.Popen(['sleep', '30'])"), 20)
    assert compute.probe_error is None
    assert time.monotonic() - began < 10


def test_a_hung_child_takes_its_own_children_with_it(tmp_path: Path) -> None:
    body = f"import subprocess, time; p = subprocess.Popen(['sleep', '60']); open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); time.sleep(60)"
    compute, *_ = collect(child(body), 1.5)
    assert compute.probe_error is not None
    deadline = time.monotonic() + 5
    state = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not state.exists() or state.read_text().split()[2] == "Z"


def test_noise_on_standard_output_is_ignored() -> None:
    compute, *_ = collect(
        child("print('hello'); print('[1]'); print('{\"block\":{\"width\":\"wide\"}}'); print('{')"), 30
    )
    assert compute.threads == 2
    assert compute.block_costs == []


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGILL, "illegal instruction"), (signal.SIGKILL, "memory"), (signal.SIGSEGV, "SIGSEGV")],
)
def test_a_crash_keeps_what_was_found(number: signal.Signals, words: str) -> None:
    compute, *_ = collect(child(f"import os; os.kill(os.getpid(), {int(number)})"), 30)
    assert compute.gemm_flops == {"fp32": 1e9}
    assert compute.probe_error is not None
    assert words in compute.probe_error


def test_an_exception_is_one_sentence() -> None:
    compute, *_ = collect(child("raise RuntimeError('no kernel image is available')"), 30)
    assert compute.probe_error == "the probes failed: RuntimeError: no kernel image is available"


def test_a_child_that_hangs_is_ended() -> None:
    compute, *_ = collect(child("import time; time.sleep(60)"), 1.5)
    assert compute.gemm_flops == {"fp32": 1e9}
    assert compute.probe_error is not None
    assert "did not end" in compute.probe_error


def test_a_missing_interpreter_is_no_crash() -> None:
    compute, *_ = collect(["/nonexistent/python"], 5)
    assert compute.probe_error is not None
    assert "could not be started" in compute.probe_error


def test_without_torch_the_child_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    order = '{"budget_s":1,"quick":true}'
    done = subprocess.run(
        [sys.executable, "-m", "edgetune.profile.child", order],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "edgetune[torch]" in done.stdout
