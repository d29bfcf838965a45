"""The command line. No logic lives here: each command hands its arguments to a room and shows what comes back.

Nothing heavy is imported before the command that needs it runs.
"""

from edgetune.cli.program import app, main

__all__ = ["app", "main"]
