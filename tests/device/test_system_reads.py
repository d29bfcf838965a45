"""The one place that opens files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgetune.device.system import System


def test_a_pseudo_file_longer_than_a_page_is_read_whole():
    assert len(System().read_bytes("/proc/self/smaps")) > 8192  # one read() of it brings a page at most
    assert len(System().read_bytes("/proc/cpuinfo")) == len(Path("/proc/cpuinfo").read_bytes())


def test_a_pipe_below_a_root_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "model")
    with pytest.raises(OSError, match="pipe"):
        System(tmp_path).read_bytes("/model")
    assert System(tmp_path).text("/model") is None


def test_a_file_that_says_try_again_is_an_error_not_an_empty_file():
    primary, secondary = os.openpty()  # a terminal nobody has typed on answers EAGAIN, as a gated thermal zone does
    try:
        with pytest.raises(BlockingIOError):
            System().read_bytes(os.ttyname(secondary))
    finally:
        os.close(primary)
        os.close(secondary)


def test_a_warning_is_one_line_whatever_a_file_calls_itself(tmp_path):
    system = System(tmp_path)
    system.warn("zone cpu\n\x1b[31m is hot.")
    assert system.warnings == ["zone cpu??[31m is hot."]
