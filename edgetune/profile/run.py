"""The parent's side of the probes: start the child, read its lines, say in a sentence what went wrong.

The child runs its probes several times, one round after the other; what is found more than once counts as its median.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import msgspec

from edgetune.processes import module_command
from edgetune.schema import BlockCost, Compute, TensorCost

QUICK_S, FULL_S, TIGHT_S = 9.0, 75.0, 15.0  # for the probes themselves; the last for those under the lean allocator
_GRACE_S = 45.0  # for importing torch from a slow card, and for the probe under way when the time is up
_DYING_S = 5.0  # for a killed child to go; one that hangs in a driver can't, and is left behind
_MOST_BYTES = 4 << 20  # of what a child prints
OUT_OF_TIME = "the probes did not end within"  # how the sentence begins that says so
_GPU_MEMORY = ("cuda_total_bytes", "cuda_free_bytes")
_RATE = "_per_s"  # how a rate's name ends
Cost = TypeVar("Cost", BlockCost, TensorCost)
_LAST_LINES = 400  # characters of the child's complaint that fit a sentence


class ProbeOrder(msgspec.Struct, frozen=True):
    """What the parent asks the child for; one JSON argument."""

    budget_s: float
    quick: bool
    power_w: float | None = None
    with_energy: bool = False
    tight: bool = False  # the probes under the lean allocator, and no others


class Probed(NamedTuple):
    """What a child found: figures, sentences, and bytes of GPU memory (fields of `schema.Memory`)."""

    compute: Compute
    warnings: list[str]
    memory: dict[str, int]


def run_probes(*, quick: bool, power_w: float | None = None, with_energy: bool = False) -> Probed:
    """What the probes measured, and what they had to say; a failure is `Compute.probe_error`.

    How malloc works is settled when a process starts: blocks under the lean allocator are timed in another one.
    """
    budget_s = QUICK_S if quick else FULL_S
    found = _ordered(ProbeOrder(budget_s=budget_s, quick=quick, power_w=power_w, with_energy=with_energy))
    timed = found.compute.probe_error is None and found.compute.block_costs
    if quick or not timed or found.compute.device != "cpu":
        return found
    tight = _ordered(ProbeOrder(budget_s=TIGHT_S, quick=False, tight=True)).compute
    costs, warnings = [*found.compute.block_costs, *tight.block_costs], found.warnings
    if tight.probe_error is not None or not tight.block_costs:
        reason = tight.probe_error or "there was no time"
        warnings = [*warnings, f"blocks under the lean allocator were not all timed ({reason}): the rest is guessed."]
    return found._replace(compute=msgspec.structs.replace(found.compute, block_costs=costs), warnings=warnings)


def _ordered(order: ProbeOrder) -> Probed:
    """What a child finds that gets the order."""
    command = [*module_command("edgetune.profile.child"), msgspec.json.encode(order).decode()]
    return collect(command, order.budget_s + _GRACE_S)


def collect(command: list[str], timeout_s: float) -> Probed:
    """Run a child and gather the lines it printed until it ended, failed or ran out of time."""
    try:
        out, err, status = _run(command, timeout_s)
    except OSError as error:
        return Probed(Compute(probe_error=f"the probes could not be started ({error.strerror})"), [], {})
    fields: dict[str, Any] = {"gemm_flops": {}, "first_use_bytes": {}, "block_costs": [], "tensor_costs": []}
    warnings: list[str] = []
    memory: dict[str, int] = {}
    rates: dict[str, list[float]] = {}
    for line in out.splitlines():
        _take(line, fields, rates, warnings, memory)
    fields.update({name: statistics.median(found) for name, found in rates.items()})
    fields.update({name: _medians(fields[name]) for name in ("block_costs", "tensor_costs")})
    if fields.get("probe_error") is None:
        fields["probe_error"] = _failure(status, err, timeout_s)
    return Probed(Compute(**fields), list(dict.fromkeys(warnings)), memory)


def _run(command: list[str], timeout_s: float) -> tuple[bytes, bytes, int | None]:
    """Output, complaints and exit status of a child, None where its time was up.

    Files rather than pipes: a pipe stays open, and waiting for its end goes on, as long as any process the child
    started holds it. The child leads a group of its own so that those end with it.
    """
    import tempfile  # not wanted where only a root is read

    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True)
        status: int | None = None
        try:
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if status is None:
                _kill(child)
        out.seek(0)
        err.seek(max(0, err.seek(0, os.SEEK_END) - _MOST_BYTES))
        return out.read(_MOST_BYTES), err.read(), status


def _kill(child: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except OSError:
        child.kill()
    try:
        child.wait(_DYING_S)
    except subprocess.TimeoutExpired:
        pass


def _take(
    line: bytes, fields: dict[str, Any], rates: dict[str, list[float]], warnings: list[str], memory: dict[str, int]
) -> None:
    """Fold one line of the child into the fields of `Compute`; anything else it printed is ignored."""
    try:
        said = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return
    if "block" in said:
        _add(said["block"], BlockCost, fields["block_costs"])
    elif "tensor" in said:
        _add(said["tensor"], TensorCost, fields["tensor_costs"])
    elif "gemm" in said:
        fields["gemm_flops"].update(said["gemm"])
    elif "first_use" in said:
        fields["first_use_bytes"].update(said["first_use"])
    elif "warning" in said:
        warnings.append(said["warning"])
    elif "memory" in said:
        memory.update({name: size for name, size in said["memory"].items() if name in _GPU_MEMORY and size > 0})
    elif "compute" in said:
        for name, value in said["compute"].items():
            if name not in Compute.__struct_fields__:
                continue
            if name.endswith(_RATE) and isinstance(value, int | float):
                rates.setdefault(name, []).append(value)
            else:
                fields[name] = value


def _add(said: object, kind: type[Any], costs: list[Any]) -> None:
    """Put a cost beside the others, if it is one."""
    with suppress(msgspec.ValidationError):
        costs.append(msgspec.convert(said, kind))


def _medians(costs: Iterable[Cost]) -> list[Cost]:
    """One cost of each kind, in the order they were met; its seconds and joules are medians."""
    kinds: dict[Cost, list[Cost]] = {}
    for cost in costs:
        kinds.setdefault(msgspec.structs.replace(cost, **dict.fromkeys(_measured_of(cost))), []).append(cost)
    return [
        msgspec.structs.replace(alike[0], **{name: _median(alike, name) for name in _measured_of(alike[0])})
        for alike in kinds.values()
    ]


def _measured_of(cost: BlockCost | TensorCost) -> list[str]:
    return [name for name in ("seconds", "energy_j") if hasattr(cost, name)]


def _median(alike: Sequence[object], name: str) -> float | None:
    """Of what is known."""
    known = [value for cost in alike if (value := getattr(cost, name)) is not None]
    return statistics.median(known) if known else None


def _failure(status: int | None, err: bytes, timeout_s: float) -> str | None:
    """A sentence on how the child ended, or None when it ended well."""
    if status == 0:
        return None
    if status is None:
        return f"{OUT_OF_TIME} {timeout_s:.0f} s; what they had measured by then is kept"
    if status == -signal.SIGILL:
        return (
            "the installed torch uses instructions this processor does not have (illegal instruction);"
            " install a build for it"
        )
    if status == -signal.SIGKILL:
        return "the probes were killed, most likely for want of memory; what they had measured by then is kept"
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return f"the probes crashed ({name}); what they had measured by then is kept"
    last = err.decode(errors="replace").strip().splitlines()
    return f"the probes failed: {last[-1][:_LAST_LINES]}" if last else f"the probes failed with exit status {status}"
