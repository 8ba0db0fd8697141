"""Checkpoints: a numbered folder of safetensors and JSON that is complete and intact, or is not used.

    <folder>/step_00000020/{weights.safetensors, optimizer.safetensors, position.json[, config.json], manifest.json}
    <folder>/LATEST, <folder>/BEST    the names of two such folders; written last

A folder is filled under a temporary name, flushed to disk and renamed; `manifest.json` holds size and SHA-256 of the
other files, so a truncated, changed or missing file is noticed and an earlier checkpoint is used instead. Nothing in it
depends on how many ranks trained it. `saving` writes, `folders` finds and verifies, `contents` reads weights, and
`background` lets training go on meanwhile.
"""

from mindspore_impl.checkpoint.background import Background
from mindspore_impl.checkpoint.contents import load_into, open_weights, read_arrays, read_weights, weights_of
from mindspore_impl.checkpoint.folders import Checkpoint, latest, selected
from mindspore_impl.checkpoint.saving import save

__all__ = [
    "Background", "Checkpoint", "latest", "load_into", "open_weights", "read_arrays", "read_weights", "save",
    "selected", "weights_of",
]  # fmt: skip
