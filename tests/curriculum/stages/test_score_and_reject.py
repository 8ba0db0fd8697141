"""Stages that make records: what is refused, what fingerprints follow, and one run from beginner to curriculum."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from mindspore_impl import files
from mindspore_impl.cli.train_mindformers import stage_files
from mindspore_impl.curriculum import runner
from mindspore_impl.curriculum.stages.context import RunContext
from mindspore_impl.curriculum.stages.score import ScoreStage
from mindspore_impl.data.options import ListProgramsSet
from mindspore_impl.errors import UserError
from tests.curriculum.conftest import changed as changed_by
from tests.curriculum.conftest import compose_quickly, plan, refusal, stage_file
from tests.data.small import labelled, trained_on

EXPERIMENT = "experiment=quickstart_curriculum"
STAGES = ("sft_reasoning", "shuffled", "easy_to_hard", "sometimes", "unsurprising", "own_answers")
SMALL = [
    EXPERIMENT,
    "runtime=cpu",
    "tokenizer.vocab_size=110",
    "data.sets.reasoning.count=30",
    "data.sets.validation_reasoning.count=4",
    "models.student.num_hidden_layers=1",
    "models.student.hidden_size=32",
    *(f"stages.{name}.train.max_steps=2" for name in STAGES),
    *(f"stages.{name}.evaluate=false" for name in STAGES),
    "stages.score.rollouts=null",  # a model that has learned nothing answers nothing right
]


def test_records_that_are_several_samples_are_counted_and_not_scored(tmp_path, capsys):
    """Where the template forgets reasoning, each turn of the assistant is a sample, and a record has no one loss."""
    one, *others = labelled(20, "fast")
    records = [one, replace(one, id="several", messages=one.messages * 2)]
    tokenizer = trained_on([one, *others], tmp_path, 110)
    tokenizer.template = replace(tokenizer.template, forgets_reasoning=True)
    context = RunContext(None, tmp_path, {}, tokenizer, {("records", "mine"): records})
    assert [sample.record_id for sample in context.samples("mine")] == [one.id, "several", "several"]
    assert {"2", "3"} <= set(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="stages.one.set: mine"):
        ScoreStage(set="mine").run(context, SimpleNamespace(name="one"), tmp_path)


def run(folder, *overrides):
    return runner.run(compose_quickly(*SMALL, f"run_dir={folder}", *overrides))


def metrics_of(folder, name):
    return stage_file(folder, name)["metrics"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("data.sets.scored.stage=scoer", "data.sets.scored.stage: 'scoer' 'score'"),
        ("data.sets.scored.stage=answers", "data.sets.scored.stage: 'answers' records"),
        ("order=[sft_reasoning,shuffled,score] compare=[]", "data.sets.scored.stage: 'score' 'shuffled' order"),
        ("order=[sft_reasoning,shuffled] compare=[]", "data.sets.scored.stage: 'score' order"),
        ("data.sets.scored.stage=./none.jsonl", "data.sets.scored.stage: ./none.jsonl"),
        ("data.sets.scored.path=./none.jsonl", "~data.sets.scored.path"),
        ("data.sets.scored_sometimes.keep.low=2", "data.sets.scored_sometimes.keep: low=2.0 high=1.0"),
        ("data.sets.scored.keep.bucket=esay", "data.sets.scored.keep.bucket: 'esay' 'easy'"),
        ("stages.score.set=''", "stages.score.set: ''"),
        ("stages.score.sequence_length=99999", "stages.score.sequence_length: 99999 models.student 4096"),
        ("stages.score.rollouts=right", "stages.score.rollouts: 'right' rollouts"),
        ("stages.right.rollouts=''", "stages.right.rollouts:"),
        ("stages.answers.rollout.keep_truncated=false", "stages.answers.rollout.keep_truncated=true 'answers'"),
        ("tokenizer.train_on=[scored]", "tokenizer.train_on: 'scored' 'score'"),
        ("evaluation.accuracy=[right]", "'right' 'eval_sft_reasoning' order"),
        ("stages.shuffled.data.order=easy_first", "stages.shuffled.data.order: 'easy_first' 'easy_to_hard'"),
    ],
)
def test_what_cannot_work_is_refused(overrides, words):
    message = refusal(EXPERIMENT, *overrides.split())
    assert [word for word in words.split() if word not in message] == [], message


def test_what_a_set_is_made_of_reaches_who_trains_on_it():
    def changed(override):
        return changed_by(override, base=(EXPERIMENT,))

    assert plan(EXPERIMENT)["shuffled"].inputs == {"init": "sft_reasoning", "set scored": "score"}
    rivals = [*STAGES[1:], *(f"eval_{name}" for name in STAGES[1:])]
    of_scores = {name for name in rivals if "own_answers" not in name}
    assert changed("stages.score.sequence_length=64") == {"score", *of_scores}
    assert changed("stages.answers.sampling.temperature=0.7") == {"answers", "score", "right", *rivals}
    assert changed("stages.score.score.records_per_part=7") == set()
    assert changed("stages.easy_to_hard.data.order=hard_to_easy") == {"easy_to_hard", "eval_easy_to_hard"}
    assert changed("data.sets.scored_unsurprising.keep.high=0.7") == {"unsurprising", "eval_unsurprising"}


def test_weights_of_another_model_are_refused(tmp_path, ms_runtime):
    import mindspore as ms

    from mindspore_impl.model.pangu import PanguForCausalLM
    from tests.model.small_models import small_options

    ms.save_checkpoint(PanguForCausalLM(small_options()), str(tmp_path / "other"), format="safetensors")
    (path,) = tmp_path.glob("other*")
    with pytest.raises(UserError, match="other.safetensors"):
        run(tmp_path / "run", "order=[score]", "compare=[]", f"stages.score.init={path}", "stages.score.model=student")


@pytest.mark.slow
def test_a_scored_set_is_trained_on_in_a_band_and_in_order(tmp_path, ms_runtime, capsys):
    folder = run(tmp_path / "run", "order=[sft_reasoning,score,easy_to_hard]", "compare=[]",
                 "data.sets.scored.keep={field:difficulty_loss,bucket:hard}")  # fmt: skip
    (path,) = folder.glob("stages/*_score/records.jsonl")
    losses = [line["meta"]["difficulty_loss"] for _, line in files.read_jsonl(path)]
    assert len(losses) == 30 and len(set(losses)) > 20 and min(losses) > 0
    told = metrics_of(folder, "score")
    assert told["records"] == 30 and list(told["difficulty"]) == ["difficulty_length", "difficulty_loss"]
    data = metrics_of(folder, "easy_to_hard")["data"]
    change = data["selection"]["scored"]
    assert (change["before"], change["after"]) == (30, 10)
    assert change["mean_after"] == pytest.approx(sum(sorted(losses)[20:]) / 10)
    means = data["order"]["means"]
    assert len(means) == 10 and sum(means[:5]) < sum(means[5:]) and data["order"]["by"] == "difficulty_loss"
    assert "scored: 10 of 30 records kept; mean difficulty_loss" in capsys.readouterr().out
    assert "easy_to_hard keeps 10 of 30 records of scored" in (folder / "report.html").read_text()
    # Who trains the stage elsewhere is given the file that the score stage made.
    config = compose_quickly(*SMALL, f"run_dir={folder}", "order=[sft_reasoning,score,easy_to_hard]", "compare=[]")
    assert stage_files(config, "easy_to_hard")[2].sets["scored"].path == str(path)


@pytest.mark.slow
def test_the_whole_experiment_with_answers(tmp_path, ms_runtime):
    """Over answers that another engine could have written: of each three problems none, one or both are right."""
    from mindspore_impl.data import list_programs

    lines = []
    made = ListProgramsSet(skip=20000, count=30, thinking="reasoning", seed=1)
    for index, record in enumerate(list_programs.generate(made)):
        label = record.messages[-1]
        for sample in range(2):
            answer = label.content if index % 3 > sample else "a"
            said = {"text": f"[unused16]{label.reasoning}[unused17]{answer}", "finish": "stop", "thinking": "reasoning"}
            meta = {**record.meta, "prompt_id": record.id}
            messages = [{"role": "user", "content": record.messages[0].content}]
            lines.append({"id": f"{record.id}#{sample}", "messages": messages, "meta": meta, **said})
    files.write_jsonl(tmp_path / "answers.jsonl", lines)
    given = [f"stages.{name}.rollouts={tmp_path / 'answers.jsonl'}" for name in ("score", "right")]
    folder = run(
        tmp_path / "run", *given, "order=[sft_reasoning,score,right,sometimes,unsurprising,own_answers]", "compare=[]"
    )
    assert metrics_of(folder, "sometimes")["data"]["selection"]["scored_sometimes"]["after"] == 10
    right = metrics_of(folder, "right")
    counts = [right[key] for key in ("prompts", "records", "without_right_answer", "right_share")]
    assert counts == [30, 20, 10, 0.5]
    assert metrics_of(folder, "own_answers")["data"]["samples"] == 20
    assert metrics_of(folder, "unsurprising")["data"]["selection"]["scored_unsurprising"]["after"] == 24
