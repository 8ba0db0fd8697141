"""A tokenizer without text, and prompts."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Ids:
    """All that the engine asks of a tokenizer."""

    vocab_size: int = 37
    bos_id: int = 1
    eos_id: int = 5
    pad_id: int = 0


def make_prompts(count, seed=0, longest=12):
    generator = np.random.default_rng(seed)
    return [generator.integers(1, 37, generator.integers(1, longest + 1)).tolist() for _ in range(count)]
