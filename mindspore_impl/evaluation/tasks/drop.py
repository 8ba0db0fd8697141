"""DROP: reading comprehension with discrete reasoning (Dua et al., arXiv 1903.00161).

Files: `drop_dataset_dev.json`, and `drop_dataset_train.json` beside it for shots: {passage id: {"passage", "qa_pairs":
[{"question", "query_id", "answer": {"number", "date": {"day", "month", "year"}, "spans"}, "validated_answers"}]}}.
Prompt: the first 3 of train, then "Passage: ...", "Question: ...", "Answer:". Metrics: f1 and em by the rules of the
data set's own evaluator, the best over the answer and the validated answers. The completion's first line is the
answer; it is split into several spans at ", " and " and " only where the right answer has several.
"""

import re
import string
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from mindspore_impl import files
from mindspore_impl.data.answers import half_width
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks.base import Item, Task, field, with_shots
from mindspore_impl.text.records import as_object

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def questions(file: Path) -> Iterator[tuple[Item, str]]:
    """The items of a file, each answer a list of spans. Raises UserError that names file and question."""
    for passage_id, entry in as_object(files.read_json(file), f"{file}").items():
        where = f"{file}: passage {passage_id!r}"
        passage = field(as_object(entry, where), "passage", str, where)
        for number, pair in enumerate(field(entry, "qa_pairs", list, where)):
            place = f"{where}, qa_pairs[{number}]"
            pair = as_object(pair, place)
            more = field(pair, "validated_answers", list, place) if pair.get("validated_answers") else []
            given = [field(pair, "answer", dict, place), *more]
            answers = [spans for spans in (_spans(answer, place) for answer in given) if spans[0].strip()]
            if not answers:
                raise UserError(f"{place}: the answer has no number, span or date")
            question = field(pair, "question", str, place)
            name = str(pair.get("query_id", f"{passage_id}/{number}"))
            prompt = f"Passage: {passage}\nQuestion: {question}\nAnswer:"
            yield Item(name, prompt, answer=answers), f" {', '.join(answers[0])}"


def _spans(answer: dict, where: str) -> list[str]:
    if str(as_object(answer, where).get("number", "")) != "":
        return [str(answer["number"])]
    if answer.get("spans"):
        return [str(span) for span in field(answer, "spans", list, where)]
    date = field(answer, "date", dict, where) if answer.get("date") else {}
    return [" ".join(str(date.get(part, "")) for part in ("day", "month", "year")).strip()]


def score(item: Item, completion: str) -> dict[str, float]:
    """The best f1 and em over the right answers."""
    text = completion.strip().partition("\n")[0].strip()
    parts = [part for part in re.split(r",\s+(?:and\s+)?|\s+and\s+|;\s*", text) if part.strip()] or [text]
    found = [compare(parts if len(answer) > 1 else [text], answer) for answer in item.answer]
    return {"f1": max(f1 for _, f1 in found), "em": max(em for em, _ in found)}


def compare(given: list[str], right: list[str]) -> tuple[float, float]:
    """(em, f1) of predicted spans against the right ones: bags of words, matched one to one for the largest sum."""
    from scipy.optimize import linear_sum_assignment  # comes with mindspore

    given, right = [normal(span) for span in given], [normal(span) for span in right]
    em = float(set(given) == set(right) and len(given) == len(right))
    f1_RG = np.array([[_f1(set(span.split()), set(wanted.split())) for span in given] for wanted in right])
    best = f1_RG[linear_sum_assignment(f1_RG, maximize=True)]
    return em, round(float(best.sum() / max(len(given), len(right))), 2)  # an extra or missing span counts as 0


def normal(text: str) -> str:
    """Normalize: lower case, no articles or punctuation, canonical numbers; words are split at spaces and hyphens."""
    parts = re.split(" |-", half_width(text.lower()))
    words = [word if _is_number(word) else word.translate(_PUNCTUATION) for word in parts]
    words = [str(float(word)) if _is_number(word) else word for word in words]
    return " ".join(_ARTICLES.sub(" ", " ".join(words)).split())


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _f1(given: set, right: set) -> float:
    """F1 of two bags of words; 0 when the right one has numbers and the other has none of them."""
    numbers = {word for word in right if _is_number(word)}
    if numbers and not numbers & given:
        return 0.0
    common = len(given & right)
    precision, recall = (common / len(bag) if bag else 1.0 for bag in (given, right))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


READ = partial(with_shots, questions, ("drop_dataset_dev.json", "drop_dataset_train.json"))
TASK = Task(READ, score, ("f1", "em"), shots=3, stop=("\n",), max_new_tokens=64)
