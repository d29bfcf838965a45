"""A run in a process that holds nothing but training, which is started with the number of a descriptor.

The order is in a nameless file that was left open: an argument may be 128 KiB at most, and thousands of class names are
more. The command line's libraries take more memory than a small model's training. Once the plan is made the command
hands over to this module by exec: the same process, its signals and its exit status, without what it had imported.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # OpenSSL would take 3.5 MB to hash a few hundred bytes; Python has SHA-2 of its own
    sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]

from pathlib import Path
from typing import Any

import msgspec

from edgetune.errors import EdgetuneError
from edgetune.processes import module_command
from edgetune.schema import Engine, Plan, Profile


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do: begin the run of a plan, or go on with the one in `out` where there is none."""

    out: str
    plan: Plan | None = None
    engine: Engine | None = None  # that is to go on with it, where that is another one than began it
    profile: Profile | None = None
    config: dict[str, Any] = {}
    graphs: str | None = None
    root: str | None = None  # of the file system that the board is read from
    power_w: float | None = None
    save_every_s: float
    quiet: bool
    started: float  # on the monotonic clock
    debug: bool = False


def hand_over(order: Order) -> None:
    """Become the process of this run, where this process is the command's own; otherwise come back.

    An interpreter that somebody else runs (a test, a notebook) is not ours to replace.
    """
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    by_name = spec is not None and spec.name == "edgetune.__main__"
    if not by_name and Path(getattr(main, "__file__", None) or "").name != "edgetune":
        return
    file = _kept_open(msgspec.json.encode(order))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*module_command("edgetune.train.onnx.run"), str(file)])


def _kept_open(content: bytes) -> int:
    """A descriptor of a nameless file with that content, which outlives an exec."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("order", 0)
    else:  # a Python that was built for an old C library
        import tempfile

        with tempfile.TemporaryFile() as nameless:
            file = os.dup(nameless.fileno())
    os.write(file, content)
    os.set_inheritable(file, True)
    return file


def run(order: Order) -> int:
    """Do what the order says; the exit status."""
    from edgetune.device.system import System
    from edgetune.train.fit import exit_code, fit, resume
    from edgetune.train.summary import print_result

    out = Path(order.out)
    common: dict[str, Any] = {
        "power_w": order.power_w,
        "save_every_s": order.save_every_s,
        "quiet": order.quiet,
        "started": order.started,
        "system": None if order.root is None else System(order.root),
    }
    if order.plan is None:
        result = resume(out, engine=order.engine, **common)
    else:
        graphs = None if order.graphs is None else Path(order.graphs)
        result = fit(order.plan, out, profile=order.profile, config=order.config, graphs=graphs, **common)
    if not order.quiet:
        print_result(result, out)
    return exit_code(result)


def main(file: int) -> int:
    """As `edgetune.cli.program.main`: an error is one sentence and its exit status."""
    with open(file, "rb") as order_file:
        order_file.seek(0)
        order = msgspec.json.decode(order_file.read(), type=Order)
    try:
        return run(order)
    except EdgetuneError as error:
        if order.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if order.debug:
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        print(
            f"error: a defect in edgetune ({reason}); run it again with --debug and report the output.",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
