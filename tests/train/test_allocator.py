"""Settings of libraries that keep memory: made where the plan needs them, and never over the user's own."""

from __future__ import annotations

import os
from typing import Any

import pytest

from edgetune.train import allocator, fit

NAMES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def test_a_users_own_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMES[0], "7")
    monkeypatch.setenv(NAMES[1], "")  # so that what is set below is undone
    monkeypatch.delenv(NAMES[1])
    allocator.keep_onednn_lean()
    assert [os.environ[name] for name in NAMES] == ["7", "32"]


@pytest.mark.parametrize(
    ("levers", "asked"),
    [
        (["precision=bf16"], True),
        (["frozen_precision=bf16"], True),
        (["precision=fp32", "frozen_precision=fp32"], False),
    ],
)
def test_only_products_in_bf16_on_changing_shapes_ask_for_it(
    levers: list[str], asked: bool, plan_for: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def stop(name: str) -> None:
        raise InterruptedError(name)  # before anything heavy

    monkeypatch.setattr(fit, "keep_onednn_lean", lambda: calls.append("lean"))
    monkeypatch.setattr(fit, "import_module", stop)
    plan = plan_for(method="edgetune", levers=levers, engine="torch")
    with pytest.raises(InterruptedError):
        fit.fit(plan, tmp_path / "run", quiet=True)
    assert bool(calls) is asked
