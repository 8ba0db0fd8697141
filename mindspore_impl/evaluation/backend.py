"""Likelihoods and completions for benchmarks, from a model's parameters or an exported package."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mindspore_impl import runtime
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.loglikelihood import DecoderScorer, Likelihood, Query, Scorer
from mindspore_impl.evaluation.tasks.base import plain
from mindspore_impl.generation.decoder import Drawing, stream
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.text.chat import render_prompt, thinking_ids
from mindspore_impl.text.records import Message


@dataclass(frozen=True)
class Backend:
    """A model with its tokenizer.

    likelihoods(queries, progress) returns a list of Likelihood per query; generate(prompts, sampling, seeds, progress,
    enough) (ids, finished) per prompt. limit: tokens of context and continuation. sha256 identifies the weights.
    """

    tokenizer: object
    likelihoods: Callable[[Sequence[Query], str | None], list[list[Likelihood]]]
    generate: Callable
    limit: int
    sha256: str


@dataclass(frozen=True)
class Text:
    """One completion. ids: with the end-of-turn id when `finished`. text: cut before the first stop string."""

    ids: list[int]
    finished: bool
    text: str


def of_model(model, tokenizer, batch_size: int, sha256: str) -> Backend:
    """Serve by a model's parameters, `batch_size` sequences at a time."""
    from mindspore_impl.generation.engine import Engine  # imports mindspore

    engine = Engine(model, tokenizer)

    def generate(prompts, sampling, seeds, progress, enough):
        sampling = dataclasses.replace(sampling, batch_size=batch_size)
        made = engine.generate(prompts, sampling, seeds, progress, enough)
        return [(generation.ids, generation.finished) for generation in made]

    return Backend(tokenizer, Scorer(model, batch_size), generate, model.options.max_position_embeddings, sha256)


def of_decoder(decoder, tokenizer, sha256: str) -> Backend:
    """Serve by a Decoder of one sequence, such as an exported package."""
    drawing = Drawing(tokenizer, decoder.vocab_size)

    def generate(prompts, sampling, seeds, progress, enough):
        made = []
        with runtime.progress_bar(len(prompts), progress or "", "sequence", shown=progress is not None) as bar:
            for prompt, seed in zip(prompts, seeds, strict=True):
                ids: list[int] = []
                for token in stream(decoder, drawing, prompt, sampling, seed):
                    ids.append(token)
                    if enough is not None and enough(ids):
                        break
                made.append((ids, bool(ids) and ids[-1] == tokenizer.eos_id))
                bar.update()
        return made

    return Backend(tokenizer, DecoderScorer(decoder), generate, decoder.slots, sha256)


def complete(
    backend: Backend,
    prompts: list[list[int]],
    sampling: SamplingOptions,
    seeds: list[int],
    stop: Sequence[str] = (),
    progress: str | None = None,
) -> list[Text]:
    """Complete each of `prompts` up to the end of turn, a stop string, or `sampling.max_new_tokens`.

    Raises UserError when a prompt leaves no room for `sampling.max_new_tokens`.

    Args:
        backend: The model.
        prompts: Token ids.
        sampling: Temperature and limits.
        seeds: One per prompt.
        stop: Strings that end a completion.
        progress: Title of the progress bar; None shows none.
    """
    stop = tuple(text for text in stop if text)
    for number, prompt in enumerate(prompts):
        if len(prompt) + sampling.max_new_tokens > backend.limit:
            fault = f"{len(prompt)} tokens + {sampling.max_new_tokens} new ones exceed the limit of {backend.limit}"
            raise UserError(f"question {number}: {fault}; lower the number of shots or of new tokens")
    decode = backend.tokenizer.decode
    # A token may be a single byte, so a stop string may be this many tokens long.
    window = max((len(text.encode()) for text in stop), default=0) + 8

    def enough(ids: list[int]) -> bool:
        return any(text in decode(ids[-window:]) for text in stop)

    made = backend.generate(prompts, sampling, seeds, progress, enough if stop else None)
    return [Text(list(ids), finished, plain(decode(ids), stop)) for ids, finished in made]


def chat_prompt(tokenizer, text: str, thinking: str, answering: bool = False) -> list[int]:
    """The ids of a user's turn and the assistant's header, with an empty thinking span when `answering`."""
    ids = render_prompt([Message("user", text)], tokenizer, thinking)
    return ids + [token for token in thinking_ids(tokenizer) if token is not None] if answering else ids
