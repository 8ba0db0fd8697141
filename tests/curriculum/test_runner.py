"""What runs, what is skipped, what resumes; and which run directories are refused. Stages are stand-ins here."""

import fcntl
import shutil
import time

import numpy as np
import pytest

from mindspore_impl import checkpoint, files
from mindspore_impl.curriculum import runner
from mindspore_impl.curriculum.stages import KINDS
from mindspore_impl.errors import UserError
from tests.curriculum.conftest import compose_quickly, stage_file

SMALL = [
    *(f"data.sets.{name}.count=60" for name in ("teacher_reasoning", "teacher_fast", "reasoning", "fast")),
    "tokenizer.vocab_size=110",
]


def run(folder, *overrides):
    return runner.run(compose_quickly(*SMALL, f"run_dir={folder}", *overrides))


def use_recorders(monkeypatch, names):
    """Replace every stage kind by one that leaves empty results and adds the stage to `names`; leave out the report."""

    def record(stage, context, planned, folder):
        names.append(planned.name)
        files.write_text(folder / "result.txt", planned.fingerprint)
        if "weights" in stage.provides:
            arrays, tokenizer = {"w": np.zeros(1, np.float32)}, context.tokenizer.sha256
            checkpoint.save(folder / "checkpoints", 1, arrays, {}, {}, 1, tokenizer_sha256=tokenizer)
        for name in ("rollouts.jsonl", "store/shard"):
            files.write_text(folder / name, "")
        files.write_json(folder / "store" / "manifest.json", {"shards": [{"file": "shard"}]})
        return {"tokens": 7}

    for kind in KINDS.values():
        monkeypatch.setattr(kind, "run", record)
    monkeypatch.setattr(runner, "_write_report", lambda run_dir: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ms_runtime):
    """A finished run directory and the stages that ran, in order."""
    names = []
    with pytest.MonkeyPatch.context() as patch:
        use_recorders(patch, names)
        return run(tmp_path_factory.mktemp("finished") / "run"), names


@pytest.fixture
def calls(monkeypatch, ms_runtime):
    """The names of the stages that run from now on."""
    names = []
    use_recorders(monkeypatch, names)
    return names


@pytest.fixture
def folder(finished, calls, tmp_path):
    """A finished run of the test's own: a copy, in which nothing points to its old place."""
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture
def interrupted(monkeypatch):
    """interrupted(folder, kind, *overrides): run into a stage of `kind` that leaves a file after 0.2 s and stops."""

    def stop(stage, context, planned, folder):
        (folder / "half.txt").write_text("kept")
        time.sleep(0.2)
        raise KeyboardInterrupt

    def begin(folder, kind, *overrides):
        with monkeypatch.context() as patch:
            patch.setattr(KINDS[kind], "run", stop)
            with pytest.raises(KeyboardInterrupt):
                run(folder, *overrides)

    return begin


def test_first_run_runs_all_and_a_second_none_even_of_a_copy(finished, folder, calls):
    names = finished[1]
    assert len(names) == 12 and names[0] == "teacher" and names[-1] == "eval_distill_fast"
    stage = stage_file(folder, "teacher")
    assert stage["status"] == "finished" and stage["tokens"] == 7
    run(folder)
    assert calls == []


def test_changed_stage_runs_again_with_its_dependants_and_keeps_the_old(folder, calls):
    run(folder, "stages.capture_fast.capture.top_k=3")
    assert calls == ["capture_fast", "distill_fast", "eval_distill_fast"]
    assert len(list((folder / "replaced").iterdir())) == 3
    assert all((old / "result.txt").is_file() for old in (folder / "replaced").iterdir())


@pytest.mark.parametrize("cached", [False, True])
def test_interrupted_stage_resumes_in_its_folder(tmp_path, calls, interrupted, cached):
    """With its time counted, whether finished stages are kept in a cache or not."""
    cache = [f"runtime.cache={tmp_path / 'cache'}"] if cached else []
    interrupted(tmp_path / "run", "distill", *cache)
    assert stage_file(tmp_path / "run", "distill_fast")["status"] == "running"
    del calls[:]
    folder = run(tmp_path / "run", *cache)
    assert calls == ["distill_fast", "eval_distill_fast"]
    assert stage_file(folder, "distill_fast")["seconds"] >= 0.2
    (left,) = folder.glob("stages/*/half.txt")
    assert left.parent.name.endswith("_distill_fast")


@pytest.mark.parametrize(
    ("stage", "result"),
    [("teacher", "checkpoints/LATEST"), ("rollout_fast", "rollouts.jsonl"), ("capture_fast", "store/shard")],
)
def test_stage_whose_result_was_removed_runs_again(folder, calls, stage, result):
    next(folder.glob(f"stages/[0-9]*[0-9]_{stage}")).joinpath(result).unlink()
    run(folder)
    assert calls == [stage]


def test_report_does_not_hide_what_stopped_the_run(tmp_path, calls, monkeypatch):
    def fail(*_):
        raise UserError("the disk is full")

    monkeypatch.setattr(KINDS["sft"], "run", fail)
    monkeypatch.setattr(runner, "_write_report", lambda run_dir: 1 / 0)
    with pytest.raises(UserError, match="the disk is full"):
        run(tmp_path / "run")


def test_unscorable_record_is_found_before_the_first_stage(tmp_path, calls):
    path = tmp_path / "test.jsonl"
    path.write_text(
        '{"id": "r7", "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    records = (
        "~data.sets.test_fast.split",
        "data.sets.test_fast.source=records",
        f"data.sets.test_fast.path={path}",
        "data.sets.test_fast.count=1",
    )
    with pytest.raises(UserError, match="r7"):
        run(tmp_path / "run", *records)
    assert calls == []


def test_prompts_of_two_sets_have_different_ids(tmp_path, calls):
    """Those without one get it of the set's name; given ones that agree are refused before the first stage."""
    sets = []
    for name, source in (("a", "prompt_answer"), ("b", "prompt_answer"), ("c", "records"), ("d", "records")):
        row = {"prompt": name, "answer": "x"}
        if source == "records":
            messages = [{"role": "user", "content": name}, {"role": "assistant", "content": "x"}]
            row = {"id": "mine", "messages": messages}
        files.write_jsonl(tmp_path / name / "train.jsonl", [row])
        sets.append(f"data.sets.{name}={{source:{source},path:{tmp_path / name / 'train.jsonl'}}}")
    run(tmp_path / "run", *sets, "stages.rollout_fast.prompts=[a,b,c]")
    assert "rollout_fast" in calls
    del calls[:]
    with pytest.raises(UserError, match="stages.rollout_fast.prompts: .*'mine'.*'c'.*'d'"):
        run(tmp_path / "other", *sets, "stages.rollout_fast.prompts=[a,c,d]")
    assert calls == []


def test_renumbered_stage_keeps_its_result(folder, calls):
    run(folder, "order=[sft_reasoning,sft_fast]", "compare=[]")
    assert calls == []
    assert (folder / "stages" / "01_sft_reasoning" / "result.txt").is_file()


def test_directory_of_another_experiment_is_refused(folder):
    before = (folder / "config.yaml").read_text()
    with pytest.raises(UserError, match="run_dir: .*'quickstart'.*'other'"):
        run(folder, "name=other")
    assert (folder / "config.yaml").read_text() == before


def test_foreign_directory_or_file_is_refused(tmp_path, calls):
    (tmp_path / "thesis.tex").write_text("precious")
    for place in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UserError, match=f"run_dir: {place} "):
            run(place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_two_processes_do_not_share_a_run(folder):
    with open(folder / ".lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=f"run_dir: .*{folder}"):
            run(folder)


def test_tokenizer_is_trained_once_and_anew_when_its_data_change(folder, calls):
    path = folder / "tokenizer" / "tokenizer.model"
    before = (files.sha256_file(path), path.stat().st_mtime_ns)
    run(folder)
    assert (files.sha256_file(path), path.stat().st_mtime_ns) == before and calls == []
    run(folder, "tokenizer.vocab_size=111")
    assert files.sha256_file(path) != before[0]
    assert calls.count("teacher") == 1


def test_seeds_run_in_folders_of_their_own(tmp_path, calls, monkeypatch):
    written = {}
    monkeypatch.setattr(
        "mindspore_impl.report.seeds_report.write_seeds_report",
        lambda folders, folder, compare: written.update(folders=folders, compare=compare),
    )
    folder = run(tmp_path / "run", "seeds=[4,5]", "order=[sft_reasoning,sft_fast]", "compare=[sft_reasoning,sft_fast]")
    assert calls.count("sft_fast") == 2
    assert list(written["folders"]) == [4, 5] and written["compare"] == ("sft_reasoning", "sft_fast")
    assert [stage_file(folder / f"seed_{seed}", "sft_fast")["seed"] for seed in (4, 5)] == [4, 5]


def test_second_run_takes_shared_stages_from_the_cache(tmp_path, calls):
    cache, other = f"runtime.cache={tmp_path / 'cache'}", "stages.capture_fast.capture.top_k=3"
    first = run(tmp_path / "one", cache)
    del calls[:]
    second = run(tmp_path / "two", cache, other)
    assert calls == ["capture_fast", "distill_fast", "eval_distill_fast"]
    taken, computed = (stage_file(run, "sft_fast") for run in (second, first))
    assert set(taken["cache"]) == {"seconds"} and "cache" not in computed
    assert (taken["status"], taken["tokens"], taken["metrics"]) == ("finished", 7, {"tokens": 7})
    assert taken["inputs"] == computed["inputs"] and taken["fingerprint"] == computed["fingerprint"]
    assert (second / "stages" / "03_sft_reasoning" / "checkpoints" / "LATEST").is_file()
    run(tmp_path / "two", cache, other)
    assert len(calls) == 3, "what was taken is finished"
    # A changed, and a removed result come from there too.
    run(second, cache)
    assert len(calls) == 3 and len(list((second / "replaced").iterdir())) == 3
    assert "cache" in stage_file(second, "capture_fast")
    (rollouts,) = second.glob("stages/*_rollout_fast/rollouts.jsonl")
    rollouts.unlink()
    run(second, cache)
    assert len(calls) == 3 and rollouts.is_file()


def test_what_a_killed_writer_left_goes_at_the_next_start(folder):
    left = folder / "stages" / "01_teacher" / ".package.x1.tmp"
    left.mkdir()
    (left / "half").write_text("x")
    run(folder)
    assert not left.exists()
