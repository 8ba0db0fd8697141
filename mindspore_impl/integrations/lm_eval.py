"""Run the tasks of lm-evaluation-harness with our engine, on checkpoints, Hugging Face folders and packages.

`Requests` answers the three kinds of request of an `lm_eval` model; `harness_model` makes it an instance of the
harness's `LM`. A request's answer is appended to a file as soon as its chunk is done, so an interrupted run continues
there (the harness's own cache is a pickle and is not used).
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.backend import Backend, complete
from mindspore_impl.evaluation.benchmark import BenchmarkSettings
from mindspore_impl.evaluation.loglikelihood import Query, encode_pair
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import render_prompt, thinking_ids
from mindspore_impl.text.records import Message

CHAT = "\x02chat "  # begins a context that is a JSON list of messages: special pieces cannot be spelled in text
CHUNK = 256  # requests between two writes
DEFAULT_NEW_TOKENS = 256  # as in the harness
IGNORED = {"do_sample", "temperature", "top_p", "top_k", "until", "max_gen_toks", "max_length", "num_beams"}


class Requests:
    """The requests of the harness (objects with `args`), answered by a Backend; `path` keeps the answers."""

    def __init__(self, backend: Backend, settings: BenchmarkSettings, path: Path | None = None):
        super().__init__()
        self.backend, self.settings, self.path, self.known = backend, settings, path, {}
        if path is not None and path.is_file():
            for _, _, line in files.scan_jsonl(path):  # an incomplete last line is dropped
                if isinstance(line, dict) and {"request", "answer"} <= set(line):
                    self.known[line["request"]] = line["answer"]
            files.write_jsonl(path, ({"request": key, "answer": answer} for key, answer in self.known.items()))

    def _answers(self, kind: str, requests: Sequence[tuple], answer: Callable[[list[tuple]], Iterable]) -> list:
        """The answer to each request; `answer(requests)` computes the missing ones, a chunk at a time."""
        keys = [files.sha256_json([kind, *request]) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.known}
        # Chunks of requests with one beginning: contexts that share shots are read together.
        order = sorted(missing, key=lambda key: json.dumps(missing[key], ensure_ascii=False))
        for first in range(0, len(order), CHUNK):
            chunk = order[first : first + CHUNK]
            made = dict(zip(chunk, answer([missing[key] for key in chunk]), strict=True))
            self.known.update(made)
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with open(self.path, "a", encoding="utf-8") as file:
                    file.writelines(json.dumps({"request": k, "answer": a}) + "\n" for k, a in made.items())
        return [self.known[key] for key in keys]

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability, whether greedy) of each (context, continuation)."""
        title = None if disable_tqdm else "log-likelihoods"

        def answer(chunk: list[tuple]) -> list:
            return self._likelihoods([self._pair(*args) for args in chunk], title)

        return [tuple(pair) for pair in self._answers("loglikelihood", [request.args for request in requests], answer)]

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text, in non-overlapping windows of the model's length.

        Each token is conditioned on as many tokens before it as fit into its window.
        """
        title = None if disable_tqdm else "texts"

        def answer(chunk: list[tuple]) -> list:
            windows = [self._windows(text) for (text,) in chunk]
            found = iter(self._likelihoods([pair for some in windows for pair in some], title))
            return [sum(next(found)[0] for _ in some) for some in windows]

        return self._answers("rolling", [request.args for request in requests], answer)

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """The completion of each (context, settings): until a stop string, which is left out."""
        title = None if disable_tqdm else "completions"
        found: list = [None] * len(requests)
        by_settings: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_settings.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        for text, indices in by_settings.items():
            sampling, stop = sampling_of(json.loads(text), self.settings.batch_size)
            named = [(requests[index].args[0], text, self.settings.seed) for index in indices]
            made = self._answers("until", named, lambda chunk, s=sampling, e=stop: self._complete(chunk, s, e, title))
            for index, completion in zip(indices, made, strict=True):
                found[index] = completion
        return found

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        """A context that stands for these messages; our template's special pieces cannot be written as text."""
        return CHAT + json.dumps(chat_history, ensure_ascii=False)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's name, for the harness's records."""
        return self.backend.tokenizer.template.name

    @property
    def tokenizer_name(self) -> str:
        """What the harness keys its cache of prompts by."""
        return f"{self.backend.tokenizer.template.name}_{self.backend.tokenizer.sha256[:16]}"

    def _ids(self, context: str) -> list[int]:
        tokenizer = self.backend.tokenizer
        if not context.startswith(CHAT):
            start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
            return [*start, *tokenizer.encode(context)] or [tokenizer.eos_id]
        messages = [Message(turn["role"], turn["content"]) for turn in json.loads(context.removeprefix(CHAT))]
        return render_prompt(messages, tokenizer, self.settings.thinking)

    def _pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if not context.startswith(CHAT):
            return encode_pair(self.backend.tokenizer, context, continuation)
        span = [token for token in thinking_ids(self.backend.tokenizer) if token is not None]
        return (*self._ids(context), *span), tuple(self.backend.tokenizer.encode(continuation.strip()))

    def _likelihoods(self, pairs: list[tuple], title: str | None) -> list[tuple[float, bool]]:
        """Pairs of one context are one query; contexts that are too long lose their beginning, as in the harness."""
        queries: dict[tuple, list[tuple]] = {}
        cut = []
        for context, continuation in pairs:
            continuation = continuation[-self.backend.limit :]
            context = context[-(self.backend.limit + 1 - len(continuation)) :]
            cut.append((context, continuation))
            queries.setdefault(context, []).append(continuation)
        asked = [Query(context, tuple(dict.fromkeys(texts))) for context, texts in queries.items()]
        found = {}
        for query, likelihoods in zip(asked, self.backend.likelihoods(asked, title), strict=True):
            found.update({(query.context, t): x for t, x in zip(query.continuations, likelihoods, strict=True)})
        return [(found[pair].logp, found[pair].greedy) for pair in cut]

    def _windows(self, text: str) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        tokenizer, size = self.backend.tokenizer, self.backend.limit
        ids = tokenizer.encode(text)
        start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
        windows = []
        for first in range(0, len(ids), size):
            last = min(first + size, len(ids))
            context = ids[last - size - 1 : first] if first else [start]
            windows.append((tuple(context), tuple(ids[first:last])))
        return windows

    def _complete(self, chunk: list[tuple], sampling: SamplingOptions, stop: list[str], title: str | None) -> list[str]:
        room = self.backend.limit - sampling.max_new_tokens
        if room < 1:
            raise UserError(f"max_gen_toks {sampling.max_new_tokens} leaves no room within {self.backend.limit} tokens")
        prompts = [self._ids(context)[-room:] for context, _, _ in chunk]
        seeds = [self.settings.seed] * len(chunk)
        return [made.text for made in complete(self.backend, prompts, sampling, seeds, stop, title)]


def sampling_of(settings: dict[str, Any], batch_size: int) -> tuple[SamplingOptions, list[str]]:
    """Our settings for the harness's `generation_kwargs`, and the stop strings. Raises UserError for unknown ones."""
    if unknown := set(settings) - IGNORED:
        raise UserError(f"generation_kwargs: {sorted(unknown)[0]!r} is not known here")
    until = settings.get("until") or []
    sampled = settings.get("do_sample", settings.get("temperature", 0) != 0)
    sampling = SamplingOptions(
        temperature=float(settings.get("temperature", 1.0)) if sampled else 0.0,
        top_p=float(settings.get("top_p", 1.0)) if sampled else 1.0,
        top_k=int(settings.get("top_k", 0)) if sampled else 0,
        max_new_tokens=int(settings.get("max_gen_toks", DEFAULT_NEW_TOKENS)),
        batch_size=batch_size,
    )
    return sampling, [until] if isinstance(until, str) else list(until)


def harness_model(backend: Backend, settings: BenchmarkSettings, path: Path | None = None):
    """An `lm_eval` model; `path` keeps its answers. Raises UserError where lm_eval is not installed."""
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        remedy = "pip install 'openpangu-posttrain[eval]'"
        raise UserError(f"--harness needs lm-evaluation-harness ({error}); {remedy}") from error
    return type("PanguLM", (Requests, LM), {})(backend, settings, path)


def run_harness(backend: Backend, tasks: list[str], settings: BenchmarkSettings, folder: Path) -> dict:
    """Run tasks of the harness; write `folder`/samples.jsonl, return its results: {task: {metric: number}}.

    Raises UserError for unknown tasks and settings.
    """
    key = files.sha256_json([backend.sha256, backend.tokenizer.sha256, settings.thinking])[:16]
    model = harness_model(backend, settings, folder / f"requests_{key}.jsonl")
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if unknown := [name for name in tasks if isinstance(name, str) and not manager.match_tasks([name])]:
        raise UserError(f"--harness: lm_eval has no task {unknown[0]!r}; `lm-eval ls tasks` lists them")
    found = lm_eval.simple_evaluate(
        model,
        tasks=tasks,
        task_manager=manager,
        num_fewshot=settings.shots,
        limit=settings.limit,
        apply_chat_template=settings.form == "chat",
        gen_kwargs=None if settings.max_new_tokens is None else {"max_gen_toks": settings.max_new_tokens},
        bootstrap_iters=1000,
    )
    lines = ({"task": name, **_plain(sample)} for name, samples in found["samples"].items() for sample in samples)
    files.write_jsonl(folder / "samples.jsonl", lines)
    results = {name: _plain(row) for name, row in found["results"].items()}
    for name, row in results.items():
        print(f"{name}: " + ", ".join(f"{k} {v:.4f}" for k, v in row.items() if isinstance(v, float)))
    return results


def _plain(value: Any) -> Any:
    """A JSON value; what JSON lacks (functions, dates) as text."""
    return json.loads(json.dumps(files.jsonable(value), default=str))
