"""`edgetune bench`: methods side by side, each run in a process of its own. Never imports torch here."""

from edgetune.bench.series import bench as bench
