"""Log-likelihoods of continuations of contexts: multiple choice, perplexity of texts, external harnesses.

The common prefix of contexts (instruction and shots of a subject) is read once into the key/value cache, the rest of a
context once for all its continuations, and continuations that differ only in their last token (the letters A to D) take
one pass. Sharing changes nothing but float32 rounding.

Legend: B sequences, L stretch, T cache slots, S scored positions, K continuations that share a stretch, V vocabulary.
"""

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mindspore_impl import runtime
from mindspore_impl.distributed import ranks
from mindspore_impl.errors import UserError
from mindspore_impl.generation.decoder import power_of_two, right_padded
from mindspore_impl.losses.oracle import log_softmax

MIN_SHARED = 32  # tokens that grouped contexts have in common beyond their neighbours
MAX_SCORES = 2**27  # float32 attention scores held at a time


@dataclass(frozen=True)
class Query:
    """Ids of a context (BOS first, where the tokenizer has one) and of its possible continuations; none is empty."""

    context: tuple[int, ...]
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Likelihood:
    """Log-probability of a continuation in nats; `greedy`: each of its tokens is the most probable one."""

    logp: float
    greedy: bool


@dataclass(frozen=True)
class Stretch:
    """One row to score: `ids` follow cache row `row` from position `start`.

    The last ids predict the continuations `numbers` of query `query`, which differ in their last token alone.
    """

    ids: tuple[int, ...]
    start: int
    row: int
    query: int
    numbers: list[int]


def encode_pair(tokenizer, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids of a context (BOS first) and of its continuation, encoded as one text and split at the end of the context.

    Trailing spaces of the context belong to the continuation. An empty context is BOS, or else the end of turn.
    """
    start = () if tokenizer.bos_id is None else (tokenizer.bos_id,)
    whole, bare = tuple(tokenizer.encode(context + continuation)), context.rstrip()
    if not bare:
        return start or (tokenizer.eos_id,), whole
    cut = min(len(tokenizer.encode(bare)), len(whole) - 1)  # a piece across the border belongs to the continuation
    return start + whole[:cut], whole[cut:]


def check_queries(queries: Sequence[Query], vocab_size: int, limit: int, advice: str) -> None:
    """Raise UserError for empty queries, ids outside the vocabulary, and more than `limit` tokens together."""
    for number, query in enumerate(queries):
        if not query.context or not query.continuations or not all(query.continuations):
            raise UserError(f"question {number}: a context and each of its continuations need at least one token")
        ids = [*query.context, *(token for continuation in query.continuations for token in continuation)]
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise UserError(f"question {number} holds an id outside the model's vocabulary of {vocab_size}")
        length = len(query.context) + max(map(len, query.continuations)) - 1
        if length > limit:
            raise UserError(f"question {number}: {length} tokens exceed the limit of {limit}; {advice}")


def groups_of(contexts: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """Group contexts by common prefix, (shared tokens, indices) each; the last token predicts, so it is not shared."""
    order = sorted(range(len(contexts)), key=lambda index: contexts[index])
    common = [len(os.path.commonprefix([contexts[a], contexts[b]])) for a, b in itertools.pairwise(order)]
    groups, begin = [], 0
    for place in range(1, len(order) + 1):
        around = [common[i] for i in (place - 2, place) if begin <= i < len(common)]
        if place < len(order) and common[place - 1] + MIN_SHARED > max(around, default=0):
            continue
        members = order[begin:place]
        shared = min(*(len(contexts[index]) - 1 for index in members), min(common[begin : place - 1], default=0))
        groups.append((shared if shared >= MIN_SHARED else 0, members))
        begin = place
    return groups


class Scorer:
    """Likelihoods by a model's current parameters, `batch_size` sequences at a time; one graph per shape."""

    def __init__(self, model, batch_size: int = 8):
        from mindspore_impl.model.extend import Extend, ScoreExtension

        self.options, self.batch_size = model.options, batch_size
        self.extend, self.score = Extend(model).set_train(False), ScoreExtension(model).set_train(False)

    def __call__(self, queries: Sequence[Query], progress: str | None = None) -> list[list[Likelihood]]:
        """Return the Likelihood of each continuation of each query. Raises UserError as `check_queries`."""
        options = self.options
        check_queries(queries, options.vocab_size, options.max_position_embeddings, "lower the number of shots")
        found: list[list] = [[None] * len(query.continuations) for query in queries]
        with runtime.progress_bar(len(queries), progress or "", "question", shown=progress is not None) as bar:
            for shared, members in groups_of([query.context for query in queries]):
                # Cache slots T such that every stretch of the group fits with its padding.
                context = max(len(queries[index].context) for index in members)
                longest = max(len(text) for index in members for text in queries[index].continuations)
                slots = step(max(shared + step(context + longest - shared), context + step(longest), 64))
                header = self._read(self._empty(slots), [queries[members[0]].context[:shared]], 0)
                for batch in self._batches(queries, shared, members, slots):
                    for query, number, likelihood in self._batch(queries, batch, shared, header):
                        found[query][number] = likelihood
                    bar.update(len(batch))
        return found

    def _batches(self, queries, shared: int, members: list[int], slots: int) -> Iterable[list[int]]:
        """Yield batches of similar length; queries that need one stretch are kept apart from the others."""
        members = sorted(members, key=lambda index: len(queries[index].context))
        for single in (True, False):
            some = [index for index in members if (len(_inputs(queries[index])) == 1) == single]
            longest = max((len(queries[index].context) for index in some), default=1) - shared
            size = self._rows(step(longest), slots, len(some))
            yield from (some[first : first + size] for first in range(0, len(some), size))

    def _rows(self, length: int, slots: int, count: int) -> int:
        fitting = MAX_SCORES // (self.options.num_attention_heads * length * slots)
        return max(1, min(self.batch_size, fitting, power_of_two(count)))

    def _empty(self, slots: int) -> tuple:
        from mindspore import Tensor

        from mindspore_impl.model.pangu import head_dim

        shape = (1, self.options.num_key_value_heads, slots, head_dim(self.options))
        zeros = Tensor(np.zeros(shape, np.float32)).astype(runtime.compute_dtype())
        return (zeros,) * (2 * self.options.num_hidden_layers)

    def _batch(self, queries, batch: list[int], shared: int, header: tuple) -> Iterable[tuple[int, int, Likelihood]]:
        """Yield (query, number, Likelihood) of each continuation of the queries `batch`."""
        together = all(len(_inputs(queries[index])) == 1 for index in batch)
        caches, stretches = header, []
        if not together:
            caches = self._read(header, [queries[index].context[shared:-1] for index in batch], shared)
        for row, index in enumerate(batch):
            context = queries[index].context
            begin = shared if together else len(context) - 1
            for inputs, numbers in _inputs(queries[index]).items():
                stretches.append(Stretch((*context[begin:], *inputs), begin, 0 if together else row, index, numbers))
        rows = self._rows(max(step(len(s.ids)) for s in stretches), caches[0].shape[2], len(stretches))
        for first in range(0, len(stretches), rows):
            ranks.check_stop()
            yield from self._score(queries, caches, stretches[first : first + rows], rows)

    def _read(self, caches: tuple, texts: list[tuple[int, ...]], start: int) -> tuple:
        """The caches after `texts`, each appended to the one row of `caches` at position `start`."""
        from mindspore import Tensor

        if not any(texts) and len(texts) == caches[0].shape[0]:
            return caches
        ids_BL = right_padded(texts, min(step(max(map(len, texts))), caches[0].shape[2] - start), len(texts), 0)
        numbers = (ids_BL, np.full(len(texts), start, np.int32), np.zeros(len(texts), np.int32))
        return self.extend(*(Tensor(array) for array in numbers), *caches)[1]

    def _score(self, queries, caches: tuple, stretches: list[Stretch], rows: int):
        from mindspore import Tensor

        targets = [[queries[s.query].continuations[number] for number in s.numbers] for s in stretches]
        count, several = step(max(len(some[0]) for some in targets)), power_of_two(max(map(len, targets)))
        ids_BL = right_padded([s.ids for s in stretches], step(max(len(s.ids) for s in stretches)), rows, 0)
        start_B, row_B = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        where_BS, target_BSK = np.zeros((rows, count), np.int32), np.zeros((rows, count, several), np.int32)
        for b, (stretch, some) in enumerate(zip(stretches, targets, strict=True)):
            size, length = len(some[0]), len(stretch.ids)
            start_B[b], row_B[b] = stretch.start, stretch.row
            where_BS[b, :size] = np.arange(length - size, length)
            target_BSK[b, :size, : len(some)] = np.transpose(some)
        arrays = (ids_BL, start_B, row_B, where_BS, target_BSK)
        logp_BSK, best_BS = (t.asnumpy() for t in self.score(*(Tensor(array) for array in arrays), *caches))
        for b, stretch in enumerate(stretches):
            for k, (number, target) in enumerate(zip(stretch.numbers, targets[b], strict=True)):
                logp_S, best_S = logp_BSK[b, : len(target), k], best_BS[b, : len(target)]
                greedy = bool((best_S == target).all())
                yield stretch.query, number, Likelihood(float(logp_S.sum(dtype=np.float64)), greedy)


class DecoderScorer:
    """Likelihoods by any `generation.decoder.Decoder`: one context at a time, its continuations share the cache."""

    def __init__(self, decoder):
        self.decoder = decoder

    def __call__(self, queries: Sequence[Query], progress: str | None = None) -> list[list[Likelihood]]:
        """Return the Likelihood of each continuation of each query. Raises UserError as `check_queries`."""
        check_queries(queries, self.decoder.vocab_size, self.decoder.slots, "export with a larger --cache-length")
        found = []
        with runtime.progress_bar(len(queries), progress or "", "question", shown=progress is not None) as bar:
            for query in queries:
                ranks.check_stop()
                ids_BL = right_padded([query.context], self.decoder.padded(len(query.context)), 1, 0)
                logits_BV = self.decoder.prefill(ids_BL, np.array([len(query.context)], np.int32))
                found.append([self._follow(logits_BV, query, text) for text in query.continuations])
                bar.update()
        return found

    def _follow(self, logits_BV: np.ndarray, query: Query, continuation: tuple[int, ...]) -> Likelihood:
        logp, greedy = 0.0, True
        for place, token in enumerate(continuation):
            if place:  # overwrites the slot of an earlier continuation
                position_B = np.array([len(query.context) + place - 1], np.int32)
                logits_BV = self.decoder.decode(np.array([continuation[place - 1]], np.int32), position_B)
            logp_V = log_softmax(logits_BV[0].astype(np.float64))
            logp += float(logp_V[token])
            greedy = greedy and int(logp_V.argmax()) == token
        return Likelihood(logp, greedy)


def _inputs(query: Query) -> dict[tuple[int, ...], list[int]]:
    """{continuation without its last token: numbers of the continuations that it serves}."""
    found: dict[tuple[int, ...], list[int]] = {}
    for number, continuation in enumerate(query.continuations):
        found.setdefault(continuation[:-1], []).append(number)
    return found


def step(number: int) -> int:
    """Round up to 1, 8, 12, 16, 24, 32, 48, 64, 96, ...: a graph is compiled for every length."""
    if number <= 1:
        return 1
    power = max(8, power_of_two(number))
    return power * 3 // 4 if number <= power * 3 // 4 and power > 8 else power
