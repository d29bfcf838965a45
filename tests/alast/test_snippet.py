"""The README's "ALaST in your own PyTorch loop", run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from .conftest import SPEC, batches, build

README = (Path(__file__).parents[2] / "README.md").read_text()
SNIPPET = re.search(r"in your own PyTorch loop\n\n```python\n(.*?)```", README, re.DOTALL)[1]


def test_the_snippet_trains():
    assert len(SNIPPET.strip().splitlines()) <= 12
    model = build()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scope = {
        "model": model,
        "loader": batches((4, 4, 2)),
        "loss_fn": torch.nn.functional.cross_entropy,
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-4),
    }
    exec(SNIPPET.replace("k=9", "k=3"), scope)
    assert scope["alast"].kept[0] < SPEC.patches
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
