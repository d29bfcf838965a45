"""The one place that opens files."""

from __future__ import annotations

from pathlib import Path

from edgetune.device.system import System


def test_a_pseudo_file_longer_than_a_page_is_read_whole():
    assert len(System().read_bytes("/proc/self/smaps")) > 8192  # one read() of it brings a page at most
    assert len(System().read_bytes("/proc/cpuinfo")) == len(Path("/proc/cpuinfo").read_bytes())


def test_a_warning_is_one_line_whatever_a_file_calls_itself(tmp_path):
    system = System(tmp_path)
    system.warn("zone cpu\n\x1b[31m is hot.")
    assert system.warnings == ["zone cpu??[31m is hot."]
