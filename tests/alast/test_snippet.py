"""The README's "ALaST in your own PyTorch loop", run as it stands there."""

from __future__ import annotations

import torch

from .conftest import SPEC, batches, build

SNIPPET = """\
from edgetune.alast import Controller

alast = Controller(depth=len(model.blocks), k=9, alpha=1e-4)
for images, labels in loader:
    trains, x = alast.draw(), model.embed(images)
    for i, block in enumerate(model.blocks):
        block.requires_grad_(i in trains)
        before, (x, attention) = x, block(x, with_received=alast.needs_attention(i))
        x = alast.after_block(i, before, x, attention)
    loss_fn(model.classify(x), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
"""


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
