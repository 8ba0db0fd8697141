"""Capture: one teacher pass over every sample stores its distribution at each supervised position.

Legend: B rows, L positions of a packed row, D hidden, V vocabulary, K ids, S supervised targets of one sample, R rows
the output projection handles at a time. The samples are packed once, and consecutive batches make a shard. A shard is
the unit that ranks share and a killed capture resumes at: it is scored whole, by one rank, in the same batches, so the
store is byte for byte the same for any number of ranks and interruptions.
"""

import functools
import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from mindspore import Tensor, nn

from mindspore_impl import runtime
from mindspore_impl.data.batches import PackedBatch, SequentialBatches
from mindspore_impl.data.packing import fitting, shift
from mindspore_impl.data.teacher_store import (
    StoreHeader,
    StoreReader,
    own_cross_entropy,
    read_index,
    sample_key,
    target_runs,
)
from mindspore_impl.data.teacher_store_writer import (
    existing_shards,
    make_row,
    publish,
    shard_path,
    shard_record,
    write_shard,
)
from mindspore_impl.distill.jobs import CaptureJob
from mindspore_impl.distributed import ranks, resumable
from mindspore_impl.errors import UserError
from mindspore_impl.losses.projected_rows import HiddenStates, ProjectedRows, in_chunks
from mindspore_impl.ops.log_floor import LOG_FLOOR
from mindspore_impl.ops.topk_logprobs import LogprobsAt, SampledIds, topk_logprobs
from mindspore_impl.text.chat import Sample

Batch = tuple[PackedBatch, list[list[tuple[int, int]]]]  # as `SequentialBatches` gives it


def run_capture(job: CaptureJob) -> dict[str, float]:
    """Score the samples with the model of `job` and publish its store, resuming after the shards that exist.

    Each distinct sample is scored once, by one of the ranks. What is stored of it depends on its ids and the seed
    alone, not on what it was packed with (to float32 rounding).

    Returns the metrics of the whole store: positions, sequences, bytes and bytes_per_position (all files of the
    folder), teacher_mass, teacher_entropy and tail (means over positions, of the K ids and the bucket for the rest, as
    read back), teacher_ce (`own_cross_entropy`), dropped (samples left out by overlong=drop), and of this run alone,
    all ranks together: seconds, tokens, tokens_per_second.
    Raises UserError when an id lies outside the vocabulary, K exceeds it, a sample is longer than a packed row under
    overlong=error, equal ids have two supervised masks, or the teacher's logits are not finite.
    """
    header, options = job.header, job.options
    samples = job.fitting()
    if (dropped := len(job.samples) - len(samples)) and runtime.rank() == 0:
        print(f"  capture: {dropped} of {len(job.samples)} samples longer than {job.sequence_length} are left out")
    check_capture(job.model, header, samples, job.key)
    samples = distinct(samples)
    packed = SequentialBatches(samples, job.sequence_length, options.rows_per_batch)
    plan = plan_shards(packed, options.positions_per_shard)
    store = job.folder / "store"
    existing = functools.cache(lambda: existing_shards(store, header))  # on rank 0 alone
    tokens, started = 0, time.perf_counter()
    scorer = TeacherScorer(job.model, header, job.seed)

    def known(number: int) -> dict | None:
        path = shard_path(store, number)
        entry = existing().get(path.name)
        return entry if entry and _holds(read_index(path, entry), packed, plan[number]) else None

    def make(number: int) -> tuple[resumable.Publish, dict]:
        nonlocal tokens
        rows, title = [], f"capture shard {number + 1}/{len(plan)}"
        total = sum(len(samples[index].ids) for batch in plan[number] for index in packed.members(batch))
        with runtime.progress_bar(total, title, "tok", unit_scale=True) as bar:
            batches = (ranks.check_stop() or packed[batch] for batch in plan[number])  # a stopped shard is scored again
            for sample, teacher_rows in scorer.score(samples, batches):
                rows.append(make_row(header, sample.ids, sample.supervised, teacher_rows))
                bar.update(len(sample.ids))
        tokens += total
        return lambda path: write_shard(path, rows), shard_record(header, shard_path(store, number), rows)

    entries = resumable.share([shard_path(store, number) for number in range(len(plan))], make, known)
    ranks.on_rank_zero(lambda: publish(store, header, entries))
    seconds = time.perf_counter() - started
    tokens = sum(ranks.gather(tokens))
    return {
        **ranks.on_rank_zero(lambda: store_metrics(StoreReader(store), samples)),
        "dropped": dropped,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if tokens else 0.0,
    }


def plan_shards(packed: SequentialBatches, positions_per_shard: int) -> list[range]:
    """The batches of each shard: consecutive ones that reach `positions_per_shard` supervised targets."""
    plan, first, positions = [], 0, 0
    for number in range(len(packed)):
        members = (packed.samples[index] for index in packed.members(number))
        positions += sum(int(np.count_nonzero(sample.supervised[1:])) for sample in members)
        if positions >= positions_per_shard or number + 1 == len(packed):
            plan.append(range(first, number + 1))
            first, positions = number + 1, 0
    return plan


def _holds(found: dict[bytes, np.ndarray], packed: SequentialBatches, batches: range) -> bool:
    """Whether a shard with the index `found` holds the sequences and masks of these batches in this order."""
    wanted = [packed.samples[index] for number in batches for index in packed.members(number)]
    keys = [sample_key(sample.ids) for sample in wanted]
    masks = [target_runs(sample.supervised).tolist() for sample in wanted]
    return [key.hex() for key in found] == keys and [runs.tolist() for runs in found.values()] == masks


def distinct(samples: Sequence[Sample]) -> list[Sample]:
    """The first sample of each sequence of ids, in order.

    Raises UserError naming both records when equal ids have two supervised masks: a store has one entry for them.
    """
    first: dict[str, Sample] = {}
    for sample in samples:
        known = first.setdefault(sample_key(sample.ids), sample)
        if known is not sample and not np.array_equal(target_runs(known.supervised), target_runs(sample.supervised)):
            pair = f"records {known.record_id!r} and {sample.record_id!r}"
            raise UserError(f"{pair} have equal tokens under two supervised masks; capture them in two stages")
    return list(first.values())


def check_capture(model: nn.Cell, header: StoreHeader, samples: Sequence[Sample], key: str = "") -> None:
    """Raise UserError, naming the key (after `key`) or record, for a sample or setting that cannot be captured."""
    if not samples:
        raise UserError(f"{key}capture: there is no sample to score; name sets or rollouts that are not empty")
    rows, vocabulary = model.lm_head_weight.shape[0], f"the vocabulary of {header.vocab_size}"
    if rows < header.vocab_size:
        raise UserError(f"{key}capture: the teacher's lm_head has {rows} rows, less than {vocabulary}; use another")
    if header.top_k > header.vocab_size and header.mode == "top_k":
        raise UserError(f"{key}capture.top_k={header.top_k} exceeds {vocabulary}; set it lower")
    for sample in samples:
        low, high = int(np.min(sample.ids)), int(np.max(sample.ids))
        if low < 0 or high >= header.vocab_size:
            found = f"record {sample.record_id!r} holds the id {low if low < 0 else high}"
            raise UserError(f"{found}, outside {vocabulary}; it was made with another tokenizer")


class TeacherScorer:
    """Runs a teacher over packed samples and yields the teacher rows of each sample.

    `header` gives K, temperature and mode. Ids at or above its vocab_size (a padded lm_head) get no mass.
    """

    def __init__(self, model: nn.Cell, header: StoreHeader, seed: int = 0):
        self.header, self.seed = header, seed
        self.hidden = HiddenStates(model).set_train(False)
        if header.mode == "sampled":
            take = SampledIds(header.vocab_size, header.temperature)
        else:
            take = topk_logprobs(header.top_k, header.temperature)
        self.head = ProjectedRows(model, header.vocab_size, take).set_train(False)

    def score(
        self, samples: Sequence[Sample], batches: Iterable[Batch]
    ) -> Iterator[tuple[Sample, tuple[np.ndarray, ...]]]:
        """Yield (sample, (teacher_ids_SK, teacher_logp_SK, tail_logp_S)) in packing order, one forward pass per batch.

        batches: of a `SequentialBatches` over `samples`.
        """
        for hidden_ND, placed in self.forward(samples, batches):
            if self.header.mode == "sampled":
                uniform_SK = np.concatenate([self._uniform(sample, len(positions)) for sample, positions in placed])
                drawn_SK, logp_SK = self.apply(self.head, hidden_ND, placed, uniform_SK)
                _check_finite(logp_SK)  # the counts that are stored would be finite
                results = counted(drawn_SK)
            else:
                results = self.apply(self.head, hidden_ND, placed)
                with np.errstate(divide="ignore"):  # ops.maximum may turn NaN into LOG_FLOOR: a row without any mass
                    _check_finite(np.log(np.exp(results[1]).sum(1) + np.exp(results[2])))
            bounds = np.cumsum([len(positions) for _, positions in placed])[:-1]
            parts = zip(*(np.split(array, bounds) for array in results), strict=True)
            yield from ((sample, part) for (sample, _), part in zip(placed, parts, strict=True))

    def forward(self, samples: Sequence[Sample], batches: Iterable[Batch]):
        """Yield (hidden_ND, [(sample, positions in N of its teacher rows)]) for each packed batch.

        A row is read where `shift` puts its target: at the position before each supervised token.
        """
        for batch, placements in batches:
            inputs = (batch.input_ids_BL, batch.position_ids_BL, batch.segment_ids_BL)
            sequence_length = batch.input_ids_BL.shape[1]
            placed = []
            for row, pieces in enumerate(placements):
                for index, column in pieces:
                    target_supervised = shift(samples[index].ids, samples[index].supervised)[1]
                    placed.append((samples[index], row * sequence_length + column + np.flatnonzero(target_supervised)))
            yield self.hidden(*(Tensor(array) for array in inputs)), placed

    def apply(self, head: nn.Cell, hidden_ND, placed, *inputs_S: np.ndarray) -> list[np.ndarray]:
        """The outputs of `head` at all placed positions, R at a time; the last R are padded and trimmed."""
        position_S = np.concatenate([positions for _, positions in placed])
        chunks = list(in_chunks(head, hidden_ND, position_S, *inputs_S))
        return [np.concatenate(column) for column in zip(*chunks, strict=True)]

    def _uniform(self, sample: Sample, count: int) -> np.ndarray:
        """The uniform numbers of one sample's draws, float32 [count, K] in [0, 1): a function of seed and ids."""
        digest = hashlib.sha256(f"{self.seed} {sample_key(sample.ids)}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))
        return generator.random((count, self.header.top_k), np.float32)


def _check_finite(*arrays: np.ndarray) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise UserError("capture: the teacher's logits are not finite; its weights are damaged, or training diverged")


def counted(drawn_SK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Drawn ids as distinct ids with log(count / K), most frequent first, then -1; draws leave no tail."""
    draws = drawn_SK.shape[1]
    ids_SK, logp_SK = np.full(drawn_SK.shape, -1, np.int32), np.full(drawn_SK.shape, LOG_FLOOR, np.float32)
    for row, drawn_K in enumerate(drawn_SK):
        ids, counts = np.unique(drawn_K, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        ids_SK[row, : len(ids)], logp_SK[row, : len(ids)] = ids[order], np.log(counts[order] / draws)
    return ids_SK, logp_SK, np.full(len(drawn_SK), LOG_FLOOR, np.float32)


def store_metrics(reader: StoreReader, samples: Sequence[Sample]) -> dict[str, float]:
    """Size and means of a store, read back sample by sample, which also proves that every sample is in it.

    Equal samples count once. Raises UserError when a sample is absent.
    """
    positions, sums, samples = 0, np.zeros(3), distinct(samples)
    for sample in samples:
        runtime.reset_watchdog()
        _, logp_SK, tail_S = (np.asarray(array, np.float64) for array in reader.lookup(sample.ids, sample.supervised))
        p_SK, p_tail_S = np.exp(logp_SK), np.exp(tail_S)
        positions += len(p_tail_S)
        sums += p_SK.sum(), -(p_SK * logp_SK).sum() - (p_tail_S * tail_S).sum(), p_tail_S.sum()
    sizes = {key: getattr(reader, key) for key in ("positions", "sequences", "bytes")}
    means = dict(zip(("teacher_mass", "teacher_entropy", "tail"), (sums / max(positions, 1)).tolist(), strict=True))
    means["teacher_ce"] = own_cross_entropy(reader, samples)
    return sizes | {"bytes_per_position": reader.bytes / max(reader.positions, 1)} | means


def rescore(
    model: nn.Cell, reader: StoreReader, samples: Sequence[Sample], sequence_length: int, rows: int
) -> dict[str, float]:
    """Score stored samples with a teacher again and compare the result with the store.

    Samples longer than a row are left out and counted as dropped, as a capture with overlong=drop does.

    Args:
        model: The teacher.
        reader: The open store.
        samples: Samples of the store.
        sequence_length: Tokens of a packed row.
        rows: Rows of a batch.

    Returns sequences, positions, dropped, max_abs_logp_difference and mean_abs_logp_difference in nats, between the
    stored log-probabilities and the teacher's for the same ids, and id_agreement, the share of stored ids among the
    teacher's K most probable. Drawn ids (mode sampled) carry counts and no probabilities: there both differences are
    between the mean log-probability of all draws and its expectation under the teacher, less four standard errors, so
    that they are 0 for the teacher that drew them. Raises UserError when a sample is not in the store, or the
    teacher's logits are not finite.
    """
    header, given = reader.header, len(samples)
    samples = fitting(samples, sequence_length, "drop", ("sequence_length", ""))
    check_capture(model, header, samples)
    scorer = TeacherScorer(model, header)
    take = LogprobsAt(header.top_k, header.temperature)
    head = ProjectedRows(model, header.vocab_size, take).set_train(False)
    worst, total, same, count, positions, sequences = 0.0, 0.0, 0, 0, 0, 0
    surplus, variance = 0.0, 0.0  # of the drawn log-probabilities over their expectation, in sum
    for hidden_ND, placed in scorer.forward(samples, SequentialBatches(samples, sequence_length, rows)):
        stored = [reader.lookup(sample.ids, sample.supervised) for sample, _ in placed]
        ids_SK, stored_SK = np.concatenate([row[0] for row in stored]), np.concatenate([row[1] for row in stored])
        teacher_SK, agree_SK, mean_S, variance_S = scorer.apply(head, hidden_ND, placed, ids_SK)
        _check_finite(teacher_SK, mean_S)  # max() below would let NaN pass
        real_SK = ids_SK >= 0
        difference = np.abs(stored_SK.astype(np.float64) - np.maximum(teacher_SK, LOG_FLOOR))[real_SK]
        worst, total = max(worst, float(difference.max())), total + float(difference.sum())
        drawn_S = (np.exp(stored_SK.astype(np.float64)) * np.where(real_SK, teacher_SK, 0)).sum(1)
        surplus += float((drawn_S - mean_S).sum())
        variance += float(variance_S.sum()) / header.top_k
        same, count = same + int(agree_SK[real_SK].sum()), count + int(real_SK.sum())
        positions, sequences = positions + len(ids_SK), sequences + len(placed)
    if header.mode == "sampled":
        worst = max(0.0, abs(surplus) - 4 * variance**0.5) / positions
        total = worst * count
    return {
        "sequences": sequences,
        "positions": positions,
        "dropped": given - len(samples),
        "max_abs_logp_difference": worst,
        "mean_abs_logp_difference": total / count,
        "id_agreement": same / count,
    }
