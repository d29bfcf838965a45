"""The parent's side of the probes: start the child, read its lines, say in a sentence what went wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import msgspec

from edgetune.schema import BlockCost, Compute

QUICK_S, FULL_S = 9.0, 75.0  # for the probes themselves
_GRACE_S = 90.0  # for importing torch from a slow card, and for the probe under way when the time is up
_LAST_LINES = 400  # characters of the child's complaint that fit a sentence


class ProbeOrder(msgspec.Struct, frozen=True):
    """What the parent asks the child for; one JSON argument."""

    budget_s: float
    quick: bool
    power_w: float | None = None
    with_energy: bool = False


def run_probes(*, quick: bool, power_w: float | None = None, with_energy: bool = False) -> tuple[Compute, list[str]]:
    """What the probes measured, and what they had to say; a failure is `Compute.probe_error`."""
    budget_s = QUICK_S if quick else FULL_S
    order = ProbeOrder(budget_s=budget_s, quick=quick, power_w=power_w, with_energy=with_energy)
    command = [sys.executable, "-m", "edgetune.profile.child", msgspec.json.encode(order).decode()]
    return collect(command, budget_s + _GRACE_S)


def collect(command: list[str], timeout_s: float) -> tuple[Compute, list[str]]:
    """Run a child and gather the lines it printed until it ended, failed or ran out of time."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False)
        out, err, status = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as expired:
        out, err, status = expired.stdout or b"", expired.stderr or b"", None
    except OSError as error:
        return Compute(probe_error=f"the probes could not be started ({error.strerror})"), []
    fields: dict[str, Any] = {"gemm_flops": {}, "block_costs": []}
    warnings: list[str] = []
    for line in out.splitlines():
        _take(line, fields, warnings)
    if fields.get("probe_error") is None:
        fields["probe_error"] = _failure(status, err, timeout_s)
    return Compute(**fields), warnings


def _take(line: bytes, fields: dict[str, Any], warnings: list[str]) -> None:
    """Fold one line of the child into the fields of `Compute`; anything else it printed is ignored."""
    try:
        said = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        return
    if "block" in said:
        try:
            fields["block_costs"].append(msgspec.convert(said["block"], BlockCost))
        except msgspec.ValidationError:
            return
    elif "gemm" in said:
        fields["gemm_flops"].update(said["gemm"])
    elif "warning" in said:
        warnings.append(said["warning"])
    elif "compute" in said:
        fields.update({name: value for name, value in said["compute"].items() if name in Compute.__struct_fields__})


def _failure(status: int | None, err: bytes, timeout_s: float) -> str | None:
    """A sentence on how the child ended, or None when it ended well."""
    if status == 0:
        return None
    if status is None:
        return f"the probes did not end within {timeout_s:.0f} s; what they had measured by then is kept"
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
