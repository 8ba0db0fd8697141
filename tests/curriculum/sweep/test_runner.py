"""Which trials run, what is recorded of them, and what a sweep leaves alone. Trials are stand-ins here."""

import os
import sys
import time

import pytest

from mindspore_impl import files
from mindspore_impl.curriculum.sweep import runner, trial_process
from mindspore_impl.curriculum.sweep.trial_process import TrialProcess, stop_all
from mindspore_impl.distributed import processes, ranks
from mindspore_impl.errors import JobFailed, UserError
from tests.curriculum.sweep.conftest import WEIGHT


def test_every_combination_runs_once_with_its_own_configuration(sweep):
    trials = sweep("seed=1,2", f"{WEIGHT}=0.5,0.9")
    assert sweep.calls() == [
        "001_seed=1_kd_weight=0.5",
        "002_seed=1_kd_weight=0.9",
        "003_seed=2_kd_weight=0.5",
        "004_seed=2_kd_weight=0.9",
    ]
    assert [trial["status"] for trial in trials] == ["finished"] * 4
    assert [trial["metric"] for trial in trials] == pytest.approx([0.98, 0.9, 0.97, 0.89])
    assert trials[3]["overrides"] == ["seed=2", f"{WEIGHT}=0.9"] and trials[3]["group"] == "kd_weight=0.9"
    text = (sweep.folder / trials[3]["folder"] / "config.yaml").read_text()
    assert "sweep: null" in text and f"cache: {sweep.folder / 'cache'}" in text


def test_same_command_again_runs_nothing_and_more_values_run_alone(sweep):
    sweep("seed=1,2")
    sweep.calls()
    sweep("seed=1,2")
    assert sweep.calls() == []
    trials = sweep("seed=0,1,2,3")
    assert sweep.calls() == ["003_seed=0", "004_seed=3"]
    assert [trial["number"] for trial in trials] == [1, 2, 3, 4]


def test_failure_is_recorded_and_the_sweep_goes_on_and_tries_again(sweep):
    sweep(f"{WEIGHT}=0.5,0.55")
    sweep.calls()
    (sweep.folder / "broken").touch()
    with pytest.raises(JobFailed, match="(?s)003_kd_weight=0.9: data.train: "):
        sweep(f"{WEIGHT}=0.5,0.9,0.6")
    assert sweep.calls() == ["003_kd_weight=0.9", "004_kd_weight=0.6"]
    states = {trial["name"]: (trial["status"], trial["error"]) for trial in sweep.record()["trials"]}
    assert states["kd_weight=0.9"] == ("failed", "data.train: no such file")
    assert states["kd_weight=0.6"] == ("finished", None)
    (sweep.folder / "broken").unlink()
    trials = sweep(f"{WEIGHT}=0.5,0.9,0.6")
    assert sweep.calls() == ["003_kd_weight=0.9"]
    assert [(trial["status"], trial["error"]) for trial in trials] == [("finished", None)] * 4


def test_trial_whose_data_changed_runs_again(sweep, tmp_path):
    path = tmp_path / "fast.jsonl"
    path.write_text(
        '{"id": "1", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    words = ["~data.sets.fast", f"+data.sets.fast={{source:records,path:{path}}}", "seed=1,2"]
    sweep(*words)
    sweep.calls()
    sweep(*words)
    assert sweep.calls() == []
    path.write_text(path.read_text().replace('"b"', '"c"'))
    sweep(*words)
    assert sweep.calls() == ["001_seed=1", "002_seed=2"]


def test_metric_that_a_trial_does_not_produce_fails_it(sweep):
    with pytest.raises(JobFailed, match="'teacher.loss'"):
        runner.run_sweep(["seed=1", "sweep.metric=teacher.loss", f"run_dir={sweep.folder}"])
    assert sweep.record()["trials"][0]["status"] == "failed"


SHORT = "order=[sft_reasoning] compare=[]"
OPTUNA = "sweep=optuna_example sweep.metric=final.accuracy.test_fast"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("stages.teacher.train.max_stepz=1,2", "stages.teacher.train.max_stepz: 'max_steps'"),
        ("run_dir=a,b", "run_dir=a,b"),
        ("seed=choice()", "seed=choice()"),
        ("seed=range(3,1)", "seed=range(3,1)"),
        ("seed=1,a", "seed=a: seed: 'a'"),
        ("seeds=[1,2]", "seeds: seed=1,2 seeds=[]"),
        ("sweep.metric=distil_fast.accuracy.test_fast seed=1,2", "sweep.metric: 'distill_fast.accuracy.test_fast'"),
        ("sweep.metric=distill_fast.accuracy.test seed=1,2", "sweep.metric: 'distill_fast.accuracy.test'"),
        ("sweep.metric=distill_fast.acuracy.test_fast seed=1,2", "'distill_fast.accuracy.test_fast'"),
        (f"{WEIGHT}=interval(0,1)", f"{WEIGHT}=interval(0.0,1.0) sweep.optuna.sampler"),
        (f"seed=1,2 {SHORT} stages.teacher.train.max_steps=1,2", "stages.teacher.train.max_steps: 'teacher' `order`"),
        ("stages.sft_fast.train.logging_steps=10,20", "stages.sft_fast.train.logging_steps: logging_steps=20"),
        (f"seed=1,2 {WEIGHT}=1,1.0", f"{WEIGHT}: configuration"),
        ("runtime.threads=1,2", "runtime.threads:"),
        ("sweep.trials={a:['seed=0'],b:['seed=0']}", "sweep.trials: 'a' 'b'"),
        (f"{OPTUNA} {SHORT} seed=1,2", f"{WEIGHT} 'distill_fast' `order`"),
        (f"{OPTUNA} {SHORT} seed=1,2 ~sweep.params stages.sft_reasoning.train.logging_steps=1,2", "logging_steps:"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(sweep, overrides, words):
    with pytest.raises(UserError) as caught:
        runner.run_sweep([f"run_dir={sweep.folder}", *overrides.split()])
    assert [word for word in words.split() if word not in str(caught.value)] == [], str(caught.value)
    assert not sweep.folder.exists()


def test_folder_of_another_sweep_is_refused(sweep):
    sweep("seed=1,2", "runtime.threads=1")
    before = sweep.record()
    for override, named in ((f"{WEIGHT}=0.5", WEIGHT), (f"{WEIGHT}=0.5,0.9", WEIGHT), ("name=other", "other")):
        with pytest.raises(UserError, match=f"run_dir: .*{named}"):
            sweep("seed=1,2", override)
    assert sweep.record() == before
    sweep("seed=1,2", "runtime.threads=2")  # how it runs does not make it another


def test_folder_of_a_single_run_is_refused(sweep):
    files.write_text(sweep.folder / "config.yaml", "name: quickstart\n")
    with pytest.raises(UserError, match=r"run_dir: .*sweep\.json"):
        sweep("seed=1,2")
    assert [path.name for path in sweep.folder.iterdir()] == ["config.yaml"]


def test_two_processes_do_not_share_a_sweep(sweep):
    sweep("seed=1")
    with files.try_lock(sweep.folder / ".lock"), pytest.raises(UserError, match=f"run_dir: .*{sweep.folder.name}"):
        sweep("seed=1")


def test_jobs_run_at_the_same_time(sweep):
    sweep("seed=1,2")
    sweep.calls()
    (sweep.folder / "meet").touch()  # each of the next two waits for the other
    trials = sweep("seed=1,2,3,4", jobs=2)
    assert [trial["status"] for trial in trials] == ["finished"] * 4


def test_a_stop_ends_the_trials_and_the_same_command_continues(sweep, monkeypatch):
    polls = iter(range(1000))

    def stop_later():
        if next(polls) > 3:
            raise ranks.Stopped(agreed=True)

    sweep("seed=1,2")
    (sweep.folder / "slow").touch()
    monkeypatch.setattr(ranks, "check_stop", stop_later)
    started = []
    begin = TrialProcess.__init__
    monkeypatch.setattr(TrialProcess, "__init__", lambda self, *a: (begin(self, *a), started.append(self))[0])
    with pytest.raises(ranks.Stopped):
        sweep("seed=1,2,3,4")
    (process,) = started
    assert not processes.is_alive(process.process.pid)
    states = [(trial["status"], trial["error"]) for trial in sweep.record()["trials"]]
    assert states == [("finished", None)] * 2 + [("failed", "stopped before its end"), ("waiting", None)]


def started(tmp_path, monkeypatch, script: str) -> TrialProcess:
    monkeypatch.setattr(trial_process, "command_of", lambda folder, plugins: ["sh", "-c", script, "sh", str(folder)])
    return TrialProcess(tmp_path)


def child_of(tmp_path) -> int:
    until = time.monotonic() + 20
    while not (tmp_path / "child").is_file() or not (tmp_path / "child").read_text().strip():
        assert time.monotonic() < until
        time.sleep(0.01)
    return int((tmp_path / "child").read_text())


def test_stopping_ends_the_whole_group_even_one_that_does_not_heed(tmp_path, monkeypatch):
    script = "trap '' TERM; sh -c 'trap \"\" TERM; while :; do sleep 1; done' & echo $! > $1/child; wait; sleep 60"
    trial = started(tmp_path, monkeypatch, script)
    child = child_of(tmp_path)
    stop_all([trial], patience=0.2)
    gone_soon(child)
    assert not processes.is_alive(trial.process.pid)


def gone_soon(pid: int) -> None:
    until = time.monotonic() + 20
    while processes.is_alive(pid):
        assert time.monotonic() < until, "left behind"
        time.sleep(0.01)


def test_what_a_trial_leaves_behind_is_ended(tmp_path, monkeypatch):
    trial = started(tmp_path, monkeypatch, "sleep 60 & echo $! > $1/child; echo said; exit 3")
    child = child_of(tmp_path)
    while not trial.ended:
        time.sleep(0.01)
    gone_soon(child)
    assert trial.fault() == "exit code 3: said"


def test_fault_is_the_message_of_the_trial(tmp_path, monkeypatch):
    trial = started(tmp_path, monkeypatch, "echo step 3; echo 'error: models.student:'; echo '  too small'; exit 2")
    while not trial.ended:
        time.sleep(0.01)
    assert trial.fault() == "models.student:\n  too small"


def test_killed_trial_says_so(tmp_path, monkeypatch):
    trial = started(tmp_path, monkeypatch, "kill -9 $$")
    while not trial.ended:
        time.sleep(0.01)
    assert trial.fault() == "killed by signal 9: no output"


def test_trial_command_is_this_package(tmp_path):
    command = trial_process.command_of(tmp_path)
    assert command[0] == sys.executable and command[-2:] == ["--resume", str(tmp_path)]
    assert os.access(command[0], os.X_OK)
