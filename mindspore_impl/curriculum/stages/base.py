"""What a stage kind is: its contract with plan, runner, cache, launch and report, and the registry of kinds.

A kind is one file: a dataclass of options that derives from Stage, says what it reads and provides, and runs. See
README.md of this folder for an example.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mindspore_impl import schema
from mindspore_impl.curriculum.stages.inputs import Input, check_weights, file_hash, is_path
from mindspore_impl.data.options import DataOptions, DatasetOptions, StageSet
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.options import EvaluationOptions
from mindspore_impl.model.options import LoraOptions, ModelOptions
from mindspore_impl.runtime import RuntimeOptions
from mindspore_impl.schema import nearest, option
from mindspore_impl.text.options import TokenizerOptions
from mindspore_impl.text.tokenizer import Tokenizer

KINDS: dict[str, type["Stage"]] = {}


def stage_kind(cls: type["Stage"]) -> type["Stage"]:
    """Class decorator: register `cls`, a dataclass derived from Stage, under the default of its field `kind`."""
    KINDS[cls.kind] = cls
    return cls


class Context(Protocol):
    """The run around a stage, as a kind sees it (implemented in context.py)."""

    config: "Shared"
    tokenizer: Any  # text.tokenizer.Tokenizer

    def folder(self, name: str) -> Path:
        """The folder of the stage called `name`."""

    def load(self, reference: str, artifact: str) -> Any:
        """What a stage name or path provides: a WeightSource, the folder of a store, a list of rollouts, or a file.

        Raises UserError when it is missing or damaged.
        """

    def records(self, name: str) -> list:
        """The records (text.records.Record) of a data set. Warns of characters that the tokenizer loses."""

    def whole(self, name: str) -> list:
        """The records of a data set before its `keep` is applied."""

    def samples(self, name: str) -> list:
        """The rendered samples (text.chat.Sample) of a data set."""

    def rollout_samples(self, reference: str) -> list:
        """The rendered samples of rollouts, by stage name or path."""

    def set_options(self, name: str) -> DatasetOptions:
        """The options of a data set; one that a stage makes is read from that stage's record file."""

    def model_options(self, name: str) -> ModelOptions:
        """The options of an entry of `models`, its vocabulary filled in from the tokenizer where it is 0."""

    def build_model(self, name: str, reference: str | None, lora: LoraOptions | None = None, seed: int = 0) -> tuple:
        """A model, and the SHA-256 of its weights (None for random ones).

        name: an entry of `models`; reference: stage or path of the weights, None for random ones; lora: adapters to be
        trained beside them; seed: of the adapters' initial values.
        """


@dataclass(kw_only=True)
class Stage:
    """Options of one stage. Of the methods a kind must override `run` alone."""

    kind: str  # what the stage does
    seed: int | None = option(None, low=0)  # null: the run's seed

    group: ClassVar[str] = "other"  # training, generation, scoring, selection, evaluation, deployment (report)
    provides: ClassVar[dict[str, str]] = {}  # artifact for later stages: its file or folder in the stage's folder
    outputs: ClassVar[tuple[str, ...]] = ()  # files without which a finished stage runs again
    less_memory: ClassVar[str] = "lower the model's size"  # what helps when memory runs out; {0}: the stage's key

    def inputs(self, key: str, shared: "Shared") -> list[Input]:
        """The named inputs that are given: by default every field that is a reference."""
        found = schema.references(self)
        return [Input(role, name, artifact, f"{key}.{role}") for role, (name, artifact) in found.items()]

    def missing_inputs(self) -> list[str]:
        """The references without a default that are not given: fields of type `str` that are empty."""
        rules = {spec.name: schema.rule_of(spec) for spec in dataclasses.fields(self)}
        return [name for name, rule in rules.items() if rule.artifact and getattr(self, name) == ""]

    def data_sets(self, key: str, shared: "Shared") -> list[tuple[str, str]]:
        """(configuration key, data set) of every data set that is read."""
        return []

    def model_name(self, shared: "Shared") -> str:
        """The entry of `models` that is used: the stage's own `model`, or that of the stage its weights come from.

        "" for a stage that needs none. Raises UserError when there is no such entry.
        """
        own = getattr(self, "model", None)
        weights = next((given.reference for given in self.inputs("", shared) if given.artifact == "weights"), None)
        return shared.model_for(own, weights) if own or weights else ""

    def problems(self, key: str, shared: "Shared") -> Iterator[str]:
        """Why the stage cannot run, each problem naming its key. Inputs, sets and model are known to exist.

        Here: weights of another model or tokenizer, by the headers of their files. A kind adds its own.
        """
        from mindspore_impl.curriculum.resolve import open_weights

        def check(path: Path, model: str) -> None:
            file, options = shared.tokenizer.path, shared.sized_model(model)
            tokenizer = file and Tokenizer.load(file, shared.tokenizer.template)
            check_weights(open_weights(path, hashed=False), path, options, f"models.{model}", tokenizer)

        for given in self.inputs(key, shared):
            model = given.model or self.model_name(shared)
            if given.artifact == "weights" and is_path(given.reference) and model in shared.models:
                yield from problem_of(check, Path(given.reference), model, where=given.key)

    def resolved(self, shared: "Shared") -> "Stage":
        """This stage with the defaults filled in that depend on others; called once there are no problems.

        The plan holds, fingerprints, shows and runs what this returns.
        """
        return self

    def content(self, shared: "Shared") -> dict:
        """What of the options decides the result, for the fingerprint. Inputs, sets, model and seed count anyway."""
        return schema.fingerprint_content(self)

    def followers(self, name: str, shared: "Shared") -> dict[str, "Stage"]:
        """Stages that run right after this one without being listed in `order`, by name."""
        return {}

    def work(self) -> str:
        """The amount of work in words, for the plan."""
        return ""

    def memory(self, shared: "Shared") -> int | None:
        """Modelled bytes on one device; None where nothing is modelled."""
        return None

    def metric_paths(self, shared: "Shared") -> list[str]:
        """Paths in the stage's metrics that a sweep can be judged by, such as accuracy.SET."""
        return []

    def measured(self, name: str) -> str:
        """The stage whose weights this one, called `name`, measures; "" when it measures none."""
        return ""

    def data_problems(self, key: str, context: Context) -> Iterator[str]:
        """Why the stage cannot use its data, each problem naming its key: asked before the first stage runs.

        What other stages are yet to make is not there. Here: a model smaller than the tokenizer, and rollouts in a file
        that cannot be read. A UserError that is raised counts as the last problem.
        """
        if model := self.model_name(context.config):
            yield from problem_of(context.model_options, model)
        for given in self.inputs(key, context.config):
            if given.artifact == "rollouts" and is_path(given.reference):
                yield from problem_of(context.rollout_samples, given.reference, where=given.key)

    def hands_on(self) -> str:
        """The data set whose records, all of them and as long, the stage hands on; "" for none."""
        return ""

    def disk(self, context: Context) -> int:
        """Modelled bytes that the stage leaves on the disk, as far as that is much and known before it runs."""
        return 0

    def run(self, context: Context, planned: "PlannedStage", folder: Path) -> dict[str, Any]:
        """Do the work on every rank, write below `folder`, and return the metrics; `tokens` is counted by the report.

        Called again after a kill, with what the killed call left in `folder`.
        """
        raise UserError(f"stage kind {self.kind!r} cannot run: it has no method `run`")

    def summary(self, metrics: dict) -> str:
        """The metrics worth a line on the terminal."""
        rate = metrics.get("tokens_per_second")
        return f"{rate:,.0f} tokens/s" if rate else ""

    def is_complete(self, folder: Path) -> bool:
        """Whether the results of a finished stage are still there; one without them runs again."""
        return all((folder / name).is_file() for name in self.outputs)

    def load(self, artifact: str, folder: Path, context: Context) -> Any:
        """An artifact of this stage, finished in `folder`, as later stages use it."""
        return context.load(str(folder / self.provides[artifact]), artifact)

    def artifacts(self, folder: Path, context: Context) -> dict[str, str]:
        """The hash of everything that this stage has made for others in `folder`, compared when it is loaded."""
        from mindspore_impl.curriculum.resolve import artifact_hash

        def hash_of(artifact: str) -> str:
            weights = self.load(artifact, folder, context) if artifact == "weights" else None
            return artifact_hash(folder / self.provides[artifact], weights)

        return {artifact: hash_of(artifact) for artifact in self.provides}


@dataclass(kw_only=True)
class Shared:
    """The part of a run's configuration that a stage may read."""

    seed: int = option(0, low=0)  # of data, initial weights, order and sampling
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    models: dict[str, ModelOptions] = field(default_factory=dict)
    data: DataOptions = field(default_factory=DataOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    stages: dict[str, Stage] = field(default_factory=dict)

    def model_for(self, name: str | None, source: str | None) -> str:
        """The entry `name` of `models`; without a name, that of the stage `source`.

        Raises UserError when there is none.
        """
        if name is None:
            if source not in self.stages:
                raise UserError(f"model: weights from {source!r} need a model; name one of: {', '.join(self.models)}")
            return self.stages[source].model_name(self)
        if name not in self.models:
            raise UserError(f"model: no model is named {name!r}{nearest(name, self.models)}")
        return name

    def vocabulary(self) -> int:
        """The size of the tokenizer; of one that is yet to be trained, what it will be."""
        options = self.tokenizer
        if options.path is None:
            return options.vocab_size
        return _pieces_of(options.path, options.template, file_hash(Path(options.path)))

    def sized_model(self, name: str, size: int | None = None) -> ModelOptions:
        """The options of model `name`, a vocabulary of 0 replaced by the tokenizer's `size` (None: `vocabulary`).

        Raises UserError when the model's own is smaller.
        """
        options, size = self.models[name], size or self.vocabulary()
        if 0 < options.vocab_size < size:
            raise UserError(
                f"models.{name}.vocab_size: {options.vocab_size} is smaller than the tokenizer's {size} (a trained one "
                f"has tokenizer.vocab_size); set it to {size}, or to 0 to follow the tokenizer"
            )
        return dataclasses.replace(options, vocab_size=options.vocab_size or size)

    def check_model(self, name: str) -> None:
        """Refuse sizes of model `name` that do not fit together, or a vocabulary smaller than the tokenizer's."""
        from mindspore_impl.model.pangu import check_options

        check_options(self.sized_model(name), f"models.{name}")

    def maker_of(self, set_name: str) -> str | None:
        """The stage that makes the records of a data set; None where they come from a file or a generator."""
        options = self.data.sets.get(set_name)
        return options.stage if isinstance(options, StageSet) else None

    def same_length(self, set_name: str) -> str | None:
        """A data set that is there before any stage has run, of records as long as those of a set; None without one."""
        options = self.data.sets[set_name]
        if not isinstance(options, StageSet):
            return set_name
        source = self.stages[options.stage].hands_on() if options.stage in self.stages else ""
        return self.same_length(source) if source and not (options.keep or options.skip or options.count) else None

    def too_long(self, key: str, length: int, model: str) -> Iterator[str]:
        """The problem of a sequence length at `key` beyond the positions of a model."""
        longest = self.models[model].max_position_embeddings
        if length > longest:
            yield f"{key}: {length} exceeds models.{model}.max_position_embeddings {longest}"


@dataclass
class PlannedStage:
    """One stage of the run, ready to be executed."""

    index: int  # from 1, as in the folder name
    name: str
    stage: Stage
    model: str  # an entry of `models`; "" where none is needed
    inputs: dict[str, str] = field(default_factory=dict)  # role, or "set NAME": stage name or path
    seed: int = 0
    fingerprint: str = ""

    @property
    def kind(self) -> str:
        """The stage's kind."""
        return self.stage.kind

    @property
    def folder_name(self) -> str:
        """Such as 03_sft_fast."""
        return f"{self.index:02d}_{self.name}"


@functools.lru_cache(maxsize=16)
def _pieces_of(path: str, template: str, sha256: str) -> int:
    return Tokenizer.load(path, template).vocab_size


def problem_of(check, *arguments, where: str = "") -> Iterator[str]:
    """The message of the UserError that `check(*arguments)` raises, if it does, with the key `where` at its start.

    Ranges are left out: they are checked for a whole run.
    """
    try:
        check(*arguments)
    except schema.OutOfRangeError:
        return
    except UserError as error:
        yield str(error) if str(error).startswith(where) else f"{where}: {error}"


def prompt_problems(
    prompts: Sequence[list[int]], new_tokens: int, key: str, model: str, context: Context
) -> Iterator[str]:
    """Whether the longest prompt and what is generated after it exceed the positions of a model.

    Args:
        prompts: Ids of each prompt.
        new_tokens: Tokens generated at most.
        key: The key of `new_tokens`, for the message.
        model: Its name in `models`.
        context: The run.
    """
    length, limit = max(map(len, prompts), default=0), context.config.models[model].max_position_embeddings
    if prompts and length + new_tokens > limit:
        where = f"models.{model}.max_position_embeddings"
        yield f"{key}: {new_tokens} after the longest prompt, of {length} tokens, exceed {where} {limit}"
