"""Rollouts: what is recorded, resuming after a kill, seeds, trap 18. All but the last test use a fake engine."""

import functools
import hashlib
import json
import random
from types import SimpleNamespace

import pytest

from mindspore_impl.data.rollouts import loops, read_rollouts, to_sample
from mindspore_impl.distill.jobs import RolloutJob
from mindspore_impl.distill.options import RolloutOptions
from mindspore_impl.distill.rollout import FLAWS, run_rollout
from mindspore_impl.distributed import resumable
from mindspore_impl.errors import UserError
from mindspore_impl.generation.options import SamplingOptions
from mindspore_impl.generation.sampling import sample_seed
from mindspore_impl.text.records import Message, Record
from tests.distill.small import small_model, small_tokenizer

WEIGHTS = "ab" * 32


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


class FakeEngine:
    """Answers with letters drawn from the prompt's own seed; cuts an answer whose draw says so. Can be killed."""

    def __init__(self, tokenizer, cut=0.3, dies_at=None):
        self.tokenizer, self.cut, self.dies_at, self.prompts = tokenizer, cut, dies_at, 0

    def generate(self, prompts, sampling, seeds, progress=None):
        generations = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            if self.prompts == self.dies_at:
                raise KeyboardInterrupt
            self.prompts += 1
            draw = random.Random(f"{list(prompt)} {seed}")
            text = " ".join(draw.choice("abcdef") for _ in range(draw.randrange(1, 5)))
            special = self.tokenizer.special
            ids = [special["[unused16]"], special["[unused17]"], *self.tokenizer.encode(text)]
            finished = draw.random() >= self.cut
            generations.append(SimpleNamespace(ids=ids + [special["[unused10]"]] * finished, finished=finished))
        return generations


def make_records(count, thinking="fast"):
    answer = Message("assistant", "a b", "sort a b")
    turns = [(Message("user", f"list a b apply sort {i}"), answer) for i in range(count)]
    return [Record(f"r{i}", messages, thinking, {"n": i}) for i, messages in enumerate(turns)]


def run(tokenizer, folder, records, engine=None, sampling=None, seed=5, check=None, **options):
    engine = engine or FakeEngine(tokenizer)
    options = RolloutOptions(**{"prompts_per_part": 4, "samples_per_prompt": 2, **options})
    sampling = sampling or SamplingOptions(batch_size=8)
    engines = {"check": check, "make_engine": lambda *_: engine}
    return run_rollout(RolloutJob(tokenizer, records, options, sampling, folder, seed, WEIGHTS, **engines))


def killed_run(tokenizer, folder, records, dies_at, **more):
    """A run that is killed when it asks for one more prompt than `dies_at`; returns its engine."""
    engine = FakeEngine(tokenizer, dies_at=dies_at)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, folder, records, engine=engine, **more)
    return engine


def content(folder):
    return (folder / "rollouts.jsonl").read_bytes()


def lines_of(folder):
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_record_holds_what_made_it(tokenizer, tmp_path):
    sampling = SamplingOptions(temperature=0.7, top_p=0.9, max_new_tokens=11)
    metrics = run(tokenizer, tmp_path, make_records(5), sampling=sampling)
    lines = lines_of(tmp_path)
    assert [line["id"] for line in lines] == [f"r{i}/fast#{j}" for i in range(5) for j in range(2)]
    first = lines[0]
    assert first["weights_sha256"] == WEIGHTS and first["tokenizer_sha256"] == tokenizer.sha256
    assert first["sampling"] == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 0, "repetition_penalty": 1.0, "stop_ids": [],
        "max_new_tokens": 11, "seed": sample_seed(5, "r0", 0),
    }  # fmt: skip
    assert [message["role"] for message in first["messages"]] == ["user"]
    assert first["meta"] == {"n": 0, "prompt_id": "r0", "sample": 0}
    assert metrics["prompts"] == 5 and metrics["generations"] == metrics["kept"] == 10
    assert metrics["tokens"] == sum(len(line["completion_ids"]) for line in lines)
    assert metrics["finished_share"] == sum(line["finish"] == "stop" for line in lines) / 10
    assert metrics["tokens_per_second"] == pytest.approx(metrics["tokens"] / metrics["seconds"])
    assert "correct_share" not in metrics
    run(tokenizer, tmp_path, make_records(1, "fast") + make_records(1, "reasoning"), samples_per_prompt=1)
    assert ["/no_think" in tokenizer.decode(line["prompt_ids"]) for line in lines_of(tmp_path)] == [True, False]


def test_what_is_wrong_with_answers_is_counted_and_warned_about(tokenizer, tmp_path, capsys):
    """Whatever the batch and the part; what met NaN logits is no rollout."""
    span = [tokenizer.special[name] for name in ("[unused16]", "[unused17]")]
    good, end = tokenizer.encode("a b c"), [tokenizer.eos_id]
    scripts = [  # two answers to each prompt
        span + good + end, span + good + end,  # a copy
        span + end, span + tokenizer.encode("a b") * 8,  # empty; cut in a loop
        span, tokenizer.encode("a b c d e f") * 2 + end,  # cut without a text; twice is no loop
        None, span + good + end,  # NaN; equal to an answer to another prompt
        None, None,
    ]  # fmt: skip
    engine = SimpleNamespace(generate=lambda prompts, *_, **__: [made.pop(0) for _ in prompts])
    for size in (4, 1):
        made = [SimpleNamespace(ids=ids or end, finished=(ids or end)[-1:] == end, nan=ids is None) for ids in scripts]
        folder, settings = tmp_path / str(size), {"sampling": SamplingOptions(batch_size=2), "prompts_per_part": size}
        metrics = run(tokenizer, folder, make_records(5), engine=engine, **settings)
        assert metrics["flaws"] == {"truncated": 2, "empty": 2, "looping": 1, "nan": 3, "copies": 1}
        assert (metrics["generations"], metrics["kept"], len(lines_of(folder))) == (10, 7, 7)
        said = capsys.readouterr().out
        assert [name for name in FLAWS if f" {name};" in said] == ["empty", "looping", "nan"]
    made = [SimpleNamespace(ids=end, finished=False, nan=True)] * 4
    with pytest.raises(UserError, match="4 of 4"):
        run(tokenizer, tmp_path / "nan", make_records(2), engine=engine)


@pytest.mark.parametrize(
    ("ids", "loop"),
    [
        ([7] * 8, True), ([7] * 7, False), ([1, 2, 3] + [7] * 8, True), ([7] * 8 + [3], False),
        ([1, 2] * 4, True), ([9, *[1, 2, 3, 4] * 3], True), ([1, 2, 3, 4] * 3 + [1, 2], True),
        (list(range(20)) * 2, False), (list(range(20)) * 3, True), (list(range(50)), False), ([], False),
    ],
)  # fmt: skip
def test_a_loop_is_one_ngram_repeated_to_the_end(ids, loop):
    assert loops(ids) == loop


def test_trap_18_a_cut_generation_is_not_recorded_as_ended(tokenizer, tmp_path):
    run(tokenizer, tmp_path, make_records(12), engine=FakeEngine(tokenizer, cut=0.5))
    finishes = {"stop": 0, "length": 0}
    for rollout in read_rollouts(tmp_path / "rollouts.jsonl", tokenizer, keep_truncated=True):
        finishes[rollout.finish] += 1
        sample = to_sample(rollout, tokenizer)
        learned = sample.ids[sample.supervised]
        assert (learned[-1] == tokenizer.eos_id) == (rollout.finish == "stop")
        assert (learned == tokenizer.eos_id).sum() == (rollout.finish == "stop")
    assert finishes["stop"] > 3 and finishes["length"] > 3


def test_truncated_answers_can_be_left_out(tokenizer, tmp_path):
    metrics = run(tokenizer, tmp_path, make_records(12), engine=FakeEngine(tokenizer, cut=0.5), keep_truncated=False)
    lines = lines_of(tmp_path)
    assert {line["finish"] for line in lines} == {"stop"}
    assert metrics["kept"] == len(lines) < metrics["generations"] == 24
    assert metrics["finished_share"] == len(lines) / 24
    with pytest.raises(UserError, match="max_new_tokens"):
        run(tokenizer, tmp_path / "n", make_records(3), engine=FakeEngine(tokenizer, cut=1.1), keep_truncated=False)
    assert not (tmp_path / "n" / "rollouts.json").exists()


@pytest.mark.parametrize("dies_at", [0, 8, 9, 25])
def test_a_killed_run_goes_on_and_doubles_or_loses_nothing(tokenizer, tmp_path, dies_at):
    records = make_records(13)
    run(tokenizer, tmp_path / "whole", records)
    killed_run(tokenizer, tmp_path / "killed", records, dies_at)
    assert not (tmp_path / "killed" / "rollouts.jsonl").exists()
    engine = FakeEngine(tokenizer)
    metrics = run(tokenizer, tmp_path / "killed", records, engine=engine)
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
    assert engine.prompts == 26 - dies_at // 8 * 8, "finished parts of 4 prompts x 2 samples are generated once"
    assert metrics["generations"] == 26 and not (tmp_path / "killed" / "parts").exists()


def test_parts_of_other_settings_are_not_taken_over(tokenizer, tmp_path):
    records = make_records(8)
    killed_run(tokenizer, tmp_path, records, 9, seed=5)
    engine = FakeEngine(tokenizer)
    run(tokenizer, tmp_path, records, engine=engine, seed=6)
    assert engine.prompts == 16
    assert lines_of(tmp_path)[0]["sampling"]["seed"] == sample_seed(6, "r0", 0)


def test_a_finished_stage_is_not_generated_again_unless_its_file_changed(tokenizer, tmp_path):
    records = make_records(5)
    metrics = run(tokenizer, tmp_path, records)
    idle = FakeEngine(tokenizer)
    changed = {"prompts_per_part": 3, "limit": 5, "sampling": SamplingOptions(batch_size=2)}
    assert run(tokenizer, tmp_path, records, engine=idle, **changed) == metrics and idle.prompts == 0
    with open(tmp_path / "rollouts.jsonl", "a", encoding="utf-8") as file:
        file.write("{}\n")
    run(tokenizer, tmp_path, records, engine=idle)
    assert idle.prompts == 10 and len(lines_of(tmp_path)) == 10
    run(tokenizer, tmp_path, records, engine=idle, samples_per_prompt=1)
    assert idle.prompts == 15 and len(lines_of(tmp_path)) == 5


def test_results_do_not_depend_on_order_batch_or_part(tokenizer, tmp_path):
    records = make_records(9)
    run(tokenizer, tmp_path / "a", records, sampling=SamplingOptions(batch_size=2))
    run(tokenizer, tmp_path / "b", records[::-1], sampling=SamplingOptions(batch_size=64), prompts_per_part=7)
    by_id = [{line["id"]: line for line in lines_of(tmp_path / name)} for name in "ab"]
    assert by_id[0] == by_id[1]


def test_parts_are_whole_batches(tokenizer, tmp_path):
    sizes = []
    engine = FakeEngine(tokenizer)
    generate = engine.generate
    engine.generate = lambda prompts, *rest, **names: sizes.append(len(prompts)) or generate(prompts, *rest, **names)
    run(tokenizer, tmp_path, make_records(13), engine=engine, sampling=SamplingOptions(batch_size=10))
    assert sizes == [10, 10, 6]


def test_seeds_differ_by_run_record_and_sample():
    seeds = {sample_seed(s, r, i) for s in (0, 1) for r in ("r1", "r11", "1") for i in (0, 1, 11)}
    assert len(seeds) == 18
    expected = hashlib.sha256(b'[3,"gsm8k/7",2]').hexdigest()[:15]
    assert sample_seed(3, "gsm8k/7", 2) == int(expected, 16) == 141509195467041111, "equal in every process and release"


def test_correct_share_is_taken_over_what_can_be_checked(tokenizer, tmp_path):
    asked = []

    def check(record, completion):
        asked.append((record.id, completion.finished))
        return None if record.meta["n"] == 0 else record.meta["n"] % 2 == 1 and completion.finished

    metrics = run(tokenizer, tmp_path, make_records(5), engine=FakeEngine(tokenizer, cut=0.0), check=check)
    assert metrics["correct_share"] == 4 / 8 and len(asked) == 10 and all(finished for _, finished in asked)
    assert [line["meta"].get("correct") for line in lines_of(tmp_path)][::2] == [None, True, False, True, False]


def test_what_is_kept_is_decided_after_a_kill(tokenizer, tmp_path):
    """keep_truncated shapes the file, not the parts; parts of another size are not mixed in."""
    records = make_records(13)
    run(tokenizer, tmp_path / "whole", records, keep_truncated=False)
    killed_run(tokenizer, tmp_path / "killed", records, 9)
    killed = killed_run(tokenizer, tmp_path / "killed", records, 17, keep_truncated=False, prompts_per_part=8)
    engine = FakeEngine(tokenizer)
    run(tokenizer, tmp_path / "killed", records, engine=engine, keep_truncated=False)
    assert (killed.prompts, engine.prompts) == (17, 18)
    assert lines_of(tmp_path / "killed") == lines_of(tmp_path / "whole")
    idle = FakeEngine(tokenizer)
    run(tokenizer, tmp_path / "whole", records, engine=idle, keep_truncated=True)
    assert idle.prompts == 26 == len(lines_of(tmp_path / "whole")), "another file is asked for"


@pytest.mark.parametrize("others", [2, 3])
def test_ranks_share_the_parts_and_any_number_may_go_on(tokenizer, tmp_path, monkeypatch, others):
    """Rank 1 does its parts and is killed with the others, which had none; one process does the rest."""
    records = make_records(21)
    run(tokenizer, tmp_path / "one", records)

    def killed(_):
        raise KeyboardInterrupt

    engines = [FakeEngine(tokenizer), FakeEngine(tokenizer)]
    with monkeypatch.context() as patch:
        patch.setenv("RANK_ID", "1")
        patch.setenv("RANK_SIZE", str(others))
        patch.setattr(resumable.ranks, "gather", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tokenizer, tmp_path / "two", records, engine=engines[0])
    metrics = run(tokenizer, tmp_path / "two", records, engine=engines[1])
    mine = len(range(1, 6, others))  # of 6 parts of 4 prompts x 2 samples; the last one has one prompt
    assert [engine.prompts for engine in engines] == [mine * 8 - 6 * (others == 2), 42 - mine * 8 + 6 * (others == 2)]
    assert content(tmp_path / "two") == content(tmp_path / "one") and metrics["generations"] == 42


def test_what_the_user_can_get_wrong(tokenizer, tmp_path):
    for records, options, words in (
        (make_records(2) + make_records(1), {}, "r0"),
        ([], {}, "prompts"),
        (make_records(2), {"samples_per_prompt": 0}, "samples_per_prompt"),
        (make_records(2), {"sampling": SamplingOptions(temperature=0.0)}, "rollout.samples_per_prompt: 2"),
    ):
        with pytest.raises(UserError, match=words):
            run(tokenizer, tmp_path, records, **options)


@pytest.mark.slow
def test_the_real_engine_rolls_out_alike_in_any_part(ms_runtime, tokenizer, tmp_path):
    """Batch sizes are compared in tests/generation."""
    from mindspore_impl.generation.engine import Engine

    model = small_model(tokenizer.vocab_size)
    records, sampling = make_records(3) + make_records(2, "reasoning"), SamplingOptions(max_new_tokens=6, batch_size=2)
    found, engine = [], functools.cache(Engine)
    for name, prompts in (("a", 2), ("b", 5)):
        options = RolloutOptions(samples_per_prompt=2, prompts_per_part=prompts)
        job = RolloutJob(tokenizer, records, options, sampling, tmp_path / name, 3, WEIGHTS, model, make_engine=engine)
        metrics = run_rollout(job)
        assert metrics["generations"] == 10 and metrics["tokens"] <= 60
        rollouts = read_rollouts(tmp_path / name / "rollouts.jsonl", tokenizer, keep_truncated=True)
        found.append({rollout.id: rollout.completion_ids for rollout in rollouts})
    assert found[0] == found[1] and len(found[0]) == 10
    assert len({tuple(ids) for ids in found[0].values()}) > 5, "samples differ"
