"""Small models with every parameter away from its trivial value (biases not 0, norms not 1)."""

import functools

import numpy as np

from mindspore_impl.model.options import ModelOptions

# Between them: each bias, tied or not, heads of their own width, one key head and as many as query heads.
SHAPES = {
    "tied": {},
    "untied_wide_head": {"tie_word_embeddings": False, "head_dim": 10, "num_key_value_heads": 4, "o_bias": False,
                      "rope_theta": 1.6e7, "max_position_embeddings": 32768, "num_hidden_layers": 1},
    "o_bias_only": {"qkv_bias": False, "num_attention_heads": 6, "num_key_value_heads": 1, "num_hidden_layers": 1},
}  # fmt: skip


def small_options(**changes) -> ModelOptions:
    sizes = {"vocab_size": 37, "hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 64}
    return ModelOptions(**{**sizes, **changes})


def build(options, seed=3):
    from mindspore import Tensor

    from mindspore_impl.model.pangu import PanguForCausalLM

    model = PanguForCausalLM(options, seed=seed)
    generator = np.random.default_rng(seed)
    for parameter in model.get_parameters():
        centre = 1.0 if parameter.name.endswith("norm.weight") else 0.0
        value = centre + 0.3 * generator.standard_normal(parameter.shape)
        parameter.set_data(Tensor(value.astype(np.float32)))
    model.set_train(False)
    return model


@functools.cache
def shared(shape: str):
    """The model of SHAPES[shape], for tests that leave its weights as they are."""
    return build(small_options(**SHAPES[shape]))


def weights_of(model) -> dict[str, np.ndarray]:
    return {parameter.name: parameter.asnumpy() for parameter in model.get_parameters()}


def pack(documents, length):
    """(input_ids_BL, position_ids_BL, segment_ids_BL) of rows, each a list of documents; segments 1, 2, ... then 0."""
    rows = len(documents)
    ids, positions, segments = (np.zeros((rows, length), np.int32) for _ in range(3))
    for row, parts in enumerate(documents):
        start = 0
        for number, part in enumerate(parts, start=1):
            stop = start + len(part)
            ids[row, start:stop], positions[row, start:stop] = part, np.arange(len(part))
            segments[row, start:stop] = number
            start = stop
    return ids, positions, segments


def run(cell, *arrays):
    from mindspore import Tensor

    return cell(*[Tensor(array) for array in arrays]).asnumpy()
