"""What lm-evaluation-harness says of the fixtures' answers; `python -m tests.integrations.harness_facts` records it."""

import json
from pathlib import Path

import yaml

from mindspore_impl.evaluation.tasks import TASKS
from tests import recorded

DATA = Path(__file__).parent.parent / "evaluation" / "tasks" / "data"
RECORDED = Path(__file__).with_name("harness_facts.json")
SHOTS = {"mmlu": 2, "gsm8k": 2}

GSM8K = [
    "#### 10", "So 2 * 5 = 10.\n#### 10.", "It is $10.", "10 km", "1,200", "#### 1,200", "the answer is 1200.",
    "-5", "#### -5", "3 - 8 = -5", "", "none", "#### ", "12 then 10", "$1,200.", "#### 1200\nQuestion",
]  # fmt: skip
DROP = [
    "21", "21.0", "21 points", "the Blues", "Blues.", "Smith", "Smith and Jones-Lee", "3 May 1990", "May 3 1990",
    "", "the Reds scored 14", "Jones Lee", "a blue", "21 points by Blues",
]  # fmt: skip
IFEVAL = [
    "It rains. It pours.", "It rains, and pours. Much.", "OAK. done", "Oak\n\nDONE", "", "one\n***\ntwo",
    "- a\n* b", '{"a": 1}', "```json\n[1]\n```", "<<T>>\n*x* and **y**", "My answer is yes.", "P.S. [a] and [b]",
    '"all"', "Section 1\na\nSection 2\nb", "a\n******\nb", "say it now. yes", "RAIN rain AND more",
    "then\n\nIt was, oak",
]  # fmt: skip
INSTRUCTIONS = [
    ("punctuation:no_comma", {}), ("startend:end_checker", {"end_phrase": "done"}), ("startend:quotation", {}),
    ("keywords:existence", {"keywords": ["oak"]}), ("keywords:forbidden_words", {"forbidden_words": ["it", "oak"]}),
    ("keywords:frequency", {"keyword": "rain", "frequency": 2, "relation": "at least"}),
    ("keywords:letter_frequency", {"letter": "a", "let_frequency": 2, "let_relation": "less than"}),
    ("length_constraints:number_words", {"num_words": 4, "relation": "at least"}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "it"}),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}), ("detectable_format:constrained_response", {}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}), ("detectable_format:json_format", {}),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 2}),
    ("detectable_format:title", {}), ("combination:two_responses", {}),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say it now."}),
]  # fmt: skip
MATH = [("\\boxed{\\frac{3}{4}}", 0), ("\\boxed{3/4}", 0), ("\\boxed{0.5}", 0), ("\\boxed{\\tfrac34}", 0), ("7", 0),
        ("\\boxed{\\sqrt{2}, -\\sqrt{2}}", 1), ("\\boxed{\\sqrt2,-\\sqrt2}", 1), ("\\boxed{2}", 1)]  # fmt: skip


def facts() -> dict:
    """The harness's own functions on these texts; its data is never loaded. Needs lm_eval."""
    import lm_eval

    return {
        "version": lm_eval.__version__ if hasattr(lm_eval, "__version__") else "",
        "gsm8k": _gsm8k(Path(lm_eval.__file__).parent),
        "drop": _drop(),
        "ifeval": _ifeval(),
        "math": _math(),
        "mmlu": _mmlu(Path(lm_eval.__file__).parent),
    }


def _rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def _config(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _gsm8k(folder: Path) -> list:
    from lm_eval.api.metrics import exact_match_fn
    from lm_eval.filters.extraction import RegexFilter

    config = _config(folder / "tasks" / "gsm8k" / "gsm8k.yaml")
    (metric,) = config["metric_list"]
    settings = {key: metric[key] for key in ("ignore_case", "ignore_punctuation", "regexes_to_ignore")}
    found = []
    for row in _rows("gsm8k/test.jsonl"):
        scores = {}
        for entry in config["filter_list"]:
            rule = {k: v for k, v in entry["filter"][0].items() if k != "function"}
            for text, made in zip(
                GSM8K, RegexFilter(**rule).apply([[t] for t in GSM8K], [row] * len(GSM8K)), strict=True
            ):
                score = exact_match_fn(predictions=[made[0]], references=[row["answer"]], **settings)["exact_match"]
                scores.setdefault(text, []).append(float(score))
        found.append(scores)
    return found


def _drop() -> list:
    from lm_eval.tasks.drop import utils

    found = []
    for entry in json.loads((DATA / "drop" / "drop_dataset_dev.json").read_text()).values():
        for pair in entry["qa_pairs"]:
            rights = [utils.parse_answer(answer) for answer in [pair["answer"], *pair["validated_answers"]]]
            made = {text: utils.process_results({"answers": rights}, [text]) for text in DROP}
            found.append({text: [float(scores["f1"]), float(scores["em"])] for text, scores in made.items()})
    return found


def _ifeval() -> list:
    from lm_eval.tasks.ifeval import utils

    found = []
    for name, arguments in INSTRUCTIONS:
        asked = utils.InputExample(0, [name], "", [arguments])
        made = [utils.test_instruction_following_strict(asked, text).follow_all_instructions for text in IFEVAL]
        found.append([name, arguments, [bool(value) for value in made]])
    return found


def _math() -> list:
    from lm_eval.tasks.hendrycks_math.utils import is_equiv, last_boxed_only_string, remove_boxed

    rows, found = _rows("math500/test.jsonl"), []
    for text, index in MATH:
        boxed = last_boxed_only_string(text)
        found.append([text, index, bool(is_equiv(remove_boxed(boxed) if boxed else text, rows[index]["answer"]))])
    return found


def _mmlu(folder: Path) -> list[str]:
    """The prompts of a subject as the harness's template writes them, with its description and first shots."""
    from lm_eval.utils import apply_template

    template = _config(folder / "tasks" / "mmlu" / "default" / "_default_template_yaml")["doc_to_text"]
    description = "The following are multiple choice questions (with answers) about small sums.\n\n"
    from mindspore_impl.evaluation.tasks.base import rows

    columns = ("question", "A", "B", "C", "D", "answer")
    read = {split: [row for _, row in rows(DATA / "mmlu" / split / f"small_sums_{split}.csv", columns, False)]
            for split in ("dev", "test")}  # fmt: skip

    def asked(row: dict) -> str:
        return apply_template(template, {"question": row["question"], "choices": [row[letter] for letter in "ABCD"]})

    shots = "".join(f"{asked(row)} {row['answer']}\n\n" for row in read["dev"][: SHOTS["mmlu"]])
    return [description + shots + asked(row) for row in read["test"]]


def ours() -> dict:
    """The same from our own tasks, in the form of `facts`."""
    from mindspore_impl.evaluation.tasks import drop, instructions
    from mindspore_impl.evaluation.tasks.gsm8k import score as score_gsm8k

    gsm8k = TASKS["gsm8k"].read(DATA / "gsm8k", SHOTS["gsm8k"])
    asked = TASKS["drop"].read(DATA / "drop", 0)
    problems = TASKS["math500"].read(DATA / "math500", 0)
    small = [i for i in TASKS["mmlu"].read(DATA / "mmlu", SHOTS["mmlu"]) if i.group == "small_sums"]

    def texts(item):
        made = {text: score_gsm8k(item, text) for text in GSM8K}
        return {text: [scores["strict_match"], scores["flexible_extract"]] for text, scores in made.items()}

    def followed(name, arguments, text):
        return bool(text.strip()) and instructions.follows(name, arguments, text)

    def bags(item, text):
        found = [drop.compare([text], right) for right in item.answer]
        return [max(f1 for _, f1 in found), max(em for em, _ in found)]

    return {
        "gsm8k": [texts(item) for item in gsm8k],
        "drop": [{text: bags(item, text) for text in DROP} for item in asked],
        "ifeval": [[name, arguments, [followed(name, arguments, text) for text in IFEVAL]]
                   for name, arguments in INSTRUCTIONS],
        "math": [[text, index, TASKS["math500"].score(problems[index], text)["accuracy"] == 1] for text, index in MATH],
        "mmlu": [item.header + item.prompt for item in small],
    }  # fmt: skip


if __name__ == "__main__":
    recorded.write(RECORDED, facts(), 2)
