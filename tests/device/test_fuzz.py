"""A short run of benchmarks/fuzz_parsers.py, which throws garbage at every parser and at whole boards."""

from __future__ import annotations

import pytest

from benchmarks.fuzz_parsers import fuzz, read_board, targets

TARGETS = {target.name: target for target in targets()}


@pytest.mark.parametrize("name", TARGETS)
def test_a_parser_survives_garbage(name):
    record = fuzz(TARGETS[name], inputs=60, seed=11)
    assert record["first_failures"] == []


@pytest.mark.parametrize("seed", range(25))
def test_a_board_whose_files_talk_garbage_is_read(seed):
    assert read_board(seed) is None
