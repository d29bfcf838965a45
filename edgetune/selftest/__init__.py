"""Does edgetune work on this machine? A report that says what was tried, for people with a board to send us.

Nothing is sent by this command, and what it writes names no person, host or serial number (`private`).
"""

from edgetune.selftest.run import run_selftest as run_selftest
