"""Each benchmark reads its published format, asks as its docstring says, and names the place of a fault."""

import importlib.util
import re
import shutil
from pathlib import Path

import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks import TASKS, drop, gsm8k, math500
from mindspore_impl.evaluation.tasks.base import Item, plain

DATA = Path(__file__).parent / "data"


def read(name: str, shots: int) -> list[Item]:
    return TASKS[name].read(DATA / name, shots)


def test_mmlu_asks_as_the_harness_does():
    items = read("mmlu", 2)
    assert [item.id for item in items] == ["birds/0", "small_sums/0", "small_sums/1", "small_sums/2"]
    assert items[1].header == (
        "The following are multiple choice questions (with answers) about small sums.\n\n"
        "What is 2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer: B\n\n"
        "What is 9 - 1, if nothing\nelse is taken?\nA. 8\nB. 7\nC. 1\nD. 9\nAnswer: A\n\n"
    )
    assert items[2].prompt == 'What is 3 + 4, the "lucky" number?\nA. 5\nB. 6\nC. 7\nD. 8\nAnswer:'
    assert (items[2].options, items[2].answer, items[2].group) == ((" A", " B", " C", " D"), 2, "small_sums")


def test_chinese_choices_name_the_subject():
    cmmlu, ceval = read("cmmlu", 1), read("ceval", 1)
    assert cmmlu[0].header == (
        "以下是关于arithmetic的单项选择题，请直接给出正确答案的选项。\n\n"
        "一加一等于几？\nA. 一\nB. 二\nC. 三\nD. 四\n答案： B\n\n"
    )
    assert [item.answer for item in cmmlu] == [3, 2]
    assert ceval[0].header.startswith("以下是中国关于河流的单项选择题")
    assert ceval[1].prompt == "冬天河面会怎样？\nA. 沸腾\nB. 结冰\nC. 消失\nD. 着火\n答案："


def test_cluewsc_asks_whether_the_pronoun_means_the_noun():
    items = read("cluewsc", 1)
    assert items[0].prompt.endswith("问：上文中的“它”指的是“书”吗？请回答是或否。\n答：") and items[0].answer == 0
    assert items[1].answer == 1 and items[1].options == ("是", "否") and items[1].header.endswith("答：否\n\n")


@pytest.mark.parametrize(
    ("completion", "exact", "strict", "flexible"),
    [
        ("2 * 5 = 10.\n#### 10", 1, 1, 1),
        ("So it is 10 km.", 1, 0, 1),
        ("It is 11.", 0, 0, 0),
        ("#### 10.0", 1, 0, 0),  # the harness compares texts, we compare numbers
        ("答案是１０。", 1, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_gsm8k(completion, exact, strict, flexible):
    item = read("gsm8k", 2)[0]
    assert item.header.startswith("Question: Tom has 3 pens and buys 4. How many?\nAnswer: 3 + 4")
    assert gsm8k.score(item, completion) == {
        "exact_match": exact, "strict_match": strict, "flexible_extract": flexible
    }  # fmt: skip


def test_math500_takes_the_last_box_or_the_last_line():
    half, roots = read("math500", 0)
    assert half.prompt.startswith("What is half") and "\\boxed{}" in half.prompt and half.group == "Prealgebra"
    assert math500.score(half, "First \\boxed{1}, no: \\boxed{0.75}.")["accuracy"] == 1
    assert math500.score(half, "\\boxed{0.75}, no: \\boxed{1}")["accuracy"] == 0
    assert math500.score(half, "thinking\n3/4")["accuracy"] == 1
    assert math500.score(roots, "\\boxed{x = \\pm \\sqrt2}")["accuracy"] == 1


def test_drop_takes_the_best_of_the_answers():
    number, spans, date, span = read("drop", 2)
    assert number.header.endswith("Question: What stopped?\nAnswer: two cars\n\n")
    assert drop.score(number, " 21 points\nand more") == {"f1": 1.0, "em": 1.0}
    assert drop.score(number, "２１ points") == {"f1": 1.0, "em": 1.0}
    assert drop.score(number, "14") == {"f1": 0.0, "em": 0.0}
    assert drop.score(spans, "Jones-Lee and Smith") == {"f1": 1.0, "em": 1.0}
    assert drop.score(spans, "Smith")["f1"] == 0.5 and drop.score(spans, "Smith")["em"] == 0
    assert drop.score(date, "May 3 1990") == {"f1": 1.0, "em": 0.0}
    assert drop.score(span, "Blues.") == {"f1": 1.0, "em": 1.0}


@pytest.mark.parametrize(
    ("given", "right", "em", "f1"),
    [  # worked by hand from the published rules
        (["the 5.0 yards"], ["5 yard"], 0.0, 0.5),
        (["25"], ["25.0"], 1.0, 1.0),
        (["in 1999 alone"], ["1998 alone"], 0.0, 0.0),  # another number: nothing counts
        (["a", "b c"], ["b c"], 0.0, 0.5),
        (["red apple", "green pear"], ["green pear", "red apple"], 1.0, 1.0),
        (["x-ray"], ["x ray"], 1.0, 1.0),
    ],
)
def test_drop_bags(given, right, em, f1):
    assert drop.compare(given, right) == (em, f1)


def test_ifeval_counts_prompts_and_instructions():
    rain, tree = read("ifeval", 0)
    score = TASKS["ifeval"].score
    assert score(rain, "It rains. It pours.") == {"prompt_level": 1.0, "instruction_level": 1.0}
    assert score(rain, "It rains, and pours. Much.") == {"prompt_level": 0.0, "instruction_level": 0.5}
    assert score(rain, " \n") == {"prompt_level": 0.0, "instruction_level": 0.0}
    assert score(tree, "OAK. done")["prompt_level"] == 1.0


@pytest.mark.parametrize("name", sorted(set(TASKS) & {path.name for path in DATA.iterdir()}))
def test_every_task_reads_without_shots_and_its_items_differ(name):
    task, items = TASKS[name], read(name, 0)
    assert items and len({item.id for item in items}) == len(items)
    assert all(item.prompt and (item.options if task.chooses else task.score or task.program) for item in items)
    with pytest.raises(UserError, match="shots"):
        task.read(DATA / name, 50)


SUMS, PASSAGES, ASKED = "test/small_sums_test.csv", "drop_dataset_dev.json", "input_data.jsonl"
FAULTS = [
    ("mmlu", "test/birds_test.csv", "penguin,D", "penguin,E", ":1: .*'E'"),
    ("mmlu", SUMS, "10,11,12,13,A", "10,11,12,A", ":3: 5 columns"),
    ("mmlu", SUMS, '5 + 5?"', "5 + 5?", r":\d+: .*CSV"),
    ("cmmlu", "test/arithmetic.csv", ",Question,", ",Frage,", ":1: .*'Question'"),
    ("ceval", "subject_mapping.json", '"河流"', "1", "'rivers'"),
    ("ceval", "subject_mapping.json", '{"rivers": ["Rivers", "河流", "Other"]}', "[1]", "object"),
    ("cluewsc", "dev.json", '"label": "false"', '"label": "maybe"', ":2: label .*'maybe'"),
    ("cluewsc", "dev.json", '"target": {', '"goal": {', ":1: .*'target'"),
    ("gsm8k", "test.jsonl", "#### -5", "it is -5", ":3: .*####"),
    ("math500", "test.jsonl", '"answer": "\\\\sqrt', '"reply": "\\\\sqrt', ":2: .*'answer'"),
    ("drop", PASSAGES, '"the Blues"', "", r"passage 'game_1', qa_pairs\[3\]"),
    ("drop", PASSAGES, '"validated_answers": []', '"validated_answers": "x"', "validated_answers"),
    ("drop", PASSAGES, '["the Blues"]', '"the Blues"', r"\[3\]: spans"),
    ("ifeval", ASKED, '"kwargs": [{}, ', '"kwargs": ["", ', ":1: kwargs"),
    ("ifeval", ASKED, '["startend:end_checker", ', "[[], ", ":2: instruction_id_list"),
    ("ifeval", ASKED, "no_comma", "no_comas", ":1: .*'punctuation:no_comas'"),
    ("ifeval", ASKED, '"end_phrase"', '"phrase"', ":2: startend:end_checker"),
]


@pytest.mark.parametrize(("task", "file", "find", "replace", "words"), FAULTS)
def test_a_fault_names_its_place(tmp_path, task, file, find, replace, words):
    folder = shutil.copytree(DATA / task, tmp_path / task)
    text = (folder / file).read_text(encoding="utf-8")
    assert find in text
    (folder / file).write_text(text.replace(find, replace), encoding="utf-8")
    with pytest.raises(UserError, match=f"{file}.*{words}"):
        TASKS[task].read(folder, 0)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_missing_path_is_named(tmp_path, name):
    with pytest.raises(UserError, match="nowhere"):
        TASKS[name].read(tmp_path / "nowhere", 0)


def test_plain_text_ends_at_the_first_stop():
    assert plain("7\nQuestion: x Question:", ("x", "Question:")) == "7\n" and plain("7", ("",)) == "7"


def test_the_task_of_the_readme_works(tmp_path):
    page = Path(importlib.util.find_spec("mindspore_impl.evaluation").origin).with_name("README.md")
    (tmp_path / "capitals.py").write_text(re.search(r"```python\n(.*?)```", page.read_text(), re.DOTALL)[1])
    spec = importlib.util.spec_from_file_location("capitals", tmp_path / "capitals.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "capitals.jsonl").write_text('{"country": "France", "capital": "Paris"}\n')
    (item,) = module.TASK.read(tmp_path, 0)
    assert module.TASK.score(item, " Paris") == {"exact": 1.0} and module.TASK.score(item, "Rome") == {"exact": 0.0}
