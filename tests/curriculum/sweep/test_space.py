"""The grammar of a sweep's command line, and how its trials are made of it."""

import re

import pytest

from mindspore_impl.curriculum.sweep.metric import metric_of
from mindspore_impl.curriculum.sweep.space import Interval, Space, read_space
from mindspore_impl.curriculum.sweep.trials import plan_sweep
from mindspore_impl.errors import UserError
from tests.curriculum.sweep.conftest import WEIGHT


@pytest.mark.parametrize(
    ("override", "key", "values"),
    [
        ("seed=1,2,3", "seed", ["1", "2", "3"]),
        ("++seed=range(1,4)", "seed", ["1", "2", "3"]),
        ("seed=1,2,1", "seed", ["1", "2"]),
        ("a.rate=1e-3,0.01", "a.rate", ["0.001", "0.01"]),
        ("a.mixture={reasoning:3,fast:1},{fast:1}", "a.mixture", ["{reasoning:3,fast:1}", "{fast:1}"]),
        ("order=[a,b],[c]", "order", ["[a,b]", "[c]"]),
        ("name='a,b',c", "name", ["'a,b'", "c"]),
        ("objective@s.x.objective=glob(*kd*)", "objective@s.x.objective", ["kd_only", "topk_kd"]),
        ("a.b=null,true", "a.b", ["null", "True"]),
    ],
)
def test_choices_are_what_hydra_reads(override, key, values):
    assert read_space([override]) == Space(choices={key: values})


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("interval(0.1,1)", Interval(0.1, 1.0)),
        ("int(interval(1,8))", Interval(1, 8, whole=True)),
        ("tag(log,interval(1e-4,1e-2))", Interval(1e-4, 1e-2, log=True)),
        ("int(tag(log,interval(1,64)))", Interval(1, 64, log=True, whole=True)),
    ],
)
def test_intervals(text, interval):
    space = read_space([f"a.b={text}"])
    assert space == Space(intervals={"a.b": interval})
    assert read_space([f"a.b={interval}"]) == space, "its text reads back"


@pytest.mark.parametrize("text", ["interval(2,1)", "tag(log,interval(0,1))", "interval(1,1)"])
def test_impossible_interval(text):
    with pytest.raises(UserError, match=re.escape(f"a.b={text}")):
        read_space([f"a.b={text}"])


def test_last_word_for_a_key_counts():
    assert read_space(["seed=1,2", "seed=3"]) == Space(fixed=["seed=3"])


def test_short_keys_tell_keys_apart():
    space = Space(
        choices={key: ["1"] for key in ("seed", "stages.a.train.max_steps", "stages.b.train.max_steps", "m@x.y")}
    )
    assert list(space.short_keys().values()) == ["seed", "a.train.max_steps", "b.train.max_steps", "y"]


def test_named_trials_times_params_and_the_command_line_wins(tmp_path):
    named = "{one:['seed=0','order=[teacher]'],two:['order=[sft_reasoning]']}"
    words = ["sweep=optuna_example", "sweep.optuna=null", "sweep.metric=final.accuracy.test_fast", "compare=[]"]
    words += ["~sweep.params", "+sweep.params={seed:'1,2'}", f"sweep.trials={named}"]
    plan = plan_sweep([*words, "seed=7,8", f"run_dir={tmp_path / 'sweep'}"])
    assert [trial.name for trial in plan.wanted] == ["one, seed=0", "two, seed=7", "two, seed=8"]
    assert [trial.group for trial in plan.wanted] == ["one", "two", "two"]
    composed = plan.configs[plan.wanted[2].number]
    assert composed.seed == 8 and composed.order == ["sft_reasoning"]
    assert composed.run_dir == str(tmp_path / "sweep" / "trials" / "003_two_seed=8") and composed.sweep is None
    assert plan.configs[1].seed == 0
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_has_a_folder_of_its_own_and_can_do_without_the_cache():
    plan = plan_sweep(["seed=1,2", "runtime.cache=null"])
    assert str(plan.folder) == "outputs/quickstart_sweep"
    assert plan.configs[1].runtime.cache is None


def test_grid_is_every_combination_up_to_n_trials():
    words = [f"{WEIGHT}=0.1,0.2", "seed=1,2", "sweep=optuna_example", "sweep.optuna.sampler=grid"]
    words += ["sweep.params={stages.distill_fast.objective.kd_weight:'1'}"]
    space = "stages.distill_fast.optimizer.learning_rate=1e-3"
    with pytest.raises(UserError, match=r"learning_rate=.*sweep\.optuna\.sampler"):
        plan_sweep(words)
    words = [f"{WEIGHT}=0.1,0.2", "seed=1,2", space, "sweep=optuna_example", "sweep.optuna.sampler=grid"]
    plan = plan_sweep([*words, "sweep.optuna.n_trials=5"])
    assert len(plan.wanted) == 5 and not plan.proposes


def test_what_some_trials_differ_in_is_varied():
    """How a run executes where nothing is shared or results change, and keys that count with one order of several."""
    assert len(plan_sweep(["runtime.threads=1,2", "runtime.cache=null"]).wanted) == 2
    assert len(plan_sweep(["runtime.precision=fp32,bf16"]).wanted) == 2
    words = ["order=[sft_reasoning],[sft_reasoning,sft_fast]", "compare=[]", "stages.sft_fast.train.max_steps=1,2"]
    optuna = ["sweep=optuna_example", "~sweep.params", "sweep.metric=sft_reasoning.accuracy.test_fast"]
    assert plan_sweep([*words, *optuna]).proposes
    with pytest.raises(UserError, match=r"stages\.sft_fast\.train\.max_steps: .*'sft_fast' is not in `order`"):
        plan_sweep(words)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep.optuna={n_trials:3}", f"{WEIGHT}=interval(0,1)"], "sweep.metric: "),
        (["sweep=optuna_example", "sweep.trials={a:[]}"], "sweep.trials: "),
        (["sweep=optuna_example", "sweep.optuna.n_trials=0"], "sweep.optuna.n_trials: 0"),
        (["sweep=optuna_example", "sweep.optuna.sampler=tpr"], "'tpe'"),
        (["sweep=optuna_exampel", "seed=1,2"], "'optuna_example'"),
    ],
)
def test_impossible_sweeps(overrides, message):
    with pytest.raises(UserError) as caught:
        plan_sweep(overrides)
    assert message in str(caught.value)


def test_final_is_the_stage_evaluated_last():
    found = {share: {"accuracy": {"test_fast": {"accuracy": share}}} for share in (0.25, 0.5)}
    stages = [
        {"name": "eval_sft", "measured": "sft", "metrics": found[0.25]},
        {"name": "eval_kd", "measured": "kd", "metrics": found[0.5]},
        {"name": "package", "measured": "", "metrics": {}},
    ]
    assert metric_of({"stages": stages}, "final.accuracy.test_fast") == 0.5
    with pytest.raises(UserError, match="'final.loss'"):
        metric_of({"stages": stages}, "final.loss")
    plan_sweep(["seed=1,2", "sweep.metric=final.perplexity.validation_fast"])
    with pytest.raises(UserError, match="'final.accuracy.tset_fast'"):
        plan_sweep(["seed=1,2", "sweep.metric=final.accuracy.tset_fast"])


def test_metric_is_a_path_in_a_stages_metrics():
    evaluation = {"accuracy": {"test_fast": {"accuracy": 0.5, "low": 0.4}}, "perplexity": {"v": {"perplexity": 3.0}}}
    metrics = {
        "stages": [
            {"name": "sft", "metrics": {"loss": 0.25, "data": {"efficiency": 0.9, "bad": None}}},
            {"name": "eval_sft", "measured": "sft", "metrics": evaluation},
        ]
    }
    for name, value in {
        "sft.accuracy.test_fast": 0.5, "eval_sft.accuracy.test_fast": 0.5, "sft.perplexity.v": 3.0, "sft.loss": 0.25,
        "sft.data.efficiency": 0.9, "sft.accuracy.test_fast.low": 0.4,
    }.items():  # fmt: skip
        assert metric_of(metrics, name) == value
    for name in ("sft.data.bad", "sft.data", "sft.accuracy.other", "sft", "kd.loss", "sft.loss.more"):
        with pytest.raises(UserError, match=f"'{name}'"):
            metric_of(metrics, name)
