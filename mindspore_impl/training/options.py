"""Optimizer, schedule and the training loop."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class OptimizerOptions:
    """AdamW with warm-up. Decay is applied to matrices only, never to norms and biases."""

    learning_rate: float = 2e-3
    lr_scheduler_type: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = "cosine"
    warmup_ratio: float = 0.05  # share of the steps; used when warmup_steps is null
    warmup_steps: int | None = None
    decay_ratio: float = 0.1  # warmup_stable_decay: share of the steps that decay at the end
    min_lr_ratio: float = 0.0  # the last learning rate, as a share of learning_rate
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-8
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0  # global gradient norm; 0: no clipping


@dataclass
class TrainOptions:
    """Length of a stage and what happens along the way. Exactly one of `max_steps` and `num_train_epochs` is given."""

    max_steps: int | None = None
    num_train_epochs: float | None = None
    logging_steps: int = 10  # steps between lines of metrics.jsonl
    eval_steps: int = 0  # steps between validations; 0: only at the start and the end
    save_steps: int = 200  # steps between checkpoints; 0: only at the end
    save_total_limit: int = 2  # the newest ones that are kept, besides the best
    keep_every: int = 0  # steps between checkpoints that are kept for ever; 0: none
    async_checkpoint: bool = True  # write beside the steps, which stop for a copy of the state alone
    select: Literal["last", "best"] = "last"  # which weights the stage hands on; best: lowest validation loss
    max_skipped_steps: int = 10  # non-finite steps in a row before the stage stops
    tensorboard: bool = True
