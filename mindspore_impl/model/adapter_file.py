"""LoRA adapters on disk: parameter names, file format, and merging into the base weights.

    W' = W + (lora_alpha / r) * B @ A        A [r, inputs], B [outputs, r]

(arXiv 2106.09685; PEFT's names and scale.) The file's metadata hold their options and the identity of the base weights,
so that they are never merged into others.
"""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import LoraOptions, ModelOptions
from mindspore_impl.model.weights import WeightSource, check_shapes, identity
from mindspore_impl.schema import check_ranges, nearest, upgrade, versioned

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_PREFIX, _KEY = "base_model.model.", "lora"


@dataclass(frozen=True)
class Adapters:
    """The options that adapters were made with, and the SHA-256 of their base weights."""

    options: LoraOptions
    base_sha256: str


def check_lora(options: LoraOptions, where: str) -> None:
    """Refuse options without meaning. `where` is the config path. Raises UserError that names the key."""
    check_ranges(options, where)
    if not options.target_modules:
        raise UserError(f"{where}.target_modules: no layer is named; choose from {', '.join(TARGETS)}")
    for target in options.target_modules:
        if target not in TARGETS:
            raise UserError(f"{where}.target_modules: no linear layer is called {target!r}{nearest(target, TARGETS)}")
    if len(set(options.target_modules)) < len(options.target_modules):
        raise UserError(f"{where}.target_modules: {options.target_modules}: a layer stands twice")


def scale_of(options: LoraOptions) -> float:
    """The factor of B @ A."""
    return options.lora_alpha / options.r


def adapter_names(weight: str) -> tuple[str, str]:
    """The names of A and B beside the parameter `weight`, as PEFT stores them."""
    stem = _PREFIX + weight.removesuffix("weight")
    return stem + "lora_A.weight", stem + "lora_B.weight"


def adapter_shapes(shapes: dict[str, tuple[int, ...]], options: LoraOptions) -> dict[str, tuple[int, int]]:
    """Name and shape of every A and B for a model with parameters of these `shapes`."""
    found = {}
    for weight in _adapted(shapes, options):
        (outputs, inputs), (name_a, name_b) = shapes[weight], adapter_names(weight)
        found |= {name_a: (options.r, inputs), name_b: (outputs, options.r)}
    return found


def _adapted(shapes: dict[str, tuple[int, ...]], options: LoraOptions) -> list[str]:
    endings = tuple(f".{target}.weight" for target in options.target_modules)
    return [name for name in shapes if name.endswith(endings)]


def adapter_count(model: ModelOptions, options: LoraOptions) -> int:
    """The number of parameters of a model's adapters."""
    from mindspore_impl.model.pangu import parameter_shapes

    return sum(math.prod(shape) for shape in adapter_shapes(parameter_shapes(model), options).values())


def write_adapters(path: Path, arrays: dict[str, np.ndarray], adapters: Adapters) -> None:
    """Write a file of adapters. One metadata key keeps its bytes a function of its content."""
    about = versioned({**dataclasses.asdict(adapters.options), "base_sha256": adapters.base_sha256})
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    save_file(ordered, path, {_KEY: json.dumps(about, sort_keys=True)})


def read_adapters(path: Path) -> Adapters | None:
    """The metadata of a file of adapters; None for a file of whole weights. Raises UserError if damaged."""
    try:
        with safe_open(path, "numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
        if text is None:
            return None
        about = upgrade(json.loads(text), "stages.*.lora")
        found = Adapters(LoraOptions(about["r"], about["lora_alpha"], about["target_modules"]), about["base_sha256"])
        check_lora(found.options, _KEY)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, UserError) as error:
        raise UserError(f"{path}: cannot be read as LoRA adapters ({error}); copy the file again") from error
    return found


def merged(source: WeightSource, adapters: Adapters, base: WeightSource) -> WeightSource:
    """The weights of `base` with the adapters of `source` merged into them, one float32 tensor at a time.

    Raises UserError when `base` is not what they were trained on, or a pair is missing, extra or of another shape.
    """
    digest = identity(base)
    if digest != adapters.base_sha256:
        fault = f"trained on the weights {adapters.base_sha256[:12]}..., but {base.path} holds {digest[:12]}..."
        raise UserError(f"{source.path}: {fault}; give the adapters their own base, or train them again")
    check_shapes(
        adapter_shapes(base.shapes, adapters.options), source.shapes, str(source.path),
        f"the adapters do not fit {base.path}: train them again",
    )  # fmt: skip
    adapted, scale = set(_adapted(base.shapes, adapters.options)), np.float32(scale_of(adapters.options))

    def read(name: str) -> np.ndarray:
        weight_OI = base.read(name)
        if name not in adapted:
            return weight_OI
        a_RI, b_OR = (source.read(part) for part in adapter_names(name))
        return weight_OI + scale * (b_OR @ a_RI)

    together = files.sha256_json({"base": digest, "adapters": identity(source)})
    return dataclasses.replace(
        base, path=source.path, files=(*source.files, *base.files), read=read, sha256=together,
        tokenizer_sha256=source.tokenizer_sha256,
    )  # fmt: skip
