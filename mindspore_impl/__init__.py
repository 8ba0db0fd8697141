"""Post-training for openPangu-Embedded on MindSpore: curriculum SFT and offline on-policy top-k distillation.

The names below are the public Python API; README.md beside this file shows each of them. They are imported when they
are first used, so that importing the package costs nothing.
"""

import importlib
import os

__version__ = "0.1.0"

_MODULES = {
    "api": (
        "capture", "chat", "distillation_loss", "generate", "load_model", "load_tokenizer", "make_batches", "new_model",
        "open_store", "read_records", "run", "save_model", "setup", "validation_batches",
    ),
    "curriculum.configuration": ("compose",),
    "curriculum.stages.base": ("Stage", "stage_kind"),
    "data.answers": ("register_verifier",),
    "data.options": ("BatchOptions", "DatasetOptions"),
    "data.sources": ("register_file_source", "register_source"),
    "distill.options": ("CaptureOptions",),
    "errors": ("JobFailed", "UserError"),
    "generation.options": ("SamplingOptions",),
    "losses.divergences": ("register_divergence",),
    "losses.options": ("ObjectiveOptions",),
    "model.options": ("ModelOptions",),
    "report.run_files": ("read_run",),
    "schema": ("option",),
    "text.records": ("Message", "Record"),
    "text.template": ("Template", "register_template"),
    "training.options": ("OptimizerOptions", "TrainOptions"),
    "training.trainer": ("TrainingJob", "train"),
}  # fmt: skip
_MODULE_OF = {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str):
    """Import a name of the public API on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    os.environ.setdefault("GLOG_v", "3")  # MindSpore's own log, before its import: errors only
    globals()[name] = value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
