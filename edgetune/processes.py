"""Modules of edgetune started as processes of their own."""

from __future__ import annotations

import sys

# `-m` would look for modules in the current folder first: a user's random.py would be taken for Python's.
_START = (
    "import sys; sys.path[:] = {path!r}; import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
)


def module_command(name: str) -> list[str]:
    """The beginning of a command line that runs a module with this process's own path; its arguments follow."""
    flags = ["-I"] if sys.flags.isolated else []  # which a new interpreter would not have
    return [sys.executable, *flags, "-c", _START.format(path=sys.path, name=name)]
