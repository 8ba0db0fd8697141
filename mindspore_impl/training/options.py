"""Optimizer, schedule and the training loop."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class OptimizerOptions:
    """AdamW with warm-up. Decay is applied to matrices only, never to norms and biases."""

    learning_rate: float = 2e-3
    schedule: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = "cosine"
    warmup_ratio: float = 0.05  # share of the steps; used when warmup_steps is null
    warmup_steps: int | None = None
    decay_ratio: float = 0.1  # warmup_stable_decay: share of the steps that decay at the end
    min_lr_ratio: float = 0.0  # the last learning rate, as a share of learning_rate
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # global gradient norm; 0: no clipping


@dataclass
class TrainOptions:
    """Length of a stage and what happens along the way. Exactly one of `steps` and `epochs` is given."""

    steps: int | None = None
    epochs: float | None = None
    log_interval: int = 10  # steps between lines of metrics.jsonl
    validation_interval: int = 0  # steps between validations; 0: only at the start and the end
    checkpoint_interval: int = 200  # steps between checkpoints; 0: only at the end
    keep_checkpoints: int = 2  # the newest ones that are kept, besides the best
    keep_every: int = 0  # steps between checkpoints that are kept for ever; 0: none
    async_checkpoint: bool = True  # write beside the steps, which stop for a copy of the state alone
    select: Literal["last", "best"] = "last"  # which weights the stage hands on; best: lowest validation loss
    max_skipped_steps: int = 10  # non-finite steps in a row before the stage stops
    tensorboard: bool = True
