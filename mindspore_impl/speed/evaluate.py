"""The gain of batches and of shared prefixes in evaluation, against the same engine without them.

Generation: COUNT prompts together against one after the other, greedy, with equally many new tokens. Likelihoods:
multiple choice behind a header of worked examples, read once, against every option read with all that stands before it.
"""

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor

from mindspore_impl import runtime
from mindspore_impl.evaluation.loglikelihood import Query, Scorer, step
from mindspore_impl.generation.engine import Engine
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.model.extend import ScoreExtension
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import PanguForCausalLM, head_dim
from mindspore_impl.speed import generate
from mindspore_impl.speed.common import Row, alternate, compared, contest, medians

STUDENT = ModelOptions(
    vocab_size=160, hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512,
)  # fmt: skip
SIZES = {generate.CASE: generate.OPTIONS, "2 x 96, vocabulary 160, fp32": STUDENT}
COUNT, PROMPT, NEW = 16, 64, 16
HEADER, QUESTION, OPTION, QUESTIONS, OPTIONS = 256, 48, 4, 4, 4  # tokens, and how many
ROWS = 8
AGREE = 1e-5  # of log-probabilities a token, relative to their size


def rows(sizes: dict[str, ModelOptions] = SIZES, rounds: int = 5, threads: int = 2) -> list[Row]:
    """A row of generation and one of likelihoods for each model. Raises ValueError when the two sides differ."""
    runtime.setup(runtime.RuntimeOptions(threads=threads), seed=0)
    found = []
    for case, options in sizes.items():
        model = PanguForCausalLM(options, seed=0)
        model.set_train(False)
        found += [generation_row(model, case, rounds), likelihood_row(model, case, rounds)]
    return found


def generation_row(model, case: str, rounds: int) -> Row:
    """Tokens a second of COUNT sequences together, and one after the other."""
    engine = Engine(model, generate.tokenizer(model.options))
    prompts = generate.prompts(COUNT, PROMPT, model.options).tolist()
    tokens: dict[str, int] = {}

    def write(side: str, batch_size: int) -> None:
        sampling = SamplingOptions(temperature=0.0, max_new_tokens=NEW, batch_size=batch_size)
        batches = [prompts[first : first + batch_size] for first in range(0, COUNT, batch_size)]
        made = [one for some in batches for one in engine.generate(some, sampling, [0] * len(some))]
        tokens[side] = sum(len(one.ids) for one in made)

    seconds = medians(alternate({"ours": lambda: write("ours", COUNT), "peer": lambda: write("peer", 1)}, rounds))
    if tokens["ours"] != tokens["peer"]:
        raise ValueError(f"the two batch sizes wrote {tokens} tokens: the comparison would not be fair")
    speeds = [tokens[side] / seconds[side] for side in ("ours", "peer")]
    what = f"{COUNT} prompts of {PROMPT}, {NEW} new tokens each, prompts read too, {case}"
    return compared(what, f"generation, batch {COUNT}", "tokens/s", *speeds, "the same engine, batch 1", True)


def likelihood_row(model, case: str, rounds: int) -> Row:
    """Seconds for QUESTIONS questions of OPTIONS options, prefixes shared and not."""
    queries = questions(model.options)
    shared, score = Scorer(model), ScoreExtension(model).set_train(False)
    check_agreement([[one.logp for one in row] for row in shared(queries)], whole(score, model.options, queries))
    what = f"{QUESTIONS} questions of {QUESTION} tokens, {OPTIONS} options of {OPTION}, behind {HEADER}, {case}"
    runs = {"ours": lambda: shared(queries), "every option scored whole": lambda: whole(score, model.options, queries)}
    return contest(what, "likelihoods, prefixes shared", "s", runs, rounds)[0]


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


def whole(score: ScoreExtension, options: ModelOptions, queries: Sequence[Query]) -> list[list[float]]:
    """Log-probabilities in nats of each option of each query, a row an option; all are of one length."""
    context_NL = np.repeat(np.array([query.context for query in queries], np.int32), OPTIONS, axis=0)
    option_NS = np.array([option for query in queries for option in query.continuations], np.int32)
    ids_NL = np.concatenate([context_NL, option_NS[:, :-1]], axis=1)
    count, length = option_NS.shape[1], ids_NL.shape[1]
    ids_NL = np.pad(ids_NL, ((0, 0), (0, step(length) - length)))
    where_BS = np.tile(np.arange(length - count, length, dtype=np.int32), (ROWS, 1))
    start_B = np.zeros(ROWS, np.int32)
    shape = (1, options.num_key_value_heads, ids_NL.shape[1], head_dim(options))
    caches = (Tensor(np.zeros(shape, np.float32)),) * (2 * options.num_hidden_layers)
    found = []
    for first in range(0, len(ids_NL), ROWS):
        target_BSK = option_NS[first : first + ROWS, :, None]
        inputs = (Tensor(array) for array in (ids_NL[first : first + ROWS], start_B, start_B, where_BS, target_BSK))
        logp_BSK, _ = score(*inputs, *caches)
        found += logp_BSK.asnumpy()[:, :, 0].sum(axis=1, dtype=np.float64).tolist()
    return [found[first : first + OPTIONS] for first in range(0, len(found), OPTIONS)]
