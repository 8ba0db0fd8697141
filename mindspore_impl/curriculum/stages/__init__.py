"""The stage kinds, one file each. Importing this package registers the built-in ones."""

from mindspore_impl.curriculum.stages import capture, distill, evaluate, export, reject, rollout, score, sft
from mindspore_impl.curriculum.stages.base import KINDS, PlannedStage, Shared, Stage, stage_kind

__all__ = [
    "KINDS", "PlannedStage", "Shared", "Stage", "stage_kind",
    "capture", "distill", "evaluate", "export", "reject", "rollout", "score", "sft",
]  # fmt: skip
