"""Small checkpoints for the tests of this room."""

import numpy as np

from mindspore_impl import checkpoint

FILES = ("weights.safetensors", "optimizer.safetensors", "position.json", "config.json", "manifest.json")


def arrays(step):
    """Weights and optimizer state that depend on the step."""
    draw = np.random.default_rng(step)
    weights = {name: draw.normal(size=(3, 4)).astype(np.float32) for name in ("b.weight", "a.weight")}
    return weights, {"adam_m.a.weight": weights["a.weight"] / 3, "global_step": np.array([step], np.int32)}


def write(folder, *steps, keep=10, metric=None):
    """Save a checkpoint of each step."""
    for step in steps:
        checkpoint.save(folder, step, *arrays(step), {"step": step}, keep, metric, {"of": "a model"})


def check(found):
    """Assert that a checkpoint holds what was written for its step."""
    weights, optimizer = arrays(found.step)
    assert found.position == {"step": found.step}
    for path, expected in ((found.weights_path, weights), (found.optimizer_path, optimizer)):
        stored = checkpoint.read_arrays(path)
        assert set(stored) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(stored[name], array, err_msg=name)


def numbered(folder):
    """Names of the folders that are there, temporary ones too."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())
