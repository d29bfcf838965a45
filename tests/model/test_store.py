import json
import os
import re
import resource
import signal
import subprocess
import sys

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edgetune.errors import InputError, StorageError
from edgetune.model.header import WeightsMetadata, read_header, read_metadata
from edgetune.model.store import WeightsStore, WeightsWriter, convert_weights, copy_weights
from edgetune.model.vit import VisionTransformer
from edgetune.model.weights import build_model

NAME = "vit_tiny_patch16_224"
TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I8": torch.int8}


@pytest.fixture
def spec(small):
    return small(NAME, 32)


@pytest.fixture
def file(spec, make_model, save_state):
    return save_state(make_model(spec))


def all_f32(name):
    return "F32"


def convert(spec, source, target, dtype=all_f32, class_names=None, seed=0):
    return convert_weights(spec, source, target, dtype=dtype, class_names=class_names, seed=seed)


def same(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value), name


def write(path, tensors, metadata=None, kinds=None):
    entries = {
        name: (
            (kinds or {}).get(name) or next(kind for kind, type_ in TYPES.items() if type_ == value.dtype),
            tuple(value.shape),
        )
        for name, value in tensors.items()
    }
    with WeightsWriter(path, entries, metadata or {}) as writer:
        for name in reversed(tensors):
            writer.write(name, tensors[name])
    return path


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_tensors_are_read_back_by_us_and_by_safetensors(data, tmp_path_factory):
    shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
    entries = data.draw(st.dictionaries(st.text(min_size=1), st.tuples(st.sampled_from(sorted(TYPES)), shapes)))
    entries = {name: entry for name, entry in entries.items() if name != "__metadata__"}
    metadata = data.draw(st.dictionaries(st.text(), st.text()))
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (20 * torch.randn(shape, generator=generator)).to(TYPES[kind]) for name, (kind, shape) in entries.items()
    }
    path = write(tmp_path_factory.mktemp("store") / "x.safetensors", tensors, metadata)
    same(load_file(path), tensors)
    assert read_header(path).metadata == metadata
    with WeightsStore(path) as store:
        same({name: store.read(name) for name in store.names}, tensors)
        assert {name: (store.dtype(name), store.shape(name)) for name in store.names} == entries
    start = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert start % 8 == 0
    header = json.loads(path.read_bytes()[8:start])
    for name, value in tensors.items():
        assert header[name]["data_offsets"][0] % value.itemsize == 0


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize("target", ["F16", "BF16", "F32", "F64"])
def test_types_change_on_the_way_in_and_out_as_torch_changes_them(kind, target, tmp_path):
    values = torch.randn(700, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # several chunks
    path = write(tmp_path / "x", {"x": values.to(TYPES[target]), "y": values}, kinds={"x": kind, "y": kind})
    with WeightsStore(path) as store:
        assert torch.equal(store.read("x"), values.to(TYPES[target]).to(TYPES[kind]))
        out = torch.empty(700, 1000, dtype=TYPES[target])
        assert store.read("y", out) is out
        assert torch.equal(out, values.to(TYPES[kind]).to(TYPES[target]))


def test_a_view_is_written_and_a_part_is_filled(tmp_path):
    values = torch.arange(24.0).view(4, 6)
    path = write(tmp_path / "x", {"turned": values.T, "part": values[1:3], "one": values[0, 0]})
    weight = torch.nn.Parameter(torch.zeros(5, 6))
    with WeightsStore(path) as store:
        assert torch.equal(store.read("turned"), values.T)
        assert store.read("one").shape == ()
        store.read("part", weight[2:4])
        assert torch.equal(weight[2:4], values[1:3])
        assert not weight[:2].any()
        for wrong in (torch.empty(3, 6), torch.empty(6, 2).T):
            with pytest.raises(ValueError, match="must be contiguous"):
                store.read("part", wrong)


def test_a_writer_takes_what_was_announced_once_and_all_of_it(tmp_path):
    entries = {"a": ("F32", (2, 3)), "b": ("I8", (2,)), "c": ("F16", (2,))}

    def attempt(*writes):
        with WeightsWriter(tmp_path / "x", entries, {}) as writer:
            for name, values in writes:
                writer.write(name, values)

    a, b, c = ("a", torch.ones(2, 3)), ("b", torch.ones(2, dtype=torch.int8)), ("c", torch.ones(2))
    with pytest.raises(ValueError, match=r"a has shape \(3, 2\), announced was \(2, 3\)"):
        attempt(("a", torch.ones(3, 2)))
    with pytest.raises(ValueError, match="a was written before"):
        attempt(a, a)
    with pytest.raises(ValueError, match="b is F32, announced was I8"):
        attempt(("b", torch.ones(2)))
    with pytest.raises(KeyError):
        attempt(("d", torch.ones(2)))
    with pytest.raises(InputError, match="can't keep c as F16, its values are too large"):
        attempt(("c", torch.tensor([1.0, 7e4])))
    with pytest.raises(ValueError, match=r"2 tensors were not written \(first: a\)"):
        attempt(c)
    assert os.listdir(tmp_path) == []
    attempt(c, a, b)
    assert os.listdir(tmp_path) == ["x"]
    before = (tmp_path / "x").read_bytes()
    with pytest.raises(ValueError, match="not written"):
        attempt()
    assert (tmp_path / "x").read_bytes() == before


def test_a_store_says_what_is_wrong_with_its_file(tmp_path):
    path = write(tmp_path / "x", {"x": torch.ones(1000)})
    with pytest.raises(InputError, match="does not exist"):
        WeightsStore(tmp_path / "y")
    store = WeightsStore(path)
    os.truncate(path, 2000)
    with pytest.raises(InputError, match="became shorter"):
        store.read("x")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        WeightsStore(path)
    save_file({"x": torch.ones(2, dtype=torch.complex64)}, path)
    with pytest.raises(InputError, match="type C64"):
        WeightsStore(path)


def namings(spec, make_model, tmp_path):
    """A model's weights in every naming and form that files come in."""
    state = {name: value.detach() for name, value in make_model(spec).state_dict().items()}
    apart = {}
    for name, value in state.items():
        if ".attn.qkv." in name:
            for part, values in zip(("query", "key", "value"), value.chunk(3), strict=True):
                apart[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = values.clone()
        else:
            apart[name] = value
    transformers = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
        "blocks.": "vit.encoder.layer.", "cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings",
        "patch_embed.proj": "vit.embeddings.patch_embeddings.projection", "head.": "classifier.",
    }  # fmt: skip
    torchvision = {
        "norm1": "ln_1", "norm2": "ln_2", "attn.qkv.": "self_attention.in_proj_", "attn.proj": "self_attention.out_proj", "mlp.fc1": "mlp.0", "mlp.fc2": "mlp.3",
        "blocks.": "encoder.layers.encoder_layer_", "cls_token": "class_token", "pos_embed": "encoder.pos_embedding",
        "patch_embed.proj": "conv_proj", "head.": "heads.head.",
    }  # fmt: skip

    def renamed(state, table, norm):
        result = {}
        for name, value in state.items():
            for ours, theirs in table.items():
                name = name.replace(ours, theirs)
            result[re.sub(r"^norm\.", norm, name)] = value
        return result

    files = {
        "timm": state,
        "half": {name: value.half() for name, value in state.items()},
        "transformers": renamed(apart, transformers, "vit.layernorm."),
        "torchvision": renamed(state, torchvision, "encoder.ln."),
        "headless": {name: value for name, value in state.items() if not name.startswith("head")},
    }
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return {name: tmp_path / f"{name}.safetensors" for name in files}


@pytest.mark.parametrize("image_size", [32, 48])
def test_a_converted_file_is_bit_for_bit_the_loaded_model(image_size, small, make_model, tmp_path):
    spec = small(NAME, image_size)
    for naming, path in namings(small(NAME, 32), make_model, tmp_path).items():
        model, report = build_model(spec, path, seed=3)
        assert convert(spec, path, tmp_path / "x", seed=3) == report
        assert report.naming == (naming if naming.startswith("t") else "timm")
        assert report.fresh_head is (naming == "headless")
        assert (report.resampled_positions is not None) is (image_size == 48)
        same(load_file(tmp_path / "x"), model.state_dict())


@pytest.mark.parametrize(
    ("name", "size"),
    [("vit_small_patch14_reg4_dinov2", 28), ("deit_tiny_distilled_patch16_224", 32), ("vit_small_patch14_dinov2", 42)],
)
def test_other_architectures_convert_as_they_load(name, size, small, make_model, save_state, tmp_path):
    source = save_state(make_model(small(name, 28 if "14" in name else 32)))
    spec = small(name, size, classes=3)
    model, report = build_model(spec, source, seed=1)
    assert convert(spec, source, tmp_path / "x", seed=1) == report
    same(load_file(tmp_path / "x"), model.state_dict())


def test_a_class_token_that_is_given_its_position_converts_as_it_loads(small, make_model, save_state, tmp_path):
    spec = small("vit_small_patch14_reg4_dinov2", 28)
    state = {name: value.clone() for name, value in make_model(spec).state_dict().items()}
    token, extra = state["cls_token"], torch.randn(1, 1, spec.width, generator=torch.Generator().manual_seed(0))
    state["pos_embed"] = torch.cat([extra, state["pos_embed"]], 1)
    save_file(state, tmp_path / "hf.safetensors")
    model, _ = build_model(spec, tmp_path / "hf.safetensors")
    assert torch.equal(model.cls_token, token + extra)
    assert torch.equal(model.pos_embed, state["pos_embed"][:, 1:])
    convert(spec, tmp_path / "hf.safetensors", tmp_path / "x")
    same(load_file(tmp_path / "x"), model.state_dict())


def test_every_tensor_has_the_precision_asked_for(spec, file, tmp_path):
    def dtype(name):
        return "BF16" if "blocks.0" in name else "F32"

    convert(spec, file, tmp_path / "x", dtype, class_names=list("abcdefg"))
    state = load_file(file)
    assert read_metadata(tmp_path / "x").classes == list("abcdefg")
    store = WeightsStore(tmp_path / "x")
    assert sorted(store.names) == sorted(state)
    for name, value in state.items():
        assert store.dtype(name) == dtype(name)
        assert torch.equal(store.read(name), value.to(TYPES[dtype(name)]))
        assert torch.equal(store.read(name, torch.empty(value.shape)), value.to(TYPES[dtype(name)]).float())


def test_values_that_are_no_numbers_leave_no_file(spec, file, tmp_path):
    state = load_file(file)
    state["blocks.1.mlp.fc1.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(InputError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        convert(spec, tmp_path / "nan.safetensors", tmp_path / "new" / "x")
    assert os.listdir(tmp_path / "new") == []


def test_a_trained_model_is_written_from_the_store_and_what_trained(spec, file, tmp_path):
    convert(spec, file, tmp_path / "frozen", lambda name: "BF16" if "blocks.0" in name else "F32")
    store, state = WeightsStore(tmp_path / "frozen"), load_file(file)
    trained = {name: torch.randn(value.shape) for name, value in state.items() if "blocks.1" in name}
    copy_weights(tmp_path / "best", store, trained, WeightsMetadata.of(spec, list("abcdefg")))
    expected = {
        name: trained.get(name, value.bfloat16().float() if "blocks.0" in name else value)
        for name, value in state.items()
    }
    same(load_file(tmp_path / "best"), expected)
    assert read_metadata(tmp_path / "best").classes == list("abcdefg")
    assert build_model(spec, tmp_path / "best")[1].fresh_head is False
    with pytest.raises(KeyError, match=r"blocks\.9"):
        copy_weights(tmp_path / "best", store, {"blocks.9.norm1.weight": torch.ones(192)}, {})


def test_a_disk_without_room_leaves_the_former_file_whole(spec, file, tmp_path):
    convert(spec, file, tmp_path / "x")
    before, store = (tmp_path / "x").read_bytes(), WeightsStore(tmp_path / "x")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limit[1]))
    try:
        with pytest.raises(StorageError, match="x could not be written"):
            convert(spec, file, tmp_path / "x")
        with pytest.raises(StorageError, match="x could not be written"):
            copy_weights(tmp_path / "x", store, {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert (tmp_path / "x").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == sorted([file.name, "x"])


@pytest.mark.parametrize("kind", ["F32", "BF16"])
def test_no_more_than_a_few_tensors_are_ever_in_memory(kind, small, tmp_path):
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this kernel does not reset the high-water mark of resident memory")
    spec = small("vit_base_patch16_224", 32, depth=3)
    with torch.device("meta"):
        shapes = VisionTransformer(spec).state_dict()
    save_file({name: torch.zeros(value.shape) for name, value in shapes.items()}, tmp_path / "x.safetensors")
    del shapes
    code = f"""
import re, msgspec, torch
from pathlib import Path
torch.set_num_threads(1)
from edgetune.model.spec import ViTSpec
from edgetune.model.store import WeightsStore, convert_weights, copy_weights
spec = msgspec.json.decode({msgspec.json.encode(spec).decode()!r}, type=ViTSpec)
resident = lambda key: int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
ones = torch.ones(8, 8)
(ones @ ones).bfloat16().float().abs().amax(1).round().sum()
def peak(work):
    tries = []
    for _ in range(3):  # the fewest counts: a library's code that the kernel had dropped comes back only once
        open("/proc/self/clear_refs", "w").write("5")
        before = resident("VmRSS")
        work()
        tries.append(resident("VmHWM") - before)
    print(min(tries))
folder = Path({str(tmp_path)!r})
kind = lambda name: {kind!r} if name.endswith("weight") and "norm" not in name else "F32"
peak(lambda: convert_weights(spec, folder / "x.safetensors", folder / "y", dtype=kind, class_names=None, seed=0))
store = WeightsStore(folder / "y")
peak(lambda: copy_weights(folder / "z", store, {{}}, {{}}))
peak(lambda: [store.read(name).numel() for name in store.names])
peak(lambda: torch.ones(1 << 23).sum())
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    converting, copying, reading, meter = map(int, done.stdout.split())
    largest = 4 * spec.width * spec.hidden
    assert converting < 3.5 * largest  # of nine: a tensor in float32, what it becomes, and the allocator's slack
    assert copying < 3.5 * largest
    assert reading < 2.5 * largest  # the one before may still be in the heap
    assert meter > 0.9 * (4 << 23)
