"""Depth pruning: the model that some of the decoder layers of another make, renumbered from 0; no tensor is changed."""

import dataclasses
from collections.abc import Sequence

from mindspore_impl.errors import UserError
from mindspore_impl.model.weights import WeightSource

_LAYERS = "model.layers."


def evenly_spaced(total: int, keep: int) -> tuple[int, ...]:
    """`keep` of the layers 0 .. total-1, evenly spaced (halves up), the first and last among them; else UserError."""
    if not 2 <= keep <= total:
        raise UserError(f"--keep: {keep} is not between 2 and the model's {total}; name a single layer with --layers")
    gaps = keep - 1
    return tuple((2 * number * (total - 1) + gaps) // (2 * gaps) for number in range(keep))


def parse_layers(text: str) -> tuple[int, ...]:
    """The numbers in a text such as 0,2,4. Raises UserError when it is none."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise UserError(f"--layers: {text!r} is no list of numbers; write it like 0,2,4") from None


def check_layers(layers: Sequence[int], total: int) -> None:
    """Raise UserError unless `layers` are increasing numbers of a model's `total` layers, counted from 0."""
    for number in layers:
        if not 0 <= number < total:
            raise UserError(f"--layers: {number} is not between 0 and {total - 1}, the model's last layer")
    for before, after in zip(layers, layers[1:], strict=False):
        if after <= before:
            raise UserError(f"--layers: {after} after {before}; name each layer once, in increasing order")


def keep_layers(source: WeightSource, layers: Sequence[int]) -> WeightSource:
    """A source of the model with only `layers` (from 0, rising) of `source`. Raises UserError (see check_layers)."""
    options = source.options
    check_layers(layers, options.num_hidden_layers)
    place = {old: new for new, old in enumerate(layers)}
    origin: dict[str, str] = {}  # name after: name before
    for name in source.shapes:
        rest = name.removeprefix(_LAYERS)
        number, _, tail = rest.partition(".")
        if rest == name:
            origin[name] = name
        elif int(number) in place:
            origin[f"{_LAYERS}{place[int(number)]}.{tail}"] = name
    return dataclasses.replace(
        source,
        shapes={name: source.shapes[before] for name, before in origin.items()},
        read=lambda name: source.read(origin[name]),
        options=dataclasses.replace(options, num_hidden_layers=len(layers)),
        config=None if source.config is None else {**source.config, "num_hidden_layers": len(layers)},
        sha256=None,
    )
