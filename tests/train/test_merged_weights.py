"""Adapters are merged into the weights they correct while a file is written: one matrix at a time, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from edgetune.model.arrayfile import ArrayStore, copy_arrays
from edgetune.model.store import WeightsStore, copy_weights
from edgetune.train.halves import MergedWeights

MATRICES = ("blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight")


def save_with_numpy(source: Path, target: Path, replaced: Any) -> None:
    with ArrayStore(source) as store:
        copy_arrays(target, store, replaced, {})


def save_with_torch(source: Path, target: Path, replaced: Any) -> None:
    copy_weights(target, WeightsStore(source), replaced, {})


@pytest.mark.parametrize(("save", "make"), [(save_with_numpy, np.full), (save_with_torch, torch.full)])
def test_each_matrix_is_merged_once_a_save(save: Any, make: Any, tmp_path: Path) -> None:
    names = [*MATRICES, "blocks.0.mlp.fc1.weight", "head.weight"]
    save_file({name: np.zeros((2, 2), np.float32) for name in names}, tmp_path / "base")
    trained = {"head.weight": make((2, 2), 7.0)}
    for name in MATRICES:
        layer = name.removesuffix(".weight")
        trained |= {f"{layer}.lora_a": make((1, 2), 1.0), f"{layer}.lora_b": make((2, 1), 3.0)}
    asked: list[str] = []

    def merged(name: str, inward: Any, outward: Any) -> Any:
        asked.append(name)
        return outward @ inward

    save(tmp_path / "base", tmp_path / "model", MergedWeights(trained, MATRICES, merged))
    assert sorted(asked) == sorted(MATRICES)
    found = {name: float(values[0, 0]) for name, values in load_file(tmp_path / "model").items()}
    assert found == dict.fromkeys(MATRICES, 3.0) | {"blocks.0.mlp.fc1.weight": 0.0, "head.weight": 7.0}


def test_names_are_those_of_whole_weights() -> None:
    factors = {"head.weight": 1.0, "blocks.0.attn.qkv.lora_a": 2.0, "blocks.0.attn.qkv.lora_b": 3.0}
    weights = MergedWeights(factors, MATRICES[:1], lambda name, inward, outward: inward * outward)
    assert dict(weights) == {"head.weight": 1.0, MATRICES[0]: 6.0}
    assert len(weights) == 2
    assert MATRICES[0] in weights
    assert "blocks.0.attn.qkv.lora_a" not in weights
    assert MATRICES[1] not in weights
