"""The command from end to end: a stage or a file asks a server, and what it wrote is what training reads."""

import json

import numpy as np
import pytest

from mindspore_impl.cli import query_teacher
from mindspore_impl.data.rollouts import read_rollouts, to_sample, write_rollouts
from mindspore_impl.data.teacher_store import StoreReader
from mindspore_impl.errors import UserError
from mindspore_impl.text import chat
from mindspore_impl.text.records import record_to_json
from mindspore_impl.text.tokenizer import train_tokenizer
from tests.cli.test_verify_store import write_config
from tests.data.small import labelled, trained_on
from tests.integrations.fake_server import MODEL, serving


@pytest.fixture(scope="module")
def records():
    return labelled(6, "fast")


@pytest.fixture(scope="module")
def tokenizer(records, tmp_path_factory):
    return trained_on(records, tmp_path_factory.mktemp("tokenizer"), 110)


@pytest.fixture
def record_file(records, tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record_to_json(record)) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def server(tokenizer):
    def logits(ids):
        return np.stack(
            [np.random.default_rng(ids[: t + 1]).normal(0, 3, tokenizer.vocab_size) for t in range(len(ids))]
        )

    with serving(logits, lambda body: ([20, 21, tokenizer.eos_id], "stop", None)) as fake:
        fake.models[0]["max_model_len"] = 4096
        yield fake


def query(*arguments) -> int:
    return query_teacher.main([str(argument) for argument in arguments])


def test_labels_and_rollouts_of_a_file(records, tokenizer, record_file, server, tmp_path, capsys):
    common = ["--tokenizer", tokenizer.path, "--url", server.url]
    assert query("--records", record_file, *common, "--top-k", 3) == 0
    folder = tmp_path / "records.external"
    assert f"use it: stages.NAME.store={folder}/store" in capsys.readouterr().out
    reader = StoreReader(folder / "store", tokenizer_sha256=tokenizer.sha256)
    assert reader.top_k == 3 and reader.header.temperature == 1
    for record in records:
        sample = chat.render(record, tokenizer)
        reader.check(sample.ids, sample.supervised)
    assert query("--records", record_file, *common, "--ask", "rollouts", "--samples-per-prompt", 2,
                 "--output", tmp_path / "answers") == 0  # fmt: skip
    found = read_rollouts(tmp_path / "answers" / "rollouts.jsonl", tokenizer, True)
    assert len(found) == 12 and {item.finish for item in found} == {"stop"}
    # The answers to be distilled: asked about in turn.
    write_rollouts(tmp_path / "r.jsonl", found)
    assert query("--rollouts", tmp_path / "r.jsonl", *common) == 0
    reader = StoreReader(tmp_path / "r.external" / "store")
    assert reader.top_k == 10 and reader.sequences == len({tuple(item.prompt_ids) for item in found})
    reader.check(to_sample(found[0], tokenizer).ids, to_sample(found[0], tokenizer).supervised)
    assert json.loads((tmp_path / "answers" / "imported.json").read_text())["rollouts"] == 12


def test_stages_of_a_run_that_order_leaves_out(server, tmp_path, ms_runtime):
    run = tmp_path / "run"
    texts = [f"sort {letter} then reverse apply to list 0123456789" for letter in "abcdefghijklmnopqrstuvwxyz"]
    trained = train_tokenizer(texts, run / "tokenizer" / "tokenizer.model", 90, 1.0)
    write_config(run, "runtime=cpu", "order=[sft_reasoning,sft_fast]", "compare=[]",
                 "stages.capture_fast.rollouts=null", "stages.capture_fast.sets=[fast]", "data.sets.fast.count=3",
                 "stages.rollout_fast.rollout.limit=2", "stages.capture_fast.capture.top_k=4")  # fmt: skip
    server.logits = lambda ids: np.tile(np.linspace(0, 4, trained.vocab_size), (len(ids), 1))
    server.complete = lambda body: ([20, trained.eos_id], "stop", None)
    assert query("--run", run, "--stage", "capture_fast", "--url", server.url) == 0
    reader = StoreReader(run / "external" / "capture_fast" / "store")
    assert reader.sequences == 3 and reader.top_k == 4
    assert query("--run", run, "--stage", "rollout_fast", "--url", server.url) == 0
    assert len(read_rollouts(run / "external" / "rollout_fast" / "rollouts.jsonl", trained, True)) == 4  # two a prompt


SMALL = [
    "experiment=quickstart", "compare=[]", "runtime=cpu", "tokenizer.vocab_size=110", "stages.sft_fast.init=null",
    *(f"data.sets.{name}.count=60" for name in ("teacher_reasoning", "teacher_fast", "reasoning", "fast")),
    "models.student.hidden_size=48", "models.student.num_hidden_layers=1",
    *(f"stages.{name}.train.max_steps=3" for name in ("sft_fast", "distill_fast")),
    *(f"stages.{name}.evaluate=false" for name in ("sft_fast", "distill_fast")),
    "stages.sft_fast.data.mixture={fast:1}", "stages.capture_fast.rollouts=null", "stages.capture_fast.sets=[fast]",
    "stages.distill_fast.rollouts=null", "stages.distill_fast.data.mixture={rollouts:0,fast:1}",
]  # fmt: skip


@pytest.mark.slow
def test_a_student_is_distilled_from_a_teacher_that_only_a_server_has(server, tmp_path, ms_runtime, capsys):
    """Run up to the student, ask, name the store by its path, run on: the student's own stage is not trained again."""
    from mindspore_impl.curriculum import runner
    from mindspore_impl.curriculum.configuration import compose

    run = tmp_path / "run"
    runner.run(compose([*SMALL, "order=[sft_fast]", f"run_dir={run}"]))
    # Row t is of the token after ids[t], of which this teacher knows something.
    server.logits = lambda ids: np.stack(
        [np.random.default_rng(ids[: t + 1]).normal(0, 3, 110) + 9 * (np.arange(110) == after)
         for t, after in enumerate([*ids[1:], -1])]
    )  # fmt: skip
    assert query("--run", run, "--stage", "capture_fast", "--url", server.url) == 0
    store = run / "external" / "capture_fast" / "store"
    on = [*SMALL, "order=[sft_fast,distill_fast]", f"run_dir={run}", f"stages.distill_fast.store={store}"]
    capsys.readouterr()
    runner.run(compose(on))
    assert "sft_fast (sft): finished before, skipped" in capsys.readouterr().out
    stage = next((run / "stages").glob("*_distill_fast"))
    told = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert told and all(0 < line["kd"] < 20 for line in told if "kd" in line) and any("kd" in line for line in told)
    with pytest.raises(UserError, match="store"):
        runner.run(compose([*on, "stages.distill_fast.data.mixture={rollouts:0,fast:1,reasoning:1}"]))


def test_answers_written_elsewhere_need_a_name_or_weights(tokenizer, record_file, server, tmp_path, capsys):
    common = ["--records", record_file, "--tokenizer", tokenizer.path]
    assert query(*common, "--url", server.url, "--output", tmp_path / "one") == 0
    answers = tmp_path / "one" / "answers.jsonl"
    assert query(*common, "--answers", answers, "--output", tmp_path / "two") == 2
    assert "--model: name the teacher" in capsys.readouterr().err
    assert query(*common, "--answers", answers, "--output", tmp_path / "two", "--model", MODEL) == 0
    one, two = (StoreReader(tmp_path / name / "store") for name in ("one", "two"))
    assert one.header == two.header and [s["sha256"] for s in one.shards] == [s["sha256"] for s in two.shards]


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "--run DIR"),
    (["--run", "x"], "--run DIR"),
    (["--records", "x", "--rollouts", "y"], "--run DIR"),
    (["--records", "x"], "--tokenizer: name the tokenizer"),
    (["--records", "{records}", "--tokenizer", "{tokenizer}"], "--url"),
    (["--records", "{records}", "--tokenizer", "{tokenizer}", "--url", "ftp://x"], "--url: ftp://x must be"),
    (["--records", "{records}", "--tokenizer", "{tokenizer}", "--url", "http://127.0.0.1:9/v1"], "is the server up"),
    (["--records", "{records}", "--tokenizer", "{tokenizer}", "--url", "http://x", "--api-key-env", "NO_SUCH_KEY"],
     "the environment has no NO_SUCH_KEY"),
    (["--records", "{records}", "--tokenizer", "{tokenizer}", "--url", "http://x", "--in-flight", "0"], "--in-flight"),
    (["--records", "{records}", "--tokenizer", "{tokenizer}", "--ask", "rollouts", "--samples-per-prompt", "2",
      "--temperature", "0"], "--samples-per-prompt: 2"),
    (["--records", "{records}", "--tokenizer", "{tokenizer}", "--temperature", "2", "--answers", "x", "--model", "m"],
     "capture.temperature: 2.0"),
])  # fmt: skip
def test_faults_are_one_message(arguments, message, record_file, tokenizer, capsys):
    filled = [text.format(records=record_file, tokenizer=tokenizer.path) for text in arguments]
    assert query(*filled) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


@pytest.mark.parametrize("key", ["s3cret\nX-Evil: 1", "s3cret\x07", "s3crét", "s3cr\u2028et"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key, record_file, tokenizer, server, monkeypatch,
                                                                       capsys):  # fmt: skip
    monkeypatch.setenv("TEACHER_KEY", key)
    assert query("--records", record_file, "--tokenizer", tokenizer.path, "--url", server.url,
                 "--api-key-env", "TEACHER_KEY") == 2  # fmt: skip
    told = capsys.readouterr()
    assert "--api-key-env: TEACHER_KEY holds a line end" in told.err and "s3cr" not in told.out + told.err
    assert not server.headers and not server.listed


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(record_file, tokenizer, server, tmp_path, monkeypatch,
                                                                  capsys):  # fmt: skip
    monkeypatch.setenv("TEACHER_KEY", "s3cret\r\n")  # as a file read by $(cat) on another system ends
    output = tmp_path / "out"
    assert query("--records", record_file, "--tokenizer", tokenizer.path, "--url", server.url,
                 "--api-key-env", "TEACHER_KEY", "--output", output) == 0  # fmt: skip
    assert all(headers["Authorization"] == "Bearer s3cret" for headers in server.headers) and server.listed == 1
    told = capsys.readouterr()
    assert "s3cret" not in told.out + told.err
    assert all(b"s3cret" not in path.read_bytes() for path in output.rglob("*") if path.is_file())
