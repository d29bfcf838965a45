"""Who calls which tensor what: timm, torchvision and transformers names for the weights of one plain ViT.

Everything here works on names and shapes alone. `match` finds, for every tensor of a `ViTSpec`, the tensors of a file
it is made of: one, or three where query, key and value are stored apart. Never imports torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from edgetune.errors import InputError
from edgetune.model.header import FLOATS, Header
from edgetune.model.spec import ViTSpec

Naming = Literal["timm", "torchvision", "transformers"]

# A tensor of every plain ViT, by which a naming is recognised and any prefix (`vit.`, `backbone.`, `module.`) found.
_LANDMARKS: tuple[tuple[Naming, str], ...] = (
    ("timm", "blocks.0.norm1.weight"),
    ("torchvision", "encoder.layers.encoder_layer_0.ln_1.weight"),
    ("transformers", "encoder.layer.0.layernorm_before.weight"),  # ViT and DeiT, transformers 4
    ("transformers", "layers.0.layernorm_before.weight"),  # ViT and DeiT, transformers 5
    ("transformers", "encoder.layer.0.norm1.weight"),  # DINOv2
    ("transformers", "layers.0.norm1.weight"),
)
_BLOCK_INDEX = re.compile(r"(?:blocks|encoder\.layers\.encoder_layer_|encoder\.layer|layers)[._]?(\d+)\.(.+)")
# Parts of a block that are not called what timm calls them. The longest match wins.
_PARTS: dict[Naming, dict[str, str]] = {
    "timm": {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"},  # DeiT III as released
    "torchvision": {
        "ln_1.": "norm1.",
        "ln_2.": "norm2.",
        "self_attention.in_proj_": "attn.qkv.",
        "self_attention.out_proj.": "attn.proj.",
        "mlp.0.": "mlp.fc1.",
        "mlp.3.": "mlp.fc2.",
        "mlp.linear_1.": "mlp.fc1.",  # before torchvision 0.12
        "mlp.linear_2.": "mlp.fc2.",
    },
    "transformers": {
        "layernorm_before.": "norm1.",
        "layernorm_after.": "norm2.",
        "attention.attention.query.": "attn.q.",
        "attention.attention.key.": "attn.k.",
        "attention.attention.value.": "attn.v.",
        "attention.output.dense.": "attn.proj.",
        "attention.q_proj.": "attn.q.",  # transformers 5
        "attention.k_proj.": "attn.k.",
        "attention.v_proj.": "attn.v.",
        "attention.o_proj.": "attn.proj.",
        "intermediate.dense.": "mlp.fc1.",
        "output.dense.": "mlp.fc2.",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
    },
}
_OUTSIDE: dict[Naming, dict[str, str]] = {
    "timm": {"register_tokens": "reg_token"},  # DINOv2 as released
    "torchvision": {
        "class_token": "cls_token",
        "conv_proj.weight": "patch_embed.proj.weight",
        "conv_proj.bias": "patch_embed.proj.bias",
        "encoder.pos_embedding": "pos_embed",
        "encoder.ln.weight": "norm.weight",
        "encoder.ln.bias": "norm.bias",
        "heads.head.weight": "head.weight",
        "heads.head.bias": "head.bias",
    },
    "transformers": {
        "embeddings.cls_token": "cls_token",
        "embeddings.distillation_token": "dist_token",
        "embeddings.register_tokens": "reg_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
        "classifier.weight": "head.weight",
        "classifier.bias": "head.bias",
        "cls_classifier.weight": "head.weight",
        "cls_classifier.bias": "head.bias",
        "distillation_classifier.weight": "head_dist.weight",
        "distillation_classifier.bias": "head_dist.bias",
    },
}
# Parts of the pre-training that fine-tuning has no use for.
_UNUSED = re.compile(r"(^|\.)(mask_token|pooler\.dense\.\w+|pre_logits\.\w+(\.\w+)?|position_ids)$")


class Match(NamedTuple):
    """Where each tensor of a model is found in a file."""

    naming: Naming
    sources: dict[str, tuple[str, ...]]  # timm name: names in the file, to be joined along the first axis
    unused: tuple[str, ...]  # names in the file that the model has no use for
    classes: int | None  # of the file's classifier; None where it has none that fits the architecture
    positions: tuple[int, int]  # in the file: position embeddings before the patches, patches along one side


def detect(names: Mapping[str, object]) -> tuple[Naming, str] | None:
    """The naming of a file and the prefix before all its names, or None where it is no plain ViT's."""
    for naming, landmark in _LANDMARKS:
        for name in names:
            if name == landmark or name.endswith("." + landmark):
                return naming, name[: -len(landmark)]
    return None


def timm_name(name: str, naming: Naming) -> str:
    """What timm calls the tensor `name`; query, key and value stay apart as `attn.q`, `attn.k`, `attn.v`."""
    in_block = _BLOCK_INDEX.fullmatch(name)
    if not in_block:
        return _OUTSIDE[naming].get(name, name)
    index, part = in_block.groups()
    for theirs, ours in _PARTS[naming].items():
        if part.startswith(theirs):
            part = ours + part[len(theirs) :]
            break
    return f"blocks.{index}.{part}"


def match(header: Header, spec: ViTSpec) -> Match:
    """Find every tensor of `spec` in a file.

    Raises:
        InputError: the file is another architecture (the sentence says what differs), lacks tensors, or has more.
    """
    found = detect(header.shapes)
    if found is None:
        raise InputError(
            f"{header.path} holds no plain vision transformer in timm, torchvision or transformers names"
            f" ({_first(list(header.shapes))}); give weights made for {spec.name}."
        )
    naming, prefix = found
    theirs = {timm_name(name.removeprefix(prefix), naming): name for name in header.shapes}
    shapes = {ours: header.shapes[name] for ours, name in theirs.items()}
    unused = [theirs.pop(ours) for ours in list(theirs) if _UNUSED.search(ours)]

    sources: dict[str, tuple[str, ...]] = {}
    for ours in list(theirs):
        if ours.endswith((".attn.q.weight", ".attn.q.bias")):
            parts = [ours.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
            if all(part in theirs for part in parts):
                joined = ours.replace(".attn.q.", ".attn.qkv.")
                shapes[joined] = (sum(shapes[part][0] for part in parts), *shapes[ours][1:])
                sources[joined] = tuple(theirs.pop(part) for part in parts)
    sources |= {ours: (name,) for ours, name in theirs.items()}

    positions = _positions(shapes.get("pos_embed"), spec)
    classes = _take_classifier(sources, shapes, spec, unused)
    _check(header, sources, shapes, spec, positions)
    for names in sources.values():
        for name in names:
            if header.types[name] not in FLOATS:
                raise InputError(
                    f"{header.path} holds {name} as {header.types[name]}, which can't be trained; give weights in"
                    " float32, float16 or bfloat16."
                )
    assert positions is not None  # _check refuses what has none
    return Match(naming, sources, tuple(unused), classes, positions)


def _positions(shape: tuple[int, ...] | None, spec: ViTSpec) -> tuple[int, int] | None:
    """Prefix and grid of a file's position embeddings, or None where they fit no square grid.

    A file may have one for the class token where the model has none (DINOv2 with registers as transformers keeps it):
    it is then added to the class token itself.
    """
    if shape is None or len(shape) != 3:
        return None
    candidates = [spec.prefix_positions] + ([1] if spec.class_token and not spec.position_on_prefix else [])
    for prefix in candidates:
        grid = math.isqrt(max(0, shape[1] - prefix))
        if grid and grid**2 == shape[1] - prefix:
            return prefix, grid
    return None


def _take_classifier(
    sources: dict[str, tuple[str, ...]], shapes: Mapping[str, tuple[int, ...]], spec: ViTSpec, unused: list[str]
) -> int | None:
    """Classes of the file's classifier. One that does not fit is moved to `unused`, to be replaced by a fresh one."""
    keys = [f"{head}.{kind}" for head in spec.classifiers for kind in ("weight", "bias")]
    weight = shapes.get("head.weight", ())
    whole = len(weight) == 2 and weight[1] == spec.width and weight[0] > 0
    whole = whole and all(shapes.get(key, ())[:1] == weight[:1] and key in sources for key in keys)
    if whole and weight[0] == spec.classes:
        return weight[0]
    for key in ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"):
        # the distillation classifier of a model that has no distillation token is a difference to be reported
        if key in sources and (key in keys or key.startswith("head.")):
            unused.extend(sources.pop(key))
    return weight[0] if whole else None


def _check(
    header: Header,
    sources: Mapping[str, tuple[str, ...]],
    shapes: Mapping[str, tuple[int, ...]],
    spec: ViTSpec,
    positions: tuple[int, int] | None,
) -> None:
    """Refuse a file that is not the architecture of `spec`."""
    wrong = differences(shapes, spec)
    if wrong:
        raise InputError(
            f"{header.path} is another architecture than {spec.name}: {'; '.join(wrong)};"
            " choose the --model these weights were made for."
        )
    expected = {parameter.name: parameter.shape for parameter in spec.parameters()}
    heads = {f"{head}.{kind}" for head in spec.classifiers for kind in ("weight", "bias")}
    missing = [name for name in expected if name not in sources and name not in heads]
    if missing:
        raise InputError(
            f"{header.path} lacks {len(missing)} of {spec.name}'s tensors ({_first(missing)}); give a complete file."
        )
    extra = [names[0] for name, names in sources.items() if name not in expected]
    if extra:
        raise InputError(
            f"{header.path} holds {len(extra)} tensors that {spec.name} does not have ({_first(extra)});"
            " give weights of that model alone."
        )
    for name, shape in expected.items():
        if name in sources and name != "pos_embed" and math.prod(shapes[name]) != math.prod(shape):
            raise InputError(
                f"{header.path} is another architecture than {spec.name}: {name} {_by(shape)} expected, file has"
                f" {_by(shapes[name])}; choose the --model these weights were made for."
            )
    if positions is None or shapes["pos_embed"][2] != spec.width:
        raise InputError(
            f"{header.path} has position embeddings of shape {_by(shapes['pos_embed'])}, which are no square grid of"
            f" patches behind {spec.prefix_positions} positions of {spec.name}; choose the --model it was made for."
        )


def differences(shapes: Mapping[str, tuple[int, ...]], spec: ViTSpec) -> list[str]:
    """How an architecture, told by the shapes of its tensors (timm names), differs from `spec`, in words."""
    found: list[tuple[str, object, object]] = []
    patch = shapes.get("patch_embed.proj.weight", ())
    if len(patch) == 4:
        found += [("width", spec.width, patch[0]), ("input channels", 3, patch[1])]
        found += [("patch size", spec.patch_size, patch[-1])]
    blocks = {int(name.split(".")[1]) for name in shapes if re.match(r"blocks\.\d+\.", name)}
    found += [("depth", spec.depth, max(blocks, default=-1) + 1)]
    hidden = shapes.get("blocks.0.mlp.fc1.weight", ())
    if len(hidden) == 2:
        found += [("MLP width", spec.hidden, hidden[0])]
    found += [("class token", _has(spec.class_token), _has("cls_token" in shapes))]
    found += [("distillation token", _has(spec.distillation_token), _has("dist_token" in shapes))]
    registers = shapes.get("reg_token", (1, 0, 0))
    found += [("register tokens", spec.register_tokens, registers[1] if len(registers) == 3 else 0)]
    found += [("LayerScale", _has(spec.layer_scale), _has("blocks.0.ls1.gamma" in shapes))]
    return [f"{what} {ours} expected, file has {theirs}" for what, ours, theirs in found if ours != theirs]


def _has(present: bool) -> str:
    return "one" if present else "none"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _first(names: list[str]) -> str:
    return f"first: {names[0]}" if names else "it is empty"
