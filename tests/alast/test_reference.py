"""Reference mode, step by step, against a naive re-statement of the published re-implementation.

The re-statement shares no code with `edgetune.alast`: explicit softmax attention, argsort and fancy indexing, its own
successive draw, budgets in a list. Only the model's weights and the stream of random numbers are common.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch.nn import functional as F

from edgetune.alast import Controller
from edgetune.alast import controller as controller_module
from edgetune.alast.tokens import select_tokens, top_tokens

from .conftest import SPEC, batches, build

K, SEED = 3, 7
SIZES = (8, 8, 8, 8, 8, 8, 3)  # the last batch is smaller


class Naive:
    """[co], written out."""

    def __init__(self, model, initial, alpha, k=K, patches=SPEC.patches):
        self.model, self.alpha, self.k, self.patches = model, alpha, k, patches
        self.b = [initial] * len(model.blocks)
        self.delta = [0.0] * len(model.blocks)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=alpha)

    def draw(self, numbers):
        p = [math.exp(b) / sum(math.exp(c) for c in self.b) for b in self.b]
        left, chosen = list(range(len(p))), []
        for _ in range(self.k):
            mark = numbers.random() * sum(p[block] for block in left)
            for block in left:
                mark -= p[block]
                if mark < 0:
                    break
            left.remove(block)
            chosen.append(block)
        return set(chosen)

    def block(self, block, x):
        images, length, width = x.shape
        qkv = block.attn.qkv(block.norm1(x)).reshape(images, length, 3, block.attn.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attention = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1)
        a = attention[:, :, 0].mean(1)
        x = x + block.attn.proj((attention @ v).transpose(1, 2).reshape(images, length, width))
        return x + block.mlp(block.norm2(x)), a

    def step(self, images, labels, numbers):
        chosen = self.draw(numbers)
        for index, block in enumerate(self.model.blocks):
            for parameter in block.parameters():
                parameter.requires_grad = index in chosen
        x = self.model.embed(images)
        ids = torch.arange(self.patches).expand(len(x), -1)  # which patch of the image stands where
        kept = []
        for index, block in enumerate(self.model.blocks):
            c = x[:, 0]
            x, a = self.block(block, x)
            new = ((x[:, 0] - c) ** 2).sum().item()
            self.b[index] = max(0.5, min(self.b[index] + self.alpha * (new - self.delta[index]), 1.0))
            self.delta[index] = new
            count = min(int(self.b[index] * x.shape[1]), x.shape[1] - 1)
            order = torch.argsort(a[:, 1:], dim=1, descending=True)[:, :count] + 1
            ids = ids.gather(1, order - 1)
            kept.append(ids)
            x = torch.cat([x[:, :1], x[torch.arange(len(x))[:, None], order]], 1)
        loss = F.cross_entropy(self.model.head(self.model.norm(x)[:, 0]), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}
        self.optimizer.step()
        return chosen, kept, loss.item(), gradients


@pytest.mark.parametrize(("initial", "alpha"), [(0.9, 1e-3), (1.0, 1e-2)])
def test_every_step_is_the_re_statements(initial, alpha, monkeypatch):
    naive = Naive(build().double(), initial, alpha)
    model = build().double()
    optimizer = torch.optim.Adam(model.parameters(), lr=alpha)
    controller = Controller(SPEC.depth, k=K, alpha=alpha, initial_budget=initial, seed=SEED)

    positions = None  # of the patches the last block let through, where it dropped any

    def record(x, received, kept, prefix_tokens):
        nonlocal positions
        chosen = top_tokens(received, kept, prefix_tokens)
        assert (chosen[:, 0] == 0).all()
        positions = chosen[:, 1:] - 1
        return select_tokens(x, received, kept, prefix_tokens)

    monkeypatch.setattr(controller_module, "select_tokens", record)
    distinct_draws: set[tuple[int, ...]] = set()
    moved: set[float] = set()
    dropped = False
    for step, (images, labels) in enumerate(batches(SIZES)):
        images = images.double()
        naive_chosen, naive_kept, naive_loss, naive_gradients = naive.step(
            images, labels, random.Random(f"{SEED}/{step}")
        )

        trains = controller.draw()
        for index, block in enumerate(model.blocks):
            block.requires_grad_(index in trains)
        x = model.embed(images)
        ids, kept = torch.arange(SPEC.patches).expand(len(x), -1), []
        for index, block in enumerate(model.blocks):
            before, positions = x, None
            x, received = block(x, with_received=controller.needs_attention(index))
            x = controller.after_block(index, before, x, received)
            if positions is not None:
                ids = ids.gather(1, positions)
            kept.append(ids)
        loss = F.cross_entropy(model.classify(x), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()

        assert set(trains) == naive_chosen
        assert controller.budgets == pytest.approx(naive.b, abs=1e-11)
        assert list(controller.kept) == [positions.shape[1] for positions in naive_kept]
        for mine, theirs in zip(kept, naive_kept, strict=True):
            # as sets: where nothing is dropped (b = 1) the re-statement still sorts the patches, which changes nothing
            assert torch.equal(mine.sort(1).values, theirs.sort(1).values)
        assert loss.item() == pytest.approx(naive_loss, rel=1e-11)
        assert gradients.keys() == naive_gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, naive_gradients[name], rtol=1e-8, atol=1e-12, msg=name)
        distinct_draws.add(trains)
        moved.update(round(b, 6) for b in naive.b)
        dropped |= kept[0].shape[1] < SPEC.patches

    assert len(distinct_draws) > 2, "the draw must vary for this test to say anything"
    assert len(moved) > 5, "budgets must move for this test to say anything"
    assert dropped
    for mine, theirs in zip(model.parameters(), naive.model.parameters(), strict=True):
        # loose: the gradient of the keys' bias is zero but for rounding, which Adam divides by its own size
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)
