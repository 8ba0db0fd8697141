"""The gain of batches and of shared prefixes in evaluation, against the same engine without them.

Generation: COUNT prompts together against one after the other, greedy, with equally many new tokens; the graphs of both
are compiled before. Likelihoods: multiple choice behind a header of worked examples, where header and question are read
once, against every option read with all that stands before it. Two sizes with random weights: SmolLM2-135M, and the
quickstart's student.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindspore_impl import runtime
from mindspore_impl.evaluation.loglikelihood import Query, Scorer, step
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.speed import generate
from mindspore_impl.speed.common import Row, alternate, compared, medians, publish

NAME = "evaluate"
STUDENT = ModelOptions(
    vocab_size=160, hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
)  # fmt: skip
SIZES = {generate.CASE: generate.OPTIONS, "2 x 96, vocabulary 160, fp32": STUDENT}
COUNT, PROMPT, NEW = 16, 64, 16
HEADER, QUESTION, OPTION, QUESTIONS, OPTIONS = 256, 48, 4, 4, 4  # tokens, and how many
ROWS = 8
AGREE = 1e-5  # of log-probabilities a token, relative to their size


def run(
    json_path: str | Path | None = None, sizes: dict[str, ModelOptions] = SIZES, rounds: int = 5, threads: int = 2
) -> list[Row]:
    """Measure, print, append to outputs/benchmarks.csv, write JSON on request.

    Raises ValueError when the results of the two sides differ.
    """
    from mindspore_impl.model.pangu import PanguForCausalLM

    runtime.setup(runtime.RuntimeOptions(threads=threads), seed=0)
    rows = []
    for case, options in sizes.items():
        model = PanguForCausalLM(options, seed=0)
        model.set_train(False)
        rows += [generation_row(model, case, rounds), likelihood_row(model, case, rounds)]
    publish(rows, json_path)
    return rows


def generation_row(model, case: str, rounds: int) -> Row:
    """Tokens a second of COUNT sequences together, and one after the other."""
    from mindspore_impl.generation.engine import Engine

    engine = Engine(model, generate.Ids(model.options.vocab_size))
    prompts = generate.prompts(COUNT, PROMPT, model.options).tolist()
    texts: dict[str, list] = {}

    def write(side: str, batch_size: int) -> None:
        sampling = SamplingOptions(temperature=0.0, max_new_tokens=NEW, batch_size=batch_size)
        batches = [prompts[first : first + batch_size] for first in range(0, COUNT, batch_size)]
        texts[side] = [made.ids for some in batches for made in engine.generate(some, sampling, [0] * len(some))]

    seconds = medians(alternate({"ours": lambda: write("ours", COUNT), "peer": lambda: write("peer", 1)}, rounds))
    tokens = {side: sum(map(len, found)) for side, found in texts.items()}
    if tokens["ours"] != tokens["peer"]:
        raise ValueError(f"the two batch sizes wrote {tokens} tokens: the comparison would not be fair")
    speeds = [tokens[side] / seconds[side] for side in ("ours", "peer")]
    what = f"{COUNT} prompts of {PROMPT}, {NEW} new tokens each, prompts read too, {case}"
    return compared(NAME, what, f"generation, batch {COUNT}", "tokens/s", *speeds, "the same engine, batch 1", True)


def likelihood_row(model, case: str, rounds: int) -> Row:
    """Seconds for QUESTIONS questions of OPTIONS options, prefixes shared and not."""
    queries = questions(model.options)
    shared, whole, found = Scorer(model), Whole(model), {}
    sides = {
        "ours": lambda: found.update(ours=[[one.logp for one in row] for row in shared(queries)]),
        "peer": lambda: found.update(peer=whole(queries)),
    }
    seconds = medians(alternate(sides, rounds))
    check_agreement(found["ours"], found["peer"])
    what = f"{QUESTIONS} questions of {QUESTION} tokens, {OPTIONS} options of {OPTION}, behind {HEADER}, {case}"
    numbers = seconds["ours"], seconds["peer"]
    return compared(NAME, what, "likelihoods, prefixes shared", "s", *numbers, "every option scored whole", False)


def questions(options: ModelOptions) -> list[Query]:
    """Made-up multiple choice behind one header."""
    draw = np.random.default_rng(0)

    def text(length: int) -> tuple[int, ...]:
        return tuple(draw.integers(1, options.vocab_size, length).tolist())

    header = text(HEADER)
    return [Query(header + text(QUESTION), tuple(text(OPTION) for _ in range(OPTIONS))) for _ in range(QUESTIONS)]


def check_agreement(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> None:
    """Refuse to compare speeds of sides whose log-probabilities differ. Raises ValueError."""
    if not np.allclose(ours, theirs, rtol=AGREE, atol=AGREE):
        raise ValueError("the two ways give different log-probabilities: the comparison would not be fair")


class Whole:
    """Log-probabilities of options with nothing shared: one row an option, all of its context in it, ROWS at a time."""

    def __init__(self, model):
        from mindspore_impl.model.extend import ScoreExtension

        self.options = model.options
        self.score = ScoreExtension(model).set_train(False)

    def __call__(self, queries: Sequence[Query]) -> list[list[float]]:
        """The log-probability in nats of each option of each query; all of one length, and all options of another."""
        rows = [(query.context, option) for query in queries for option in query.continuations]
        found = [logp for first in range(0, len(rows), ROWS) for logp in self._batch(rows[first : first + ROWS])]
        return [found[first : first + OPTIONS] for first in range(0, len(found), OPTIONS)]

    def _batch(self, rows: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[float]:
        from mindspore import Tensor

        from mindspore_impl.model.pangu import head_dim

        ids_BL = np.array([[*context, *option[:-1]] for context, option in rows], np.int32)
        batch, length = ids_BL.shape
        ids_BL = np.pad(ids_BL, ((0, 0), (0, step(length) - length)))
        target_BSK = np.array([option for _, option in rows], np.int32)[:, :, None]
        count = target_BSK.shape[1]
        where_BS = np.tile(np.arange(length - count, length, dtype=np.int32), (batch, 1))
        start_B = np.zeros(batch, np.int32)
        shape = (1, self.options.num_key_value_heads, ids_BL.shape[1], head_dim(self.options))
        caches = (Tensor(np.zeros(shape, np.float32)),) * (2 * self.options.num_hidden_layers)
        inputs = (Tensor(array) for array in (ids_BL, start_B, start_B, where_BS, target_BSK))
        logp_BSK, _ = self.score(*inputs, *caches)
        return logp_BSK.asnumpy()[:, :, 0].sum(axis=1, dtype=np.float64).tolist()
