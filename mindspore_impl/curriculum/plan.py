"""From a Config to an ordered list of stages with checked inputs and fingerprints.

A fingerprint covers everything that decides a stage's result: its options without logging, its model, its data (file
hashes included), its tokenizer, its seed and the fingerprints of its inputs. Equal fingerprint, equal result.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

from mindspore_impl import files
from mindspore_impl.config import Config, EvaluateStage, Stage
from mindspore_impl.curriculum.checks import problems_of
from mindspore_impl.curriculum.inputs import (
    TRAINED,
    inputs_of,
    kl_teacher,
    kl_teacher_model,
    makers_of,
    measures,
    model_of,
    sets_of,
)
from mindspore_impl.curriculum.stage_benchmarks import benchmark_content
from mindspore_impl.data.options import DatasetOptions
from mindspore_impl.errors import UserError
from mindspore_impl.schema import fingerprint_content, to_plain

CODE_FORMAT = 1  # raise it when a change of code changes the results of equal options


@dataclass
class PlannedStage:
    """One stage of the run, ready to be executed."""

    index: int  # from 1, as in the folder name
    name: str
    stage: Stage
    model: str  # an entry of config.models; "" where none is needed
    inputs: dict[str, str] = field(default_factory=dict)  # role, or set that a stage makes: stage name or path
    seed: int = 0
    fingerprint: str = ""

    @property
    def kind(self) -> str:
        """A key of config.STAGE_KINDS."""
        return self.stage.kind

    @property
    def folder_name(self) -> str:
        """Such as 03_sft_fast."""
        return f"{self.index:02d}_{self.name}"


def make_plan(config: Config) -> list[PlannedStage]:
    """Check the curriculum and return its stages in order, evaluations included.

    Raises UserError that lists every problem: unknown or missing inputs, wrong kinds, cycles, impossible sizes.
    """
    if problems := problems_of(config):
        raise UserError("the curriculum cannot run:\n  " + "\n  ".join(problems))
    planned: dict[str, PlannedStage] = {}
    for name in config.order:
        _append(planned, config, name, config.stages[name])
        if isinstance(config.stages[name], TRAINED) and config.stages[name].evaluate and measures(config.evaluation):
            _append(planned, config, f"eval_{name}", EvaluateStage(kind="evaluate", init=name))
    return list(planned.values())


def _append(planned: dict[str, PlannedStage], config: Config, name: str, stage: Stage) -> None:
    seed = config.seed if stage.seed is None else stage.seed
    inputs = inputs_of(stage) | {f"set {each}": maker for each, maker in makers_of(stage, config).items()}
    if isinstance(stage, EvaluateStage):
        inputs |= kl_teacher(stage, config)
    entry = PlannedStage(len(planned) + 1, name, stage, model_of(config, stage), inputs, seed)
    entry.fingerprint = _fingerprint(config, entry, planned)
    planned[name] = entry


def _fingerprint(config: Config, entry: PlannedStage, planned: dict[str, PlannedStage]) -> str:
    stage = entry.stage
    options = fingerprint_content(stage)
    if isinstance(stage, EvaluateStage):
        options["options"] = _evaluation(stage, config)
    inputs = {
        role: planned[value].fingerprint if value in planned else path_hash(value)
        for role, value in entry.inputs.items()
    }
    content = {
        "format": CODE_FORMAT,
        "stage": options,
        "model": fingerprint_content(config.models[entry.model]) if entry.model else None,
        "seed": entry.seed,
        "tokenizer": tokenizer_fingerprint(config),
        "sets": {name: _set_content(config, config.data.sets[name]) for name in sets_of(stage, config)},
        "inputs": inputs,
    }
    return files.sha256_json(content)


def _evaluation(stage: EvaluateStage, config: Config) -> dict:
    """What an evaluation measures; without a comparison, nothing about a teacher, nor about benchmarks without one."""
    options = fingerprint_content(stage.options or config.evaluation)
    model = kl_teacher_model(stage, config) if options["teacher_kl"] else None
    kept = {key: value for key, value in options.items() if model or not key.startswith("teacher")}
    kept |= {"teacher_model": fingerprint_content(config.models[model])} if model else {}
    del kept["benchmarks"]
    found = benchmark_content(stage.options or config.evaluation)
    return kept | ({"benchmarks": found} if found else {})


def tokenizer_fingerprint(config: Config) -> str:
    """Decides whether a run's own tokenizer must be trained anew."""
    options = config.tokenizer
    if options.path is not None:
        return files.sha256_json([file_hash(Path(options.path)), options.template])
    sets = {name: _set_content(config, config.data.sets[name]) for name in options.train_on}
    return files.sha256_json({"format": CODE_FORMAT, "options": to_plain(options), "sets": sets})


def _set_content(config: Config, options: DatasetOptions) -> dict:
    content = fingerprint_content(options)
    if content.get("seed", 0) is None:
        content["seed"] = config.seed
    if "path" in content:  # the file's name is part of record ids, which seed the sampling of rollouts
        path = Path(content["path"])
        content["path"] = (path.name, file_hash(path))
    return content


def path_hash(path: str | Path) -> str:
    """Hash of a file, of a Hugging Face folder's index and shards, or of the weight files of another folder."""
    from mindspore_impl.model.weights import hf_files, is_hf_folder

    target = Path(path)
    if target.is_file():
        return file_hash(target)
    if is_hf_folder(target):
        return files.sha256_json({found.name: file_hash(found) for found in hf_files(target)})
    found = sorted(target.rglob("*.safetensors"))
    return files.sha256_json({str(f.relative_to(target)): file_hash(f) for f in found})


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read once as long as its size and time stay."""
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return _hash_of_state(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _hash_of_state(path: Path, size: int, mtime_ns: int) -> str:
    return files.sha256_file(path)
