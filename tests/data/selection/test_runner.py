"""Recipes from file to file: what is written, reported and refused."""

import json
import resource
import signal
import tracemalloc

import pytest

from mindspore_impl import config, files
from mindspore_impl.cli.select_data import main as select_data
from mindspore_impl.data.options import FileSet
from mindspore_impl.data.selection import recipe, runner
from mindspore_impl.data.selection.stream import STEPS
from mindspore_impl.data.sources import load_set
from mindspore_impl.errors import UserError

LINES = [{"prompt": f"Question {n}?", "answer": "x" * n} for n in range(1, 11)]
SHORT = [{"length": {"of": "answer", "min_characters": 4}}]
RECIPES = sorted((config.conf_folder() / "selection").glob("*.yaml"))


def test_report_and_files(select):
    steps = [*SHORT, {"length": {"of": "answer", "max_characters": 8}}, "exact_duplicates"]
    lines = LINES + [{"prompt": "QUESTION  5?", "answer": "X" * 5}]
    report, selected, output = select(lines, steps, dropped=True, examples=2)
    assert [record["id"] for record in selected] == [f"train:{n}" for n in range(4, 9)]
    assert [(step["saw"], step["kept"], step["dropped"]) for step in report["steps"]] == [
        (11, 11, 0), (11, 8, 3), (8, 6, 2), (6, 5, 1)
    ]  # fmt: skip
    assert list(report["steps"][1]["reasons"].values()) == [3]
    assert [len(shown) for shown in report["steps"][1]["examples"].values()] == [2]
    ((repeat,),) = report["steps"][3]["examples"].values()
    assert (repeat["id"], repeat["other"]) == ("train:11", "train:5")
    dropped = [json.loads(line) for line in (output / "dropped.jsonl").read_text("utf-8").splitlines()]
    assert len(dropped) == 6 and len(dropped) + len(selected) == report["read"]
    assert dropped[0]["step"] == "steps[0].length" and dropped[0]["record"]["messages"][1]["content"] == "x"
    assert report == json.loads((output / "report.json").read_text("utf-8"))
    page = (output / "report.md").read_text("utf-8")
    assert "| steps[1].length | 8 | 6 | 2 | 25.0 % |" in page
    assert any("`train:11`" in line and "`train:5`" in line for line in page.splitlines())
    assert report["output_sha256"] == files.sha256_file(output / "selected.jsonl")
    assert len(load_set("train", FileSet(source="records", path=str(output / "selected.jsonl")), 0)) == 5
    assert sorted(path.name for path in output.iterdir()) == [
        "dropped.jsonl", "report.json", "report.md", "selected.jsonl", "selection.json"
    ]  # fmt: skip


def test_lines_of_records_are_kept_as_they_are(select, tmp_path):
    line = '{"thinking":"fast",  "messages":[{"role":"user","content":"caf\\u00e9?"}], "id":"a", "meta":{"n":1e3}}'
    sets = {"train": {"source": "records", "path": str(tmp_path / "train.jsonl")}}
    _, _, output = select([line], ["broken_unicode"], data={"sets": sets})
    assert (output / "selected.jsonl").read_text("utf-8") == line + "\n"


def test_nothing_changed_says_so_and_stops(select):
    first, _, output = select(LINES, SHORT)
    before = (output / "selected.jsonl").stat().st_mtime_ns
    assert select(LINES, SHORT)[0] is None
    assert (output / "selected.jsonl").stat().st_mtime_ns == before
    assert select(LINES, SHORT, examples=3)[0] is None  # shows more, selects the same
    assert select(LINES, SHORT, force=True)[0]["output_sha256"] == first["output_sha256"]


def test_what_changed_is_made_again(select):
    select(LINES, SHORT)
    assert select(LINES[:8], SHORT)[0]["kept"] == 5  # other input
    _, _, output = select(None, SHORT)
    (output / "selected.jsonl").write_text("damaged")
    report, selected, _ = select(None, SHORT)
    assert report["kept"] == len(selected) == 5
    assert select(None, SHORT, dropped=True)[0]["kept"] == 5  # the file of dropped ones is asked for now
    assert (output / "dropped.jsonl").is_file()


def test_another_recipe_is_not_overwritten(select):
    _, _, output = select(LINES, SHORT)
    other = [{"length": {"of": "answer", "min_characters": 6}}]
    with pytest.raises(UserError, match=r"another recipe than mine \(steps\[0\].*min_characters: 4 before, 6 now\)"):
        select(None, other)
    assert len((output / "selected.jsonl").read_text().splitlines()) == 7
    assert select(None, other, force=True)[0]["kept"] == 5


def test_a_folder_of_something_else_is_not_touched(select, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="out: .*--force"):
        select(LINES, SHORT)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_unreadable_lines(select):
    lines = [
        LINES[5],
        '{"prompt": "broken',
        {"prompt": "no answer"},
        "[1]",
        '{"prompt": "\\ud83d", "answer": "half a pair"}',
        *LINES[6:9],
    ]
    with pytest.raises(UserError, match=r"train.jsonl:2: .*JSON"):
        select(lines, SHORT)
    report, selected, _ = select(lines, SHORT, unreadable="drop")
    assert list(report["steps"][0]["reasons"].values()) == [4]
    assert report["read"] == 8 and len(selected) == 4
    (examples,) = report["steps"][0]["examples"].values()
    assert "JSON" in examples[0]["detail"] and "'answer'" in examples[1]["detail"]
    report, _, output = select(lines, ["broken_unicode"], unreadable="drop", force=True)
    assert report["steps"][0]["dropped"] == 3 and report["steps"][1]["dropped"] == 1
    # The repair of a line is reported, as a step that reads another part keeps the record.
    assert report["steps"][0]["notes"] == {runner.MENDED: 1}
    assert f"{runner.MENDED}: 1" in (output / "report.md").read_text("utf-8")
    report, selected, _ = select(lines, [{"broken_unicode": {"of": "answer"}}], unreadable="drop", force=True)
    assert report["steps"][0]["notes"] == {runner.MENDED: 1} and selected[1]["messages"][0]["content"] == "\ufffd"


@pytest.mark.parametrize(("lines", "taken"), [
    ([LINES[5]] * 2 + ["nonsense"] * 3, {}),
    (['{"prompt": "a", "answer": "<think>"}'], {}),
    ([LINES[5]] * 3 + ["nonsense"], {"skip": 3}),
])  # fmt: skip
def test_a_file_that_yields_little_fails(select, tmp_path, lines, taken):
    sets = {"train": {"source": "prompt_answer", "path": str(tmp_path / "train.jsonl")} | taken}
    with pytest.raises(UserError, match="data.sets.train: .*train.jsonl"):
        select(lines, ["missing_answer"], unreadable="drop", data={"sets": sets})
    assert not (tmp_path / "out" / "selected.jsonl").exists()


def test_line_that_is_not_utf8(select, tmp_path):
    (tmp_path / "train.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a", "answer": "b"}\n\n{"prompt": "\xff"}\n')
    with pytest.raises(UserError, match=r"train.jsonl:3: .*UTF-8"):
        select(None, ["exact_duplicates"])
    assert select(None, ["exact_duplicates"], unreadable="drop")[0]["kept"] == 1


def test_ids_name_the_place_of_a_record(select, tmp_path):
    """In a window of a JSON array, and in two sets of one file."""
    one = {"source": "prompt_answer", "path": str(tmp_path / "train.jsonl")}
    (tmp_path / "train.jsonl").write_text(json.dumps(LINES))
    sets = {"train": one | {"skip": 2, "count": 3}}
    _, selected, _ = select(None, ["exact_duplicates"], data={"sets": sets})
    assert [record["id"] for record in selected] == [f"train:[{n}]" for n in (2, 3, 4)]
    sets = {"a": one, "b": one}
    _, selected, _ = select(LINES[:2], ["missing_answer"], select=["a", "b"], data={"sets": sets}, force=True)
    assert [record["id"] for record in selected] == [f"{name}:{n}" for name in "ab" for n in (1, 2)]


def test_selected_records_that_share_an_id_are_refused(select, tmp_path):
    """Training refuses such a file, so a selection does: within a file, and between sets."""
    for name, ids in (("a", "xyzy"), ("b", "uvy")):
        lines = [{"id": i, "thinking": "fast", "messages": [{"role": "user", "content": f"{name}{n}"},
                  {"role": "assistant", "content": "b"}]} for n, i in enumerate(ids)]  # fmt: skip
        files.write_jsonl(tmp_path / f"{name}.jsonl", lines)
    sets = {name: {"source": "records", "path": str(tmp_path / f"{name}.jsonl")} for name in "ab"}
    for chosen, places in ((["a"], r"a.jsonl:2 and .*a.jsonl:4"), (["b", "a"], r"b.jsonl:3 and .*a.jsonl:2")):
        with pytest.raises(UserError, match=rf"'y': .*{places}"):
            select(None, ["missing_answer"], select=chosen, data={"sets": sets}, force=True)
        assert not (tmp_path / "out" / "report.json").exists()
    (tmp_path / "a.jsonl").write_text("nonsense\n" + (tmp_path / "a.jsonl").read_text())
    with pytest.raises(UserError, match="'y': .*a.jsonl:3 and .*a.jsonl:5"):
        select(None, ["missing_answer"], select=["a"], data={"sets": sets}, unreadable="drop", force=True)
    sets["a"]["skip"], sets["a"]["count"] = 1, 3
    assert select(None, ["missing_answer"], select=["a"], data={"sets": sets}, force=True)[0]["kept"] == 3


def test_an_output_that_is_a_file_or_below_one_is_one_message(select, tmp_path):
    (tmp_path / "file").write_text("mine")
    for force in (False, True):
        for output in ("file", "file/below"):
            with pytest.raises(UserError, match=output):
                select(LINES, SHORT, force, output=str(tmp_path / output))
    assert (tmp_path / "file").read_text() == "mine"


def test_evaluation_file(select, tmp_path):
    sets = {"train": {"source": "prompt_answer", "path": str(tmp_path / "train.jsonl")},
            "test": {"source": "prompt_answer", "path": str(tmp_path / "test.jsonl")}}  # fmt: skip
    steps = [{"decontaminate": {"against": ["test"], "min_words": 2}}]
    with pytest.raises(UserError, match=r"test.jsonl"):
        select(LINES, steps, data={"sets": sets})
    (tmp_path / "test.jsonl").write_text(json.dumps(LINES[3]) + "\n")
    report, _, _ = select(LINES, steps, data={"sets": sets})
    ((hit,),) = report["steps"][1]["examples"].values()
    assert (hit["id"], hit["other"]) == ("train:4", "test:1")
    (tmp_path / "test.jsonl").write_text(json.dumps(LINES[4]) + "\n")
    assert select(None, steps, data={"sets": sets})[0]["kept"] == 9  # another evaluation file: made again


@pytest.mark.parametrize(
    ("steps", "message"),
    [([{"lenght": {}}], r"steps\[0\]: .*'lenght'.*'length'\?"),
     (["missing_answer", {"length": {"min_carac": 2}}], r"steps\[1\].length.min_carac: .*min_characters"),
     ([{"length": {"min_characters": "2"}}], r"steps\[0\].length.min_characters: .*'2'"),
     ([{"length": {"of": "promt"}}], "'promt'.*'prompt'"),
     ([{"mixture": {}}], "mixture.weights"),
     ([{"length": {}, "refusal": {}}], r"steps\[0\]: "), ([7], r"steps\[0\]: "),
     ([], "steps: "), ([{"decontaminate": {"against": ["tset"]}}], "'tset' in data.sets"),
     ([{"decontaminate": {"against": ["train"], "min_words": 0}}], r"steps\[0\].decontaminate.min_words: 0"),
     ([{"near_duplicates": {"threshold": 1.5}}], r"steps\[0\].near_duplicates.threshold: 1.5"),
     ([{"near_duplicates": {"threshold": 0.2, "permutations": 8}}], "permutations"),
     ([{"repetition": {"ngram": 0}}], "ngram: 0"), ([{"language": {"min_cjk": 2.0}}], "min_cjk"),
     ([{"compression": {"min_ratio": 0.5, "max_ratio": 0.1}}], "max_ratio=0.1"),
     ([{"length": {"tokenizer": "nowhere.model", "max_tokens": 5}}], "nowhere.model")],
)  # fmt: skip
def test_wrong_steps(select, steps, message):
    with pytest.raises(UserError, match=message):
        select(LINES, steps)


def test_wrong_keys(select):
    for key, message in (("selekt", "selekt: .*'select'"), ("unreadable", "unreadable: .*'x'")):
        with pytest.raises(UserError, match=message):
            select(LINES, SHORT, **{key: "x"})
    with pytest.raises(UserError, match="examples: -1"):
        select(LINES, SHORT, examples=-1)
    with pytest.raises(UserError, match="gsm8: .*'gsm8k'"):
        recipe.load("gsm8", [])
    with pytest.raises(UserError, match="data.train: .*data.train=VALUE"):
        recipe.load("gsm8k", [])
    with pytest.raises(UserError, match="outptu: .*'output'"):
        recipe.load("filters_only", ["data.train=x", "outptu=y"])


@pytest.mark.parametrize(
    ("override", "message"),
    [("steps.0.length.min_characters=3,4", "min_characters=3,4"), ("~dropped", "~dropped"),
     ("examples=range(1,4)", r"range\(1,4\)"), ("+data@x=3", "data@x=3"),
     ("steps.length.min_characters=3", r"steps.0.NAME.OPTION"), ("examples", "EQUAL"),
     ("steps.7.length.of=answer", "index out of range"), ("output=${nowhere}", "'nowhere'")],
)  # fmt: skip
def test_overrides_that_a_recipe_cannot_take(select, override, message):
    with pytest.raises(UserError, match=message) as caught:
        select(LINES, SHORT, overrides=[override])
    assert "full_key" not in str(caught.value) and "https" not in str(caught.value)


def test_overrides_reach_steps(select):
    assert select(LINES, SHORT, overrides=["steps.0.length.min_characters=9"])[0]["kept"] == 2


def test_full_disk(select, tmp_path):
    """A limit on the size of files stands for the full disk: the same call fails with an error of the system."""
    select(LINES, SHORT)
    before = (tmp_path / "out" / "selected.jsonl").read_bytes()
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    many = [{"prompt": f"Question {n}?", "answer": "y" * 500} for n in range(400)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in many))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(UserError, match=r"selected.jsonl: .*File too large"):
            select(None, SHORT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "out" / "selected.jsonl").read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["selected.jsonl", "selection.json"]
    assert select(None, SHORT)[0]["kept"] == 400


def test_input_that_changes_during_the_selection(select, tmp_path, monkeypatch):
    write = runner._write

    def write_and_append(*arguments):
        kept = write(*arguments)
        with open(tmp_path / "train.jsonl", "a") as file:
            file.write(json.dumps(LINES[0]) + "\n")
        return kept

    monkeypatch.setattr(runner, "_write", write_and_append)
    with pytest.raises(UserError, match="train.jsonl: changed"):
        select(LINES, SHORT)


def peak_of(run) -> int:
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


RULES = ["broken_unicode", "missing_answer", "refusal", "code_fences", {"language": {"min_either": 0.5}}, "repetition"]


@pytest.mark.parametrize(
    ("steps", "most"),
    [([*RULES, {"mixture": {"weights": {"fast": 1}}}], 60), (["exact_duplicates"], 250)],
    ids=["rules", "hashes"],
)
def test_memory_does_not_grow_with_the_file(tmp_path, steps, most):
    """Rules hold a record, the mixture counts, exact duplicates hashes: `most` bytes for one more record of 1,600."""

    def grown(count: int) -> int:
        lines = ({"prompt": f"Question {n}?", "answer": f"word{n} " * 4 + "x" * 1500} for n in range(count))
        files.write_jsonl(tmp_path / "train.jsonl", lines)
        return peak_of(lambda: runner.run(recipe_of(tmp_path, steps), "mine", force=True))

    grown(20)  # loads what is loaded once
    assert (grown(1100) - grown(700)) / 400 < most  # both larger than a block of the hash


def recipe_of(folder, steps) -> recipe.Recipe:
    sets = {"train": {"source": "prompt_answer", "path": str(folder / "train.jsonl")}}
    plain = {"select": ["train"], "output": str(folder / "out"), "data": {"sets": sets}, "steps": steps}
    (folder / "mine.yaml").write_text(json.dumps(plain), encoding="utf-8")
    return recipe.load(str(folder / "mine.yaml"), [])


def test_inputs_that_cannot_be_selected_from(select, tmp_path):
    with pytest.raises(UserError, match="train.jsonl: .*output"):
        select(LINES, SHORT, output=str(tmp_path))  # would be overwritten
    for key, value in (("skip", -1), ("count", 0)):
        with pytest.raises(UserError, match=f"data.sets.train.{key}: {value} "):
            select(LINES, SHORT, overrides=[f"data.sets.train.{key}={value}"])
    with pytest.raises(UserError, match="data.sets.train.keep: .*`band`"):
        select(LINES, SHORT, overrides=["data.sets.train.keep.low=1"])
    with pytest.raises(UserError, match="train.jsonl"):
        select([], SHORT)


def test_bundled_generator(select):
    sets = {"train": {"source": "list_programs", "count": 20, "thinking": "reasoning"}}
    assert select(None, [{"missing_answer": {"reference": True}}], data={"sets": sets})[0]["kept"] == 20


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_by_the_command_in_their_head(path):
    head = [line.strip("# \n") for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    commands = [line.split() for line in head if line.startswith("python tools/select_data.py")]
    assert commands and len(head) > len(commands)
    for _, _, name, *overrides in commands:
        assert recipe.load(name, overrides).steps and name == path.stem


def test_every_option_stands_in_a_recipe():
    import dataclasses

    import yaml

    entries = [entry for path in RECIPES for entry in yaml.safe_load(path.read_text("utf-8"))["steps"]]
    entries = [{entry: None} if isinstance(entry, str) else entry for entry in entries]
    for name, step in STEPS.items():
        named = {key for entry in entries for key in (entry.get(name) or {})}
        assert {field.name for field in dataclasses.fields(step.options)} <= named, name
    keys = {key for path in RECIPES for key in yaml.safe_load(path.read_text("utf-8"))}
    assert {field.name for field in dataclasses.fields(recipe.RecipeOptions)} <= keys


def test_command(tmp_path, capsys):
    train = tmp_path / "train.jsonl"
    files.write_jsonl(
        train, [{"id": "a", "thinking": "fast", "messages": [{"role": "user", "content": "Why is it so?"}]}]
    )
    call = ["filters_only", f"data.train={train}", f"output={tmp_path / 'out'}"]
    assert select_data(call) == 0 and "selected.jsonl: 0 of 1 records" in capsys.readouterr().out
    assert select_data(call) == 0 and "--force" in capsys.readouterr().out
    assert select_data([*call, "--force"]) == 0 and "0 of 1" in capsys.readouterr().out
    assert select_data(["filters_only", "data.train=nowhere"]) == 2
    assert "nowhere: no such file" in capsys.readouterr().err
