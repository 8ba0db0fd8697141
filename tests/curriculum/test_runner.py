"""What runs, what is skipped, what resumes; and which run directories are refused. Stages are stand-ins here."""

import fcntl
import json
import shutil
import time

import pytest

from mindspore_impl import files
from mindspore_impl.curriculum import configuration, runner
from mindspore_impl.curriculum.stages import KINDS
from mindspore_impl.errors import UserError

SMALL = [
    *(f"data.sets.{name}.count=60" for name in ("teacher_reasoning", "teacher_fast", "reasoning", "fast")),
    "tokenizer.vocab_size=110",
]


@pytest.fixture
def calls(monkeypatch, ms_runtime):
    """Replace every stage kind by a recorder; -> the names of the stages that ran."""
    names = []

    def record(stage, context, planned, folder):
        names.append(planned.name)
        (folder / "result.txt").write_text(planned.fingerprint)
        for name in ("checkpoints/LATEST", "rollouts.jsonl"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("")
        (folder / "store").mkdir(exist_ok=True)
        (folder / "store" / "shard").write_text("")
        (folder / "store" / "manifest.json").write_text('{"shards": [{"file": "shard"}]}')
        return {"tokens": 7}

    for kind in KINDS.values():
        monkeypatch.setattr(kind, "run", record)
    return names


def run(folder, *overrides):
    return runner.run(configuration.compose([*SMALL, f"run_dir={folder}", *overrides]))


def stage_file(folder, name):
    (path,) = folder.glob(f"stages/[0-9][0-9]_{name}/stage.json")
    return path


def test_first_run_runs_all_and_second_none(tmp_path, calls):
    run(tmp_path / "run")
    assert len(calls) == 12 and calls[0] == "teacher" and calls[-1] == "eval_distill_fast"
    run(tmp_path / "run")
    assert len(calls) == 12
    stage = json.loads(stage_file(tmp_path / "run", "teacher").read_text())
    assert stage["status"] == "finished" and stage["tokens"] == 7


def test_changed_stage_runs_again_with_its_dependants_and_keeps_the_old(tmp_path, calls):
    folder = run(tmp_path / "run")
    del calls[:]
    run(folder, "stages.capture_fast.capture.top_k=3")
    assert calls == ["capture_fast", "distill_fast", "eval_distill_fast"]
    assert len(list((folder / "replaced").iterdir())) == 3
    assert all((old / "result.txt").is_file() for old in (folder / "replaced").iterdir())


def test_interrupted_stage_resumes_in_its_folder(tmp_path, calls, monkeypatch):
    def fail(stage, context, planned, folder):
        (folder / "half.txt").write_text("kept")
        raise KeyboardInterrupt

    working = KINDS["distill"].run
    monkeypatch.setattr(KINDS["distill"], "run", fail)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    assert json.loads(stage_file(tmp_path / "run", "distill_fast").read_text())["status"] == "running"
    monkeypatch.setattr(KINDS["distill"], "run", working)
    del calls[:]
    run(tmp_path / "run")
    assert calls == ["distill_fast", "eval_distill_fast"]
    assert stage_file(tmp_path / "run", "distill_fast").with_name("half.txt").read_text() == "kept"


def test_interrupted_time_is_counted(tmp_path, calls, monkeypatch):
    def fail(stage, context, planned, folder):
        time.sleep(0.2)
        raise UserError("stop")

    working = KINDS["distill"].run
    monkeypatch.setattr(KINDS["distill"], "run", fail)
    with pytest.raises(UserError, match="stop"):
        run(tmp_path / "run")
    monkeypatch.setattr(KINDS["distill"], "run", working)
    run(tmp_path / "run")
    assert json.loads(stage_file(tmp_path / "run", "distill_fast").read_text())["seconds"] >= 0.2


@pytest.mark.parametrize(
    ("stage", "result"),
    [("teacher", "checkpoints/LATEST"), ("rollout_fast", "rollouts.jsonl"), ("capture_fast", "store/shard")],
)
def test_stage_whose_result_was_removed_runs_again(tmp_path, calls, stage, result):
    folder = run(tmp_path / "run")
    del calls[:]
    (stage_file(folder, stage).parent / result).unlink()
    run(folder)
    assert calls == [stage]


def test_report_does_not_hide_what_stopped_the_run(tmp_path, calls, monkeypatch):
    def fail(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(KINDS["capture"], "run", fail)
    monkeypatch.setattr(runner, "_write_report", lambda run_dir: 1 / 0)
    with pytest.raises(UserError, match="the disk is full"):
        run(tmp_path / "run")


def test_unscorable_record_is_found_before_the_first_stage(tmp_path, calls):
    path = tmp_path / "test.jsonl"
    path.write_text(
        '{"id": "r7", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    with pytest.raises(UserError, match="r7"):
        run(tmp_path / "run", "data.sets.test_fast.source=records", f"data.sets.test_fast.path={path}",
            "~data.sets.test_fast.split", "data.sets.test_fast.count=1")  # fmt: skip
    assert calls == []


def test_renumbered_stage_keeps_its_result(tmp_path, calls):
    folder = run(tmp_path / "run")
    del calls[:]
    run(folder, "order=[sft_reasoning,sft_fast]", "compare=[]")
    assert calls == []
    assert (folder / "stages" / "01_sft_reasoning" / "result.txt").is_file()


def test_directory_of_another_experiment_is_refused(tmp_path, calls):
    folder = run(tmp_path / "run")
    before = (folder / "config.yaml").read_text()
    with pytest.raises(UserError, match="holds experiment 'quickstart', not 'other'; choose another run_dir"):
        run(folder, "name=other")
    assert (folder / "config.yaml").read_text() == before


def test_foreign_directory_is_refused(tmp_path, calls):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and holds no config.yaml"):
        run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_file_as_run_directory_is_refused(tmp_path, calls):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        run(tmp_path / "file")


def test_two_processes_do_not_share_a_run(tmp_path, calls):
    folder = run(tmp_path / "run")
    with open(folder / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is running"):
            run(folder)


def test_tokenizer_is_trained_once_and_anew_when_its_data_change(tmp_path, calls):
    folder = run(tmp_path / "run")
    path = folder / "tokenizer" / "tokenizer.model"
    before = (files.sha256_file(path), path.stat().st_mtime_ns)
    run(folder)
    assert (files.sha256_file(path), path.stat().st_mtime_ns) == before
    run(folder, "tokenizer.vocab_size=111")
    assert files.sha256_file(path) != before[0]
    assert calls.count("teacher") == 2


def test_seeds_run_in_folders_of_their_own(tmp_path, calls, monkeypatch):
    written = {}
    monkeypatch.setattr(
        "mindspore_impl.report.seeds_report.write_seeds_report",
        lambda folders, folder, compare: written.update(folders=folders, compare=compare),
    )
    folder = run(tmp_path / "run", "seeds=[4,5]")
    assert calls.count("teacher") == 2
    assert list(written["folders"]) == [4, 5] and written["compare"] == ("distill_fast", "control")
    configs = [files.read_json(stage_file(folder / f"seed_{seed}", "teacher"))["seed"] for seed in (4, 5)]
    assert configs == [4, 5]


def test_copied_run_directory_is_the_same_run(tmp_path, calls):
    """A finished run can be moved: nothing in it points to its old place."""
    folder = run(tmp_path / "run")
    shutil.copytree(folder, tmp_path / "copy")
    del calls[:]
    run(tmp_path / "copy")
    assert calls == []


def test_second_run_takes_shared_stages_from_the_cache(tmp_path, calls):
    cache = f"runtime.cache={tmp_path / 'cache'}"
    first = run(tmp_path / "one", cache)
    del calls[:]
    second = run(tmp_path / "two", cache, "stages.capture_fast.capture.top_k=3")
    assert calls == ["capture_fast", "distill_fast", "eval_distill_fast"]
    taken, computed = (json.loads(stage_file(run, "sft_fast").read_text()) for run in (second, first))
    assert set(taken["cache"]) == {"seconds"} and "cache" not in computed
    assert (taken["status"], taken["tokens"], taken["metrics"]) == ("finished", 7, {"tokens": 7})
    assert taken["inputs"] == computed["inputs"] and taken["fingerprint"] == computed["fingerprint"]
    assert (second / "stages" / "03_sft_reasoning" / "checkpoints" / "LATEST").is_file()
    run(tmp_path / "two", cache, "stages.capture_fast.capture.top_k=3")
    assert len(calls) == 3, "what was taken is finished"


def test_changed_or_removed_result_comes_from_the_cache(tmp_path, calls):
    cache = f"runtime.cache={tmp_path / 'cache'}"
    folder = run(tmp_path / "run", cache)
    run(folder, cache, "stages.capture_fast.capture.top_k=3")
    del calls[:]
    run(folder, cache)
    assert calls == []
    assert len(list((folder / "replaced").iterdir())) == 6
    assert "cache" in json.loads(stage_file(folder, "capture_fast").read_text())
    (stage_file(folder, "rollout_fast").parent / "rollouts.jsonl").unlink()
    run(folder, cache)
    assert calls == [] and (stage_file(folder, "rollout_fast").parent / "rollouts.jsonl").is_file()


def test_interrupted_stage_is_not_kept_and_resumes(tmp_path, calls, monkeypatch):
    def fail(stage, context, planned, folder):
        (folder / "half.txt").write_text("kept")
        raise UserError("stop")

    cache, working = f"runtime.cache={tmp_path / 'cache'}", KINDS["distill"].run
    monkeypatch.setattr(KINDS["distill"], "run", fail)
    with pytest.raises(UserError, match="stop"):
        run(tmp_path / "run", cache)
    monkeypatch.setattr(KINDS["distill"], "run", working)
    del calls[:]
    run(tmp_path / "run", cache)
    assert calls == ["distill_fast", "eval_distill_fast"]
    assert stage_file(tmp_path / "run", "distill_fast").with_name("half.txt").read_text() == "kept"


def test_what_a_killed_writer_left_goes_at_the_next_start(tmp_path, calls):
    folder = run(tmp_path / "run")
    left = next(folder.glob("stages/*_teacher")) / ".package.x1.tmp"
    left.mkdir()
    (left / "half").write_text("x")
    run(tmp_path / "run")
    assert not left.exists()
