"""The generation benchmark compares equal work: the same weights, the same text."""

import dataclasses

import numpy as np
import pytest

from mindspore_impl.model.pangu import parameter_count
from mindspore_impl.speed import generate

SMALL = dataclasses.replace(generate.OPTIONS, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                            num_attention_heads=4, num_key_value_heads=2, head_dim=8)  # fmt: skip


def test_size_is_that_of_smollm2():
    assert parameter_count(generate.OPTIONS) == 134_515_008


@pytest.mark.slow
def test_both_compute_the_same(ms_runtime):
    ours, theirs = generate.Ours(SMALL), generate.Theirs(SMALL)
    ids_BL = generate.prompts(3, 12, SMALL)
    generate.check_equal(ours, theirs, ids_BL)
    np.testing.assert_array_equal(ours.decode(4), ours.decode(4))
    np.testing.assert_allclose(theirs.decode(4), theirs.decode(4), atol=1e-6)
    theirs.model.model.norm.weight.data *= 1.1
    with pytest.raises(ValueError, match="would not be fair"):
        generate.check_equal(ours, theirs, ids_BL)
