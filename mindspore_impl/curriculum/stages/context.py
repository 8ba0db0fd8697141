"""What the stages of one run share while they run: tokenizer, records, samples, models, and each other's results."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mindspore_impl import files, runtime
from mindspore_impl.curriculum.stages.base import PlannedStage, Shared
from mindspore_impl.curriculum.stages.inputs import check_weights_tokenizer, file_hash, is_path
from mindspore_impl.data.options import DatasetOptions, StageSet
from mindspore_impl.errors import UserError
from mindspore_impl.model.options import LoraOptions, ModelOptions
from mindspore_impl.text.template import find_template
from mindspore_impl.text.tokenizer import NOTE, TRAINED, Tokenizer, check_tokenizer, train_tokenizer

CODE_FORMAT = 2  # raise it when a change of code changes the results of equal options


@dataclass
class RunContext:
    """The run that stages are part of, as `base.Context` describes it. Records and samples are loaded once."""

    config: Shared
    run_dir: Path
    plan: dict[str, PlannedStage]
    tokenizer: Tokenizer | None = None
    _loaded: dict = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        return self.run_dir / "stages" / self.plan[name].folder_name

    def load(self, reference: str, artifact: str) -> Any:
        if not is_path(reference):
            return self._load_made(reference, artifact)
        if artifact == "weights":
            from mindspore_impl.curriculum.resolve import open_weights

            source = open_weights(Path(reference))
            check_weights_tokenizer(source, Path(reference), self.tokenizer)
            return source
        if artifact == "rollouts":
            from mindspore_impl.data.rollouts import read_rollouts

            return self._once((artifact, reference), lambda: read_rollouts(Path(reference), self.tokenizer, True))
        return Path(reference)

    def _load_made(self, name: str, artifact: str) -> Any:
        """`load` of a stage's result, compared with the hash that was noted when the stage was finished."""
        from mindspore_impl.curriculum.resolve import artifact_hash

        stage, folder = self.plan[name].stage, self.folder(name)
        note = folder / "stage.json"
        made = files.read_json(note).get("artifacts", {}).get(artifact) if note.is_file() else None
        found, path = stage.load(artifact, folder, self), folder / stage.provides[artifact]
        if artifact == "weights":
            check_tokenizer(
                found.tokenizer_sha256, self.tokenizer.sha256, found.path, f"remove {path} to train it anew"
            )
        if made is not None and (now := artifact_hash(path, found if artifact == "weights" else None)) != made:
            raise UserError(
                f"{path}: changed since stage {name!r} made it (sha256 {made}, now {now}); restore it, or "
                "remove it to run the stage again"
            )
        return found

    def set_options(self, name: str) -> DatasetOptions:
        options = self.config.data.sets[name]
        return options.in_file(str(self.load(options.stage, "records"))) if isinstance(options, StageSet) else options

    def records(self, name: str) -> list:
        from mindspore_impl.data.difficulty import kept
        from mindspore_impl.text.chat import segments
        from mindspore_impl.text.tokenizer import warn_of_lost

        def choose() -> list:
            records, keep = self.whole(name), self.config.data.sets[name].keep
            if keep is not None:
                records = kept(records, keep, f"data.sets.{name}.keep")
            if self.tokenizer is not None:  # it may be trained on these
                texts = (text for record in records for text in segments(record, self.tokenizer.template))
                warn_of_lost(self.tokenizer, texts, f"data.sets.{name}")
            return records

        return self._once(("records", name), choose)

    def whole(self, name: str) -> list:
        from mindspore_impl.data.sources import load_whole

        return self._once(("whole", name), lambda: load_whole(name, self.set_options(name), self.config.seed))

    def samples(self, name: str) -> list:
        from mindspore_impl.text.chat import samples_of

        def render() -> list:
            records, samples = self.records(name), samples_of(self.records(name), self.tokenizer)
            if len(samples) > len(records) and runtime.rank() == 0:
                made = f"{len(records)} records are {len(samples)} samples, one of each turn of the assistant"
                print(f"data.sets.{name}: {made}, as its template forgets earlier reasoning")
            return samples

        return self._once(("samples", name), render)

    def rollout_samples(self, reference: str) -> list:
        from mindspore_impl.data.rollouts import to_sample

        def render() -> list:
            return [to_sample(rollout, self.tokenizer) for rollout in self.load(reference, "rollouts")]

        return self._once(("rollout samples", reference), render)

    def _once(self, key: tuple[str, str], make: Callable[[], list]) -> list:
        if key not in self._loaded:
            self._loaded[key] = make()
        return self._loaded[key]

    def model_options(self, name: str) -> ModelOptions:
        return self.config.sized_model(name, self.tokenizer.vocab_size)

    def build_model(self, name: str, reference: str | None, lora: LoraOptions | None = None, seed: int = 0):
        from mindspore_impl.model.hf_config import check_same
        from mindspore_impl.model.lora import with_adapters
        from mindspore_impl.model.pangu import PanguForCausalLM
        from mindspore_impl.model.weights import identity, load_into

        options = self.model_options(name)
        source = None if reference is None else self.load(reference, "weights")
        if source is not None and is_path(reference) and source.options is not None:
            check_same(source.options, options, str(source.path), f"models.{name}")
        if lora is not None:
            model = with_adapters(options, lora, seed)
        else:
            model = PanguForCausalLM(options, initialise=source is None)
        if source is None:
            return model, None
        load_into(model, source, "load" if is_path(reference) else None)
        return model, identity(source, file_hash)


def prepare_tokenizer(context: RunContext) -> Tokenizer:
    """Load the configured tokenizer, or train the run's own once and keep it in <run>/tokenizer/."""
    from mindspore_impl.text.chat import segments

    options, folder = context.config.tokenizer, context.run_dir / "tokenizer"
    if options.path is not None:
        return Tokenizer.load(options.path, options.template)
    if known_tokenizer(context.config, context.run_dir):
        return Tokenizer.load(folder / TRAINED)
    (folder / NOTE).unlink(missing_ok=True)  # first: it says nothing of the new file
    texts = (text for name in options.train_on for record in context.records(name) for text in segments(record))
    tokenizer = train_tokenizer(texts, folder / TRAINED, options.vocab_size, options.character_coverage)
    made_of = tokenizer_fingerprint(context.config)
    files.write_json(folder / NOTE, {"fingerprint": made_of, "sha256": tokenizer.sha256})
    print(f"tokenizer: {tokenizer.vocab_size} pieces trained on {', '.join(options.train_on)}")
    return tokenizer


def known_tokenizer(shared: Shared, run_dir: Path) -> str | None:
    """The SHA-256 of the run's tokenizer; None where the run has yet to train it, from its data as they are now."""
    if shared.tokenizer.path is not None:
        return file_hash(Path(shared.tokenizer.path))
    path = run_dir / "tokenizer" / NOTE
    note = files.read_json(path) if path.is_file() else {}
    return note.get("sha256") if note.get("fingerprint") == tokenizer_fingerprint(shared) else None


def load_tokenizer(shared: Shared, run_dir: Path) -> Tokenizer:
    """The tokenizer of a run that has begun. Raises UserError when its file is missing or another one."""
    trained = run_dir / "tokenizer" / TRAINED
    if shared.tokenizer.path is None and not trained.is_file():
        raise UserError(f"{trained}: the run's tokenizer is missing; run the curriculum in {run_dir} first")
    return Tokenizer.load(shared.tokenizer.path or trained, shared.tokenizer.template)


def set_content(shared: Shared, name: str) -> dict:
    """What decides the records of the data set `name`: its options, with the hash of its file in place of the path."""
    content = dataclasses.asdict(shared.data.sets[name])
    if "seed" in content and content["seed"] is None:
        content["seed"] = shared.seed
    content.pop("stage", None)  # an input of the stage that reads the set, which counts by its fingerprint
    if content.get("path"):
        # A plugin's source may make ids of the file's name.
        path = Path(content["path"])
        content["path"] = (path.name, file_hash(path))
    return content


def tokenizer_fingerprint(shared: Shared) -> str:
    """Hash of the tokenizer file and its template; of the options and texts where the run trains its own.

    What is trained can differ all the same: `runner` adds the hash of the file.
    """
    options = shared.tokenizer
    if options.path is not None:
        template = dataclasses.asdict(find_template(options.template))
        return files.sha256_json([file_hash(Path(options.path)), template])
    sets = {name: set_content(shared, name) for name in options.train_on}
    return files.sha256_json({"format": CODE_FORMAT, "options": dataclasses.asdict(options), "sets": sets})
