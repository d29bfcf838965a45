import json
import os
import re
import resource
import shlex
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edgetune.errors import InputError, StorageError
from edgetune.model.header import WeightsMetadata, read_header
from edgetune.model.registry import BUNDLED_MODEL, find_spec
from edgetune.model.vit import VisionTransformer
from edgetune.model.weights import build_model, load_weights, read_metadata, resample_positions, save_weights

NAME = "vit_tiny_patch16_224"


@pytest.fixture
def spec(small):
    return small(NAME, 32)


@pytest.fixture
def file(spec, make_model, save_state):
    return save_state(make_model(spec))


def state_of(path):
    with safe_open(path, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def change(path, new, **changes):
    """A copy of a weights file with tensors replaced (None: removed)."""
    state = state_of(path)
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            state = {key: kept for key, kept in state.items() if not key.startswith(name)}
        else:
            state[name] = value
    save_file(state, path.with_name(new))
    return path.with_name(new)


def refusal(spec, path):
    with pytest.raises(InputError) as caught:
        build_model(spec, path)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_model_on_the_meta_device_and_one_in_memory_are_filled_alike(spec, file, make_model):
    built, report = build_model(spec, file)
    filled = make_model(spec, seed=9)
    assert load_weights(filled, file) == report
    for name, value in state_of(file).items():
        assert torch.equal(built.state_dict()[name], value)
        assert torch.equal(filled.state_dict()[name], value)
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in built.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype, spec, file):
    state = {name: value.to(dtype) for name, value in state_of(file).items()}
    save_file(state, file.with_name("other.safetensors"))
    model, _ = build_model(spec, file.with_name("other.safetensors"))
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())


def test_a_classifier_of_other_classes_is_replaced_by_a_fresh_one_with_a_seed(spec, file):
    model, report = build_model(spec.at(classes=3), file, seed=5)
    again, _ = build_model(spec.at(classes=3), file, seed=5)
    other, _ = build_model(spec.at(classes=3), file, seed=6)
    assert (report.classes_in_file, report.fresh_head) == (7, True)
    assert model.head.weight.shape == (3, 192)
    assert not model.head.bias.any()
    assert 0.015 < model.head.weight.std() < 0.025
    assert torch.equal(model.head.weight, again.head.weight)
    assert not torch.equal(model.head.weight, other.head.weight)


def test_a_file_without_classifier_gets_one(spec, file):
    model, report = build_model(spec, change(file, "bare.safetensors", head=None))
    assert (report.classes_in_file, report.fresh_head) == (None, True)
    assert model.head.weight.any()


def test_a_classifier_is_kept_only_for_its_own_classes(spec, make_model, tmp_path):
    model, path = make_model(spec), tmp_path / "named.safetensors"
    save_weights(path, model, WeightsMetadata.of(spec, list("abcdefg")))
    assert build_model(spec, path, class_names=list("abcdefg"))[1].fresh_head is False
    assert build_model(spec, path)[1].fresh_head is False
    assert build_model(spec, path, class_names=list("abcdefx"))[1].fresh_head is True


def test_positions_are_left_alone_at_the_same_size():
    positions = torch.randn(1, 9, 4)
    assert resample_positions(positions, 3) is positions
    assert resample_positions(positions, 5).shape == (1, 25, 4)


def test_saved_weights_carry_their_metadata(spec, make_model, tmp_path):
    model, path = make_model(spec), tmp_path / "deep" / "best.safetensors"
    save_weights(path, model, WeightsMetadata.of(spec, ["Äpfel", 'a "b"'], val_accuracy="0.5"))
    metadata = read_metadata(path)
    assert metadata.classes == ["Äpfel", 'a "b"']
    assert (metadata.model, metadata.image_size, metadata.mean) == (NAME, 32, (0.5, 0.5, 0.5))
    assert metadata.extra == {"val_accuracy": "0.5"}
    save_weights(path, model.state_dict(), {"model": NAME, "classes": ["x"], "image_size": 32, "seed": 3})
    assert read_metadata(path).classes == ["x"]
    assert read_metadata(path).extra == {"seed": "3"}
    assert os.listdir(path.parent) == ["best.safetensors"]


def test_metadata_of_other_tools_is_kept_aside():
    metadata = WeightsMetadata.parse({"classes": "10", "mean": "[0.5]", "image_size": "big", "format": "pt"})
    assert (metadata.classes, metadata.mean, metadata.image_size) == (None, None, None)
    assert metadata.extra == {"classes": "10", "mean": "[0.5]", "image_size": "big", "format": "pt"}


def test_a_disk_without_room_leaves_the_former_file_whole(spec, make_model, tmp_path):
    model, path = make_model(spec), tmp_path / "best.safetensors"
    save_weights(path, model, {})
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limit[1]))
    try:
        with pytest.raises(StorageError, match="File too large"):
            save_weights(path, model, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["best.safetensors"]


def test_missing_file_and_folder(spec, tmp_path):
    assert "does not exist" in refusal(spec, tmp_path / "none.safetensors")
    assert "is a folder" in refusal(spec, tmp_path)


@pytest.mark.parametrize("kept_bytes", [0, 5, 8, 200, -1])
def test_a_damaged_file(kept_bytes, spec, file):
    file.write_bytes(file.read_bytes()[:kept_bytes])
    assert "not a whole safetensors file" in refusal(spec, file)


def test_a_file_of_garbage(spec, tmp_path):
    path = tmp_path / "x.safetensors"
    for content in (b"{}" * 50, (9).to_bytes(8, "little") + b'{"a": 1}}', b"\xff" * 100, b"\0" * 100):
        path.write_bytes(content)
        assert "safetensors" in refusal(spec, path)


def test_values_that_are_no_numbers(spec, file):
    state = state_of(file)
    state["blocks.1.mlp.fc1.weight"][0, 0] = float("nan")
    path = change(file, "nan.safetensors", **{"blocks.1.mlp.fc1.weight": state["blocks.1.mlp.fc1.weight"]})
    assert "blocks.1.mlp.fc1.weight" in refusal(spec, path)


@pytest.mark.parametrize("name", ["model.pth", "pytorch_model.bin", "disguised.safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_checkpoint_is_refused(name, zipped, spec, tmp_path):
    torch.save({"model": {"x": torch.zeros(2)}}, tmp_path / name, _use_new_zipfile_serialization=zipped)
    assert "pickled checkpoint" in refusal(spec, tmp_path / name)


def test_the_line_that_converts_a_pickled_checkpoint_does(spec, make_model, tmp_path):
    model, path = make_model(spec), tmp_path / "it's named.safetensors"  # a quote, a space and a suffix that lies
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    line = re.search("`(.+)`", refusal(spec, path))
    assert line is not None
    assert line[1].startswith("python -c ")
    line_here = f"{shlex.quote(sys.executable)} {line[1].removeprefix('python ')}"
    subprocess.run(["sh", "-c", line_here], check=True, cwd=tmp_path)
    (converted,) = tmp_path.glob("*.converted.safetensors")
    assert torch.equal(build_model(spec, converted)[0].head.weight, model.head.weight)


def test_another_architecture_is_named_by_what_differs(small, make_model, save_state):
    file = save_state(make_model(small("vit_tiny_patch16_224", 32)))
    message = refusal(small("vit_small_patch16_224", 32), file)
    assert "width 384 expected, file has 192" in message
    assert "MLP width 1536 expected, file has 768" in message
    assert "patch size 32 expected, file has 16" in refusal(small("vit_small_patch32_224", 32), file)
    assert "depth 3 expected, file has 2" in refusal(small("vit_tiny_patch16_224", 32, depth=3), file)
    message = refusal(small("deit_tiny_distilled_patch16_224", 32), file)
    assert "distillation token one expected, file has none" in message
    message = refusal(small("vit_small_patch14_reg4_dinov2", 28), file)
    assert "register tokens 4 expected, file has 0" in message
    assert "LayerScale one expected, file has none" in message
    distilled = save_state(make_model(small("deit_tiny_distilled_patch16_224", 32)))
    assert "distillation token none expected, file has one" in refusal(small("deit_tiny_patch16_224", 32), distilled)


def test_incomplete_and_overfull_files(spec, file):
    message = refusal(spec, change(file, "a.safetensors", **{"blocks.1.attn.qkv.bias": None}))
    assert "lacks 1 of vit_tiny_patch16_224's tensors (first: blocks.1.attn.qkv.bias)" in message
    extra = change(file, "b.safetensors", **{"decoder.weight": torch.zeros(2, 2)})
    assert "holds 1 tensors that vit_tiny_patch16_224 does not have (first: decoder.weight)" in refusal(spec, extra)
    odd = change(file, "c.safetensors", pos_embed=torch.zeros(1, 7, 192))
    assert "no square grid" in refusal(spec, odd)
    whole = change(file, "d.safetensors", **{"norm.weight": torch.zeros(192, dtype=torch.int8)})
    assert "norm.weight as I8" in refusal(spec, whole)
    other = change(file, "e.safetensors", **{"blocks.0.attn.proj.weight": torch.zeros(96, 192)})
    assert "blocks.0.attn.proj.weight 192x192 expected, file has 96x192" in refusal(spec, other)
    save_file({"conv1.weight": torch.zeros(2)}, file.with_name("f.safetensors"))
    assert "no plain vision transformer" in refusal(spec, file.with_name("f.safetensors"))


def test_the_bundled_weights_fill_the_bundled_model():
    from edgetune.model.hub import bundled_weights

    path = bundled_weights()
    assert path.stat().st_size <= 8e6
    model, report = build_model(find_spec(BUNDLED_MODEL))
    assert report.fresh_head is False
    assert len(json.loads(read_header(path).metadata["classes"])) == model.spec.classes == 10


def test_header_reading_does_not_import_torch():
    code = (
        "import sys, edgetune.model.header, edgetune.model.names, edgetune.model.hub; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_model_never_takes_its_memory_twice(tmp_path, small, make_model):
    """Reading half-precision weights must cost the parameters and little more, though the file's pages count too."""
    status = "/proc/self/clear_refs"
    if not os.access(status, os.W_OK):
        pytest.skip("this kernel does not reset the high-water mark of resident memory")
    spec = small("vit_base_patch16_224", 32, depth=6)
    path = tmp_path / "half.safetensors"
    with torch.device("meta"):
        shapes = VisionTransformer(spec).state_dict()
    save_file({name: torch.zeros(value.shape, dtype=torch.float16) for name, value in shapes.items()}, path)
    code = f"""
import re, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from edgetune.model.weights import build_model
from edgetune.model.spec import ViTSpec
import msgspec
spec = msgspec.json.decode({msgspec_json(spec)!r}, type=ViTSpec)
(torch.ones(64, 64) @ torch.ones(64, 64)).half().float().sum()
resident = lambda key: int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
model, _ = build_model(spec, Path({str(path)!r}))
print((resident("VmHWM") - before) / (4 * spec.parameter_count))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 0.9 < float(done.stdout) < 1.25


def msgspec_json(value):
    import msgspec

    return msgspec.json.encode(value).decode()
