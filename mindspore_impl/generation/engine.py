"""Batched text generation over the static key/value cache.

Prompts are padded (right) to powers of two and batches filled up with dummy rows, as graphs have static shapes. The
shapes change the logits of a sequence by float32 rounding (about 1e-6 relative), nothing else does.

Legend: B sequences of a batch, L padded prompt length, T cache slots, V vocabulary, S steps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from mindspore_impl import runtime
from mindspore_impl.distributed import ranks
from mindspore_impl.generation.decoder import Drawing, Draws, power_of_two, right_padded
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.model.decode import Decode, Prefill
from mindspore_impl.model.pangu import PanguForCausalLM
from mindspore_impl.ops.attention import rows_that_fit
from mindspore_impl.schema import check_ranges

LIMIT_NAME = "the model's max_position_embeddings"
SHORTEST_BUCKET = 32
WORTH_COMPILING = 4  # batches of one length that justify compiling a shape for them
WIDEST_STRETCH = 4  # a prompt is padded to at most this times its own bucket to save a shape
SLOT_MULTIPLE = 32  # cache lengths are rounded up to this, so that close settings share a compiled graph


@dataclass(frozen=True)
class Generation:
    """One completion. `ids` end with the end-of-turn token when `finished`; else the limit or a stop id cut them."""

    ids: list[int]
    finished: bool
    nan: bool = False  # the logits became NaN or infinite, and the ids mean nothing


class ModelDecoder:
    """A Decoder (see `decoder.py`) on a model's current parameters, with a cache of `slots`; one graph a shape."""

    def __init__(self, model: PanguForCausalLM, slots: int):
        self.slots, self.vocab_size = slots, model.options.vocab_size
        self._prefill, self._decode = Prefill(model, slots), Decode(model, slots)
        self._caches: tuple = ()
        self._start = None

    def padded(self, length: int) -> int:
        """The next length of 32, 128, 512, ...: chats grow, and a shape costs a compilation."""
        size = SHORTEST_BUCKET
        while size < length:
            size *= WIDEST_STRETCH
        return min(size, self.slots)

    def prefill(self, ids_BL: np.ndarray, length_B: np.ndarray) -> np.ndarray:
        """Read right-padded prompts; return the logits_BV after each."""
        rows, length = ids_BL.shape
        position_BL = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
        inside_BL = position_BL < length_B[:, None]
        inputs = (ids_BL, position_BL * inside_BL, inside_BL.astype(np.int32), length_B - 1)
        logits, self._caches = self._prefill(*[Tensor(array) for array in inputs])
        self._start = Tensor(np.zeros(rows, np.int32))
        return logits.asnumpy()

    def decode(self, token_B: np.ndarray, position_B: np.ndarray) -> np.ndarray:
        """Take one more token of each sequence; return the logits_BV after it."""
        logits, self._caches = self._decode(Tensor(token_B), Tensor(position_B), self._start, *self._caches)
        return logits.asnumpy()


class Engine:
    """Generates with `model`'s current parameters; token selection is that of `decoder.Drawing`.

    skip_nan: a sequence whose logits become NaN or infinite ends, marked; else `generate` raises UserError.
    """

    def __init__(self, model: PanguForCausalLM, tokenizer, skip_nan: bool = False):
        self.model, self.skip_nan = model, skip_nan
        self.drawing = Drawing(tokenizer, model.options.vocab_size)
        self.limit = model.options.max_position_embeddings
        self._decoders: dict[int, ModelDecoder] = {}

    def generate(
        self,
        prompts: list[list[int]],
        sampling: SamplingOptions,
        seeds: list[int],
        progress: str | None = None,
        enough: Callable[[list[int]], bool] | None = None,
    ) -> list[Generation]:
        """One Generation a prompt, in the order of `prompts`.

        Args:
            prompts: token ids.
            sampling: decoding settings.
            seeds: sequence i is sampled from `seeds[i]` only, whatever else is in its batch.
            progress: label of a progress bar on stderr; None: no bar.
            enough: called after each token with the ids of a sequence so far; True ends it (not `finished`).

        Raises UserError for invalid settings, a prompt that is empty, holds an id outside the vocabulary or is too
        long, and for NaN logits without `skip_nan`.
        """
        check_ranges(sampling, "sampling")
        if len(seeds) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many seeds, found {len(seeds)}")
        for index, prompt in enumerate(prompts):
            self.drawing.check_prompt(f"prompt {index}", prompt, sampling.max_new_tokens, (self.limit, LIMIT_NAME))
        results: list[Generation | None] = [None] * len(prompts)
        longest = self.limit - sampling.max_new_tokens
        lengths, heads = [len(prompt) for prompt in prompts], self.model.options.num_attention_heads
        plan = plan_batches(lengths, longest, lambda length: min(sampling.batch_size, rows_that_fit(heads, length)))
        with runtime.progress_bar(len(prompts), progress or "", "sequence", shown=progress is not None) as bar:
            for length, rows, members in plan:
                batch, chosen = ([each[index] for index in members] for each in (prompts, seeds))
                finished = self._run(batch, chosen, length, rows, sampling, bar, enough)
                for index, generation in zip(members, finished, strict=True):
                    results[index] = generation
        return results

    def decoder(self, slots: int) -> ModelDecoder:
        """The Decoder with a cache of `slots`."""
        if slots not in self._decoders:
            self._decoders[slots] = ModelDecoder(self.model, slots)
        return self._decoders[slots]

    def slots_for(self, tokens: int) -> int:
        """The length of the cache for this many tokens."""
        return min(-(-tokens // SLOT_MULTIPLE) * SLOT_MULTIPLE, self.limit)

    def _run(self, prompts, seeds, length: int, rows: int, sampling: SamplingOptions, bar, enough) -> list[Generation]:
        """Decode one batch of `rows` rows, of which the first len(prompts) are real."""
        count, steps = len(prompts), sampling.max_new_tokens
        decoder = self.decoder(self.slots_for(length + steps))
        length_B = np.array([len(prompt) for prompt in prompts] + [1] * (rows - count), np.int32)
        input_ids_BL = right_padded(prompts, length, rows, self.drawing.pad_id)
        draws = Draws(self.drawing, prompts, seeds, sampling, self.skip_nan)
        token_BS = np.zeros((count, steps), np.int32)
        size_B = np.zeros(count, np.int32)  # how many tokens each sequence has
        next_B = np.full(rows, self.drawing.pad_id, np.int32)
        logits_BV = decoder.prefill(input_ids_BL, length_B)
        while True:
            ranks.check_stop()
            running = int((~draws.ended_B).sum())
            size_B += ~draws.ended_B
            next_B[:count] = draws.draw(logits_BV[:count])
            token_BS[:, draws.step - 1] = next_B[:count]
            for row in np.flatnonzero(~draws.ended_B) if enough is not None else ():
                draws.ended_B[row] = enough(token_BS[row, : size_B[row]].tolist())
            bar.update(running - int((~draws.ended_B).sum()))
            if draws.over:
                break
            logits_BV = decoder.decode(next_B, length_B + np.int32(draws.step - 1))
        bar.update(int((~draws.ended_B).sum()))
        return [
            Generation(token_BS[row, : size_B[row]].tolist(), bool(draws.finished_B[row]), bool(draws.nan_B[row]))
            for row in range(count)
        ]


def plan_batches(lengths: list[int], longest: int, row_limit: Callable[[int], int]) -> list[tuple[int, int, list[int]]]:
    """(padded length, rows, prompt indices) of each batch, for prompts of these lengths, none above `longest`.

    Prompts go to the next power of two (at least 32, at most `longest`), at most `row_limit(length)` in a batch. As
    every shape costs a compilation, a bucket of few batches, and the rest of a larger one, move on to the next longer
    bucket, within WIDEST_STRETCH.
    """
    buckets: dict[int, list[int]] = {}
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        buckets.setdefault(_bucket(lengths[index], longest), []).append(index)
    plan, waiting, sizes = [], [], sorted(buckets)
    for size, following in zip(sizes, [*sizes[1:], None], strict=False):
        waiting += buckets[size]
        rows = min(row_limit(size), power_of_two(len(lengths)))
        if following is None or following > WIDEST_STRETCH * _bucket(lengths[waiting[0]], longest):
            taken = len(waiting)
        else:
            taken = len(waiting) // rows * rows if len(waiting) >= WORTH_COMPILING * rows else 0
        plan += [(size, rows, waiting[first : min(first + rows, taken)]) for first in range(0, taken, rows)]
        waiting = waiting[taken:]
    return plan


def _bucket(length: int, longest: int) -> int:
    return min(max(SHORTEST_BUCKET, power_of_two(length)), longest)
