"""Batched text generation over the static key/value cache.

Graphs have static shapes, so prompts are padded (right) to a few lengths, powers of two, and batches are filled up with
dummy rows. A sequence never attends to padding or to another row; the shapes it happens to be decoded with can
change its logits by float32 rounding (about 1e-6 relative), nothing else can.

Legend: B sequences of a batch, L padded prompt length, T cache slots, V vocabulary, S steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindspore_impl import runtime
from mindspore_impl.errors import UserError
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.generation.sampling import check_sampling, choose, uniforms
from mindspore_impl.model.decode import Decode, Prefill
from mindspore_impl.model.pangu import PanguForCausalLM
from mindspore_impl.ops.attention import rows_that_fit

SHORTEST_BUCKET = 32
WORTH_COMPILING = 4  # batches of one length that pay for a shape of their own
WIDEST_STRETCH = 4  # a prompt is never padded to more than this times its own bucket to save a shape
NEVER = -1e30  # the logit of a token that is not to be drawn: finite, and without weight at any temperature
SLOT_MULTIPLE = 32  # cache lengths are rounded up to this, so that close settings share a compiled graph


@dataclass(frozen=True)
class Generation:
    """One completion. `ids` end with the end-of-turn token when `finished`; otherwise the limit cut them."""

    ids: list[int]
    finished: bool


class Engine:
    """Generates with `model`'s current parameters, which it shares: train further and the next call uses the new ones.

    `tokenizer` gives `vocab_size`, `bos_id`, `eos_id` and `pad_id`. Only ids that it has are drawn, however
    far the model's vocabulary is padded, and never BOS, of which a text has one, at its start. Compiled graphs are
    kept, one pair a shape. Raises UserError when BOS or the end of turn is outside the model's vocabulary.
    """

    def __init__(self, model: PanguForCausalLM, tokenizer):
        self.model = model
        self.bos_id, self.eos_id, self.pad_id = tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id
        self.vocab_size = model.options.vocab_size
        self.drawn_from = min(self.vocab_size, tokenizer.vocab_size)  # ids below this
        self.limit = model.options.max_position_embeddings
        self._graphs: dict[int, tuple[Prefill, Decode]] = {}
        for name, token_id in (("beginning-of-text", self.bos_id), ("end-of-turn", self.eos_id)):
            if not 0 <= token_id < self.vocab_size:
                raise UserError(
                    f"the tokenizer's {name} id {token_id} is outside the model's vocabulary of {self.vocab_size}; "
                    f"use the tokenizer that the model was made for"
                )

    def generate(
        self, prompts: list[list[int]], sampling: SamplingOptions, seeds: list[int], progress: str | None = None
    ) -> list[Generation]:
        """One Generation a prompt, in the order of `prompts`; sequence i draws from `seeds[i]` alone.

        `progress` is the text of a progress bar on stderr (None: no bar). Raises UserError for impossible settings, a
        prompt that is empty, holds an id outside the vocabulary or leaves no room, and for NaN logits.
        """
        check_sampling(sampling, "sampling")
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, found {len(seeds)}")
        for index, prompt in enumerate(prompts):
            self._check_prompt(index, prompt, sampling.max_new_tokens)
        results: list[Generation | None] = [None] * len(prompts)
        longest = self.limit - sampling.max_new_tokens
        lengths, heads = [len(prompt) for prompt in prompts], self.model.options.num_heads
        plan = plan_batches(lengths, longest, lambda length: min(sampling.batch_size, rows_that_fit(heads, length)))
        with runtime.progress_bar(len(prompts), progress or "", "sequence", shown=progress is not None) as bar:
            for length, rows, members in plan:
                batch = [prompts[index] for index in members]
                finished = self._run(batch, [seeds[index] for index in members], length, rows, sampling, bar)
                for index, generation in zip(members, finished, strict=True):
                    results[index] = generation
        return results

    def _check_prompt(self, index: int, prompt: list[int], new: int) -> None:
        if not prompt:
            raise UserError(f"prompt {index} is empty; a prompt needs at least one token")
        if min(prompt) < 0 or max(prompt) >= self.vocab_size:
            raise UserError(f"prompt {index} holds an id outside the model's vocabulary of {self.vocab_size}")
        if len(prompt) + new > self.limit:
            raise UserError(
                f"prompt {index}: {len(prompt)} tokens + max_new_tokens {new} exceed the model's "
                f"max_position_embeddings {self.limit}; shorten the prompt or lower sampling.max_new_tokens"
            )

    def _run(self, prompts, seeds, length: int, rows: int, sampling: SamplingOptions, bar) -> list[Generation]:
        """Decode one batch of `rows` rows, of which the first len(prompts) are real."""
        count, steps = len(prompts), sampling.max_new_tokens
        slots = min(-(-(length + steps) // SLOT_MULTIPLE) * SLOT_MULTIPLE, self.limit)
        prefill, decode = self._cells(slots)
        length_B = np.array([len(prompt) for prompt in prompts] + [1] * (rows - count), np.int32)
        input_ids_BL = np.full((rows, length), self.pad_id, np.int32)
        for row, prompt in enumerate(prompts):
            input_ids_BL[row, : len(prompt)] = prompt
        position_BL = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
        inside_BL = position_BL < length_B[:, None]
        inputs = (input_ids_BL, position_BL * inside_BL, inside_BL.astype(np.int32), length_B - 1)
        logits, caches = prefill(*[Tensor(array) for array in inputs])

        uniform_BS = uniforms(seeds, steps)
        token_BS = np.zeros((count, steps), np.int32)
        stop_B = np.full(count, steps, np.int32)  # how many tokens each sequence has, once it has ended
        ended_B = np.zeros(count, bool)
        next_B = np.full(rows, self.pad_id, np.int32)
        start = Tensor(np.zeros(rows, np.int32))
        for step in range(steps):
            token_BS[:, step] = choose(self._drawable(logits.asnumpy()[:count]), sampling, uniform_BS[:, step])
            ends_B = ~ended_B & (token_BS[:, step] == self.eos_id)
            stop_B[ends_B], ended_B = step + 1, ended_B | ends_B
            bar.update(int(ends_B.sum()))
            if step + 1 == steps or ended_B.all():
                break
            next_B[:count] = token_BS[:, step]
            logits, caches = decode(Tensor(next_B), Tensor(length_B + np.int32(step)), start, *caches)
        bar.update(int((~ended_B).sum()))
        return [Generation(token_BS[row, : stop_B[row]].tolist(), bool(ended_B[row])) for row in range(count)]

    def _drawable(self, logits_BV: np.ndarray) -> np.ndarray:
        """A copy of the columns that may be drawn, BOS without a chance."""
        drawable_BV = logits_BV[:, : self.drawn_from].copy()
        drawable_BV[:, self.bos_id] = NEVER
        return drawable_BV

    def _cells(self, slots: int) -> tuple[Prefill, Decode]:
        if slots not in self._graphs:
            self._graphs[slots] = (Prefill(self.model, slots), Decode(self.model, slots))
        return self._graphs[slots]


def plan_batches(lengths: list[int], longest: int, row_limit: Callable[[int], int]) -> list[tuple[int, int, list[int]]]:
    """(padded length, rows, prompt indices) of each batch, for prompts of these lengths, none above `longest`.

    Prompts go to the next power of two (at least 32, at most `longest`), at most `row_limit(length)` in a batch.
    Every shape costs a compilation, so a bucket of few batches, and the rest of a larger one, move on to the next
    longer bucket, within WIDEST_STRETCH.
    """
    buckets: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        buckets.setdefault(_bucket(lengths[index], longest), []).append(index)
    plan, waiting, sizes = [], [], sorted(buckets)
    for size, following in zip(sizes, [*sizes[1:], None], strict=False):
        waiting += buckets[size]
        rows = min(row_limit(size), _power_of_two(len(lengths)))
        if following is None or following > WIDEST_STRETCH * _bucket(lengths[waiting[0]], longest):
            taken = len(waiting)
        else:
            taken = len(waiting) // rows * rows if len(waiting) >= WORTH_COMPILING * rows else 0
        plan += [(size, rows, waiting[first : min(first + rows, taken)]) for first in range(0, taken, rows)]
        waiting = waiting[taken:]
    return plan


def _bucket(length: int, longest: int) -> int:
    return min(max(SHORTEST_BUCKET, _power_of_two(length)), longest)


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below `number`."""
    return 1 << max(number - 1, 0).bit_length()
