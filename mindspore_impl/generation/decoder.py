"""The Decoder protocol, implemented by models and exported packages, and the selection of tokens.

Legend: B sequences, L padded prompt length, T cache slots, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from mindspore_impl.errors import UserError
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.generation.sampling import choose, penalise, uniforms
from mindspore_impl.schema import check_ranges

NEVER = -1e30  # the logit of a token that is not to be drawn: finite, and without weight at any temperature


def power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()


def right_padded(texts: Sequence[Sequence[int]], length: int, rows: int, pad_id: int) -> np.ndarray:
    """ids_BL int32 of `rows` x `length`: the texts, with `pad_id` after and below them."""
    ids_BL = np.full((rows, length), pad_id, np.int32)
    for row, text in enumerate(texts):
        ids_BL[row, : len(text)] = text
    return ids_BL


class Decoder(Protocol):
    """Sequences over a static key/value cache of `slots` (T, prompt and answer), kept between calls; logits [B, V]."""

    slots: int
    vocab_size: int

    def padded(self, length: int) -> int:
        """What a prompt of this length is padded to. Raises UserError when it is too long for every graph."""

    def prefill(self, ids_BL: np.ndarray, length_B: np.ndarray) -> np.ndarray:
        """Read right-padded prompts (int32), forget earlier ones; return the logits_BV (float32) after each prompt."""

    def decode(self, token_B: np.ndarray, position_B: np.ndarray) -> np.ndarray:
        """Take one more token (int32) of each sequence, at these positions; return the logits_BV after it."""


class Drawing:
    """Token selection for one model and one tokenizer (its `vocab_size`, `bos_id` or None, `eos_id` and `pad_id`).

    Only ids that the tokenizer has are drawn, and never BOS. Raises UserError when BOS or the end of turn is outside
    the model's vocabulary.
    """

    def __init__(self, tokenizer, vocab_size: int):
        self.bos_id, self.eos_id, self.pad_id = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
        self.vocab_size = vocab_size
        self.drawn_from = min(vocab_size, tokenizer.vocab_size)  # ids below this
        for name, token_id in (("beginning-of-text", self.bos_id), ("end-of-turn", self.eos_id)):
            if token_id is not None and not 0 <= token_id < vocab_size:
                raise UserError(f"the tokenizer's {name} id {token_id} is outside the vocabulary of {vocab_size}")

    def check_prompt(self, name: str, prompt: list[int], new: int, limit: tuple[int, str]) -> None:
        """Refuse a prompt that is empty, holds a foreign id, or is too long with `new` tokens after it (UserError).

        name: what messages call it; limit: of both together, and what messages call that.
        """
        if not prompt:
            raise UserError(f"{name} is empty; a prompt needs at least one token")
        if min(prompt) < 0 or max(prompt) >= self.vocab_size:
            raise UserError(f"{name} holds an id outside the model's vocabulary of {self.vocab_size}")
        if len(prompt) + new > limit[0]:
            raise UserError(f"{name}: {len(prompt)} tokens + max_new_tokens {new} exceed {limit[1]} {limit[0]}")


class Draws:
    """Selects the next token of some sequences, step by step, and notes when each sequence ends.

    NaN or infinite logits end their sequence (`nan_B`) with `skip_nan`; else they raise UserError.
    """

    def __init__(
        self, drawing: Drawing, prompts: list[list[int]], seeds: list[int], sampling: SamplingOptions, skip_nan=False
    ):
        count = len(prompts)
        self.drawing, self.sampling, self.skip_nan = drawing, sampling, skip_nan
        self.uniform_BS = uniforms(seeds, sampling.max_new_tokens)
        self.stops = np.array([drawing.eos_id, *sampling.stop_ids])
        self.step = 0
        self.ended_B, self.finished_B, self.nan_B = (np.zeros(count, bool) for _ in range(3))
        self.seen_BV = None
        if sampling.repetition_penalty != 1:
            self.seen_BV = np.zeros((count, drawing.drawn_from), bool)
            for row, prompt in enumerate(prompts):
                self.seen_BV[row, [token_id for token_id in prompt if token_id < drawing.drawn_from]] = True

    @property
    def over(self) -> bool:
        """Whether every sequence has ended, or the limit of new tokens is reached."""
        return self.step == self.sampling.max_new_tokens or bool(self.ended_B.all())

    def draw(self, logits_BV: np.ndarray) -> np.ndarray:
        """token_B of the next step. A sequence that has ended goes on, and nothing reads it."""
        drawable_BV = logits_BV[:, : self.drawing.drawn_from]
        if self.seen_BV is not None:
            drawable_BV = penalise(drawable_BV, self.seen_BV, self.sampling.repetition_penalty)
        if self.drawing.bos_id is not None:
            drawable_BV = drawable_BV.copy()
            drawable_BV[:, self.drawing.bos_id] = NEVER
        if self.skip_nan and (nan_B := ~np.isfinite(drawable_BV.max(axis=1))).any():
            drawable_BV = np.where(nan_B[:, None], 0, drawable_BV)  # what is drawn there, nothing reads
            self.nan_B |= nan_B & ~self.ended_B
            self.ended_B |= nan_B
        token_B = choose(drawable_BV, self.sampling, self.uniform_BS[:, self.step])
        self.step += 1
        self.finished_B |= ~self.ended_B & (token_B == self.drawing.eos_id)
        self.ended_B |= np.isin(token_B, self.stops)
        if self.seen_BV is not None:
            self.seen_BV[np.arange(len(token_B)), token_B] = True
        return token_B


def stream(
    decoder: Decoder, drawing: Drawing, prompt: list[int], sampling: SamplingOptions, seed: int
) -> Iterator[int]:
    """Yield the ids of one answer as they are drawn, the closing one included; the same ids as in any batch.

    Args:
        decoder: of one sequence.
        drawing: selects its tokens.
        prompt: token ids.
        sampling: decoding settings.
        seed: of the draws.

    Raises UserError for settings out of range, a prompt that is empty, foreign or too long, and for NaN logits.
    """
    check_ranges(sampling, "sampling")
    drawing.check_prompt("the prompt", prompt, sampling.max_new_tokens, (decoder.slots, "the cache length"))
    ids_BL = right_padded([prompt], decoder.padded(len(prompt)), 1, drawing.pad_id)
    draws = Draws(drawing, [prompt], [seed], sampling)
    logits_BV = decoder.prefill(ids_BL, np.array([len(prompt)], np.int32))
    while True:
        token_B = draws.draw(logits_BV)
        yield int(token_B[0])
        if draws.over:
            return
        logits_BV = decoder.decode(token_B, np.array([len(prompt) + draws.step - 1], np.int32))
