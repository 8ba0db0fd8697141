"""Modelled memory: of the published sizes, and how it follows devices, batches and lengths."""

import dataclasses

import pytest

from mindspore_impl.curriculum.estimate import decoding_bytes, forward_bytes, training_estimate
from mindspore_impl.data.options import BatchOptions
from mindspore_impl.runtime import RuntimeOptions
from tests.curriculum.conftest import compose_quickly

GIB = 2**30


@pytest.fixture(scope="module")
def models():
    """The published sizes: "student" is the 1B, "teacher" the 7B."""
    return compose_quickly("model@models.student=pangu_1b", "model@models.teacher=pangu_7b").models


def estimate(model, rows: int, accumulation: int, runtime: RuntimeOptions) -> dict[str, int]:
    data = BatchOptions(sequence_length=4096, rows=rows, gradient_accumulation_steps=accumulation)
    return training_estimate(model, data, None, runtime)


def test_training_of_the_1b_fits_a_device_of_eight(models):
    size = estimate(models["student"], 128, 16, RuntimeOptions(workers=8))
    assert size["parameters"] == 1_155_912_192
    assert 20 * GIB < size["bytes"] < 64 * GIB


def test_workers_share_the_rows_and_not_the_weights(models):
    eight, four, one = (
        estimate(models["student"], 128, 16, RuntimeOptions(workers=count))["bytes"] for count in (8, 4, 1)
    )
    # Weights with their gradient and moments, two chunks of logits, and the tied embedding's own gradient.
    fixed = 16 * 1_155_912_192 + 2 * 128 * 2**20 + 4 * 153376 * 1536
    assert four - fixed == 2 * (eight - fixed) and one - fixed == 8 * (eight - fixed)
    assert eight == estimate(models["student"], 128, 128, RuntimeOptions())["bytes"]


def test_workers_can_share_the_moments(models):
    runtimes = [RuntimeOptions(workers=8, shard_optimizer=s) for s in (0, 1)]
    whole, shared = (estimate(models["student"], 128, 16, runtime)["bytes"] for runtime in runtimes)
    assert whole - shared == 7 * 1_155_912_192


def test_logits_are_budgeted_and_an_untied_head_has_no_second_gradient(models):
    untied = dataclasses.replace(models["student"], tie_word_embeddings=False)
    wide = RuntimeOptions(logits_mb=256)
    base = estimate(models["student"], 1, 1, RuntimeOptions())
    assert estimate(models["student"], 1, 1, wide)["bytes"] - base["bytes"] == 2 * 128 * 2**20
    more = estimate(untied, 1, 1, RuntimeOptions())
    head = 153376 * 1536
    assert more["bytes"] - base["bytes"] == (16 - 4) * head and more["parameters"] - base["parameters"] == head


def test_without_recomputation_every_layer_counts(models):
    kept = dataclasses.replace(models["student"], recompute=False)
    layer = 4 * (4096 * (14 * 1536 + 3 * 6144) + 2 * 12 * 4096**2)
    more = estimate(kept, 1, 1, RuntimeOptions())["bytes"]
    more -= estimate(models["student"], 1, 1, RuntimeOptions())["bytes"]
    assert more == 25 * layer


def test_capture_holds_fp32_weights_one_layer_and_bounded_logits(models):
    def size(rows: int) -> int:
        return forward_bytes(models["teacher"], rows, 4096, RuntimeOptions())

    weights, logits = 4 * 8_030_887_936, 128 * 2**20
    row = 4 * (4096 * (14 * 4096 + 3 * 12800) + 2 * 32 * 4096**2)
    assert [size(rows) for rows in (1, 8)] == [weights + logits + row, weights + logits + 8 * row]


def test_capture_of_a_small_model_holds_all_its_logits(models):
    tiny = dataclasses.replace(models["student"], vocab_size=160)

    def size(rows: int) -> int:
        return forward_bytes(tiny, rows, 8, RuntimeOptions())

    assert size(2) - size(1) == 4 * (8 * (14 * 1536 + 3 * 6144) + 2 * 12 * 8**2 + 8 * 160)


def test_generation_holds_the_cache_and_one_step_of_logits(models):
    model = models["student"]
    cache = 4 * 2 * 26 * 32 * 2048 * 6 * 128  # keys and values, layers, batch, slots, heads, width
    assert decoding_bytes(model, 32, 1024) == 4 * 1_155_912_192 + cache + 4 * 32 * 153376
