"""The teacher's K most probable ids, from the store, at each token of the rollouts or data sets of a stage."""

import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from markupsafe import Markup

from mindspore_impl import files
from mindspore_impl.data import rollouts
from mindspore_impl.data.options import DatasetOptions, StageSet
from mindspore_impl.data.sources import load_set, set_kinds
from mindspore_impl.data.teacher_store import StoreReader, check_rows
from mindspore_impl.errors import UserError
from mindspore_impl.report.render import render
from mindspore_impl.report.run_files import RunView, StageView
from mindspore_impl.schema import build
from mindspore_impl.text import chat
from mindspore_impl.text.chat import Sample
from mindspore_impl.text.records import THINKING
from mindspore_impl.text.tokenizer import Tokenizer

SEQUENCES = 12  # of all stages together
MOST_TOKENS = 200  # of a sequence
MOST_IDS = 10  # listed a token; the mass of the others joins the rest
_TITLED = 4  # ids in the title of a token
_LOOKED_AT = 20_000  # sequences of a file that are searched
_GRADES = ((0.5, "sure"), (0.1, "doubtful"), (0.01, "unlikely"), (0.0, "strange"))


def section(run: RunView) -> Markup:
    """Sequences of each finished stage that reads a store, or why there are none; empty without such a stage."""
    stages = [stage for stage in run.stages if "store" in stage.inputs and stage.status == "finished"]
    views, data = [], []
    for stage in stages:
        view = {"name": stage.name, "problem": "", "sequences": []}
        try:
            found = list(itertools.islice(_sequences(run, stage), max(2, SEQUENCES // len(stages))))
        except (UserError, OSError) as error:
            view["problem"], found = str(error), []
        for sequence in found:
            spans = [_span(token) for token in sequence["tokens"]]
            view["sequences"].append(sequence | {"number": len(data), "spans": spans})
            data.append(sequence["tokens"])
        views.append(view)
    return render("teacher.html", stages=views, sequences=data, grades=[name for _, name in _GRADES])


def store_of(run: RunView, stage: StageView) -> Path:
    """The folder of the teacher store that `stage` reads."""
    path = run.input_path(stage, "store")
    return path / "store" if (path / "store").is_dir() else path


def _sequences(run: RunView, stage: StageView) -> Iterator[dict]:
    """Yield what the store holds for each answer: {"id", "thinking", "prompt", "left_out", "tokens"}.

    A token is [text, its probability or None, listed, rest], listed the top ids as [text, probability, 1 if there].
    """
    tokenizer = _tokenizer(run)
    store = store_of(run, stage)
    reader = StoreReader(store, hashed=False)
    text_of = _Texts(tokenizer)
    for sample in _alternating(_samples(run, stage, tokenizer), reader):
        ids_SK, logp_SK, tail_logp_S = reader.lookup(sample.ids, sample.supervised)
        check_rows(reader.header, ids_SK, logp_SK, tail_logp_S, str(store))
        targets = [int(place) for place in sample.supervised.nonzero()[0] if place]
        rows = list(zip(targets, ids_SK, logp_SK, tail_logp_S, strict=True))
        prompt = [int(token) for token in sample.ids[: targets[0]]]
        yield {
            "id": sample.record_id,
            "thinking": sample.thinking,
            "prompt": tokenizer.decode(prompt, skip_special=False),
            "left_out": max(0, len(rows) - MOST_TOKENS),
            "tokens": [_token(int(sample.ids[place]), text_of, *row) for place, *row in rows[:MOST_TOKENS]],
        }


def _token(token: int, text_of: "_Texts", ids_K, logp_K, tail_logp) -> list:
    pairs = [(int(i), math.exp(float(logp))) for i, logp in zip(ids_K, logp_K, strict=True) if i >= 0]
    given = next((p for i, p in pairs if i == token), None)
    kept = pairs[:MOST_IDS]
    rest = math.exp(float(tail_logp)) + sum(p for _, p in pairs[MOST_IDS:])
    listed = [[text_of(i), float(f"{p:.3g}"), int(i == token)] for i, p in kept]
    return [text_of(token), None if given is None else float(f"{given:.3g}"), listed, float(f"{rest:.3g}")]


Found = tuple[str, Callable[[], Sample]]  # a thinking mode, and a function that makes the sample


def _alternating(samples: Iterator[Found], reader: StoreReader) -> Iterator[Sample]:
    """The first samples of each thinking mode that the store holds, in turn, SEQUENCES at most."""
    modes: dict[str, list[Sample]] = {}
    for thinking, make in samples:
        if len(group := modes.setdefault(thinking, [])) < SEQUENCES:
            sample = make()
            with contextlib.suppress(UserError):  # left out by `overlong`, or from a set that the store does not cover
                reader.check(sample.ids, sample.supervised)
                group.append(sample)
        if all(len(modes.get(mode, ())) == SEQUENCES for mode in THINKING):
            break
    turns = itertools.chain.from_iterable(itertools.zip_longest(*(modes[mode] for mode in sorted(modes))))
    yield from itertools.islice((sample for sample in turns if sample is not None), SEQUENCES)


def _samples(run: RunView, stage: StageView, tokenizer: Tokenizer) -> Iterator[Found]:
    """The sequences that the stage may have drawn, in the order of their file."""
    if "rollouts" in stage.inputs:
        path = run.input_path(stage, "rollouts")
        path = path / "rollouts.jsonl" if path.is_dir() else path
        for number, value in itertools.islice(files.read_jsonl(path), _LOOKED_AT):
            parse = functools.partial(rollouts.parse_rollout, value, f"{path}:{number}", tokenizer)
            yield str(value.get("thinking")), lambda parse=parse: rollouts.to_sample(parse(), tokenizer)
        return
    mixture = _mapping(_mapping(stage.settings, "data"), "mixture")
    sets = _mapping(_mapping(run.config, "data"), "sets")
    for name in (name for name, weight in mixture.items() if weight and name in sets):
        options = build(DatasetOptions, sets[name], f"data.sets.{name}", set_kinds())
        if isinstance(options, StageSet):
            maker = next((one for one in run.stages if one.name == options.stage and one.folder), None)
            if maker is None:
                continue
            options = options.in_file(str(maker.folder / "records.jsonl"))
        if options.keep is None and options.count is not None:
            options = dataclasses.replace(options, count=min(options.count, _LOOKED_AT))
        for record in itertools.islice(load_set(name, options, int(run.config.get("seed") or 0)), _LOOKED_AT):
            yield record.thinking, functools.partial(chat.render, record, tokenizer)


def _tokenizer(run: RunView) -> Tokenizer:
    settings = _mapping(run.config, "tokenizer")
    own = run.folder / "tokenizer" / "tokenizer.model"
    return Tokenizer.load(settings.get("path") or own, settings.get("template") if settings.get("path") else None)


def _mapping(settings: dict, key: str) -> dict:
    """A part of config.yaml, {} where it is missing. Raises UserError when it is no mapping."""
    found = settings.get(key) or {}
    if not isinstance(found, dict):
        raise UserError(f"config.yaml: {key}: expected keys and values, found {found!r}")
    return found


class _Texts:
    """id -> its text as it stands inside a line; special pieces by name."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.known = tokenizer, {}
        self.before = tokenizer.encode("a")[-1:]  # a word's own space is lost at the beginning of a text
        self.skip = len(tokenizer.decode(self.before))

    def __call__(self, token: int) -> str:
        if token not in self.known:
            self.known[token] = self.tokenizer.decode([*self.before, token], skip_special=False)[self.skip :]
        return self.known[token]


def _span(token: list) -> dict:
    """A token as the template shows it; the title serves pages whose script does not run."""
    text, given, listed, rest = token
    likely = [f"{visible(name)} {100 * p:.3g} %{' (here)' if here else ''}" for name, p, here in listed[:_TITLED]]
    others = rest + sum(p for _, p, _ in listed[_TITLED:])
    return {
        "text": visible(text),
        "grade": next(name for least, name in _GRADES if (given or 0.0) >= least),
        "title": f"teacher: {', '.join(likely)}; all others {100 * others:.2g} %",
    }


def visible(text: str) -> str:
    """A token's text with visible spaces and line ends; a dotted circle for an empty text."""
    return text.replace(" ", "␣").replace("\n", "⏎") or "◌"
