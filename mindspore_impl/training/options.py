"""Optimizer, schedule and the training loop."""

from dataclasses import dataclass
from typing import Literal

from mindspore_impl.schema import option


@dataclass
class OptimizerOptions:
    """AdamW with warm-up. Decay is applied to matrices only, never to norms and biases."""

    learning_rate: float = option(2e-3, above=0)  # peak, after warm-up
    lr_scheduler_type: Literal["cosine", "linear", "constant", "warmup_stable_decay"] = "cosine"  # shape after warm-up
    warmup_ratio: float = option(0.05, low=0, high=1)  # share of the steps; used when warmup_steps is null
    warmup_steps: int | None = option(None, low=0)  # optimizer steps; null: warmup_ratio of all steps
    decay_ratio: float = option(0.1, low=0, high=1)  # warmup_stable_decay: share of the steps that decay at the end
    min_lr_ratio: float = option(0.0, low=0, high=1)  # where the decay ends, as a share of learning_rate
    adam_beta1: float = option(0.9, above=0, high=1)  # decay of the first moment, below 1
    adam_beta2: float = option(0.98, above=0, high=1)  # decay of the second moment, below 1
    adam_epsilon: float = option(1e-8, above=0)  # added to the root of the second moment
    weight_decay: float = option(0.1, low=0)  # decoupled, times the learning rate
    max_grad_norm: float = option(1.0, low=0)  # global gradient norm; 0: no clipping


@dataclass
class TrainOptions:
    """Length, logging, validation and checkpoints. Exactly one of `max_steps` and `num_train_epochs` is given."""

    max_steps: int | None = option(None, low=1)  # optimizer steps
    num_train_epochs: float | None = option(None, above=0)  # passes over the mixture
    logging_steps: int = option(10, low=0, fingerprint=False)  # steps between lines of metrics.jsonl
    eval_steps: int = option(0, low=0)  # steps between validations; 0: only at the start and the end
    save_steps: int = option(200, low=0, fingerprint=False)  # steps between checkpoints; 0: only at the end
    save_total_limit: int = option(2, low=1, fingerprint=False)  # the newest ones that are kept, besides the best
    keep_every: int = option(0, low=0, fingerprint=False)  # steps between checkpoints kept for ever; 0: none
    async_checkpoint: bool = option(True, fingerprint=False)  # write in the background; a step waits for a copy only
    select: Literal["last", "best"] = "last"  # which weights the stage hands on; best: lowest validation loss
    max_skipped_steps: int = option(10, low=1, fingerprint=False)  # non-finite steps in a row before the stage stops
    tensorboard: bool = option(True, fingerprint=False)  # write TensorBoard events beside metrics.jsonl
