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
from pathlib import Path

import numpy as np

from mindspore_impl import files
from mindspore_impl.errors import UserError
from mindspore_impl.evaluation.tasks.base import Item, Task, field, first_shots, question_files

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def read(path: Path, shots: int) -> list[Item]:
    """The items of a folder or file. Raises UserError that names file and question."""
    test, train = question_files(path, "drop_dataset_dev.json", "drop_dataset_train.json", shots)
    shown = ((p, f" {', '.join(answers[0])}") for _, p, answers in _questions(train)) if train else iter(())
    header = first_shots(shown, shots, train or path)
    return [Item(name, prompt, header, answer=answers) for name, prompt, answers in _questions(test)]


def _questions(file: Path) -> Iterator[tuple[str, str, list[list[str]]]]:
    """(id, prompt, right answers, each a list of spans)."""
    data = files.read_json(file)
    if not isinstance(data, dict):
        raise UserError(f"{file}: expected an object of passages, found {type(data).__name__}")
    for passage_id, entry in data.items():
        where = f"{file}: passage {passage_id!r}"
        if not isinstance(entry, dict):
            raise UserError(f"{where}: expected an object, found {type(entry).__name__}")
        passage = field(entry, "passage", str, where)
        for number, pair in enumerate(field(entry, "qa_pairs", list, where)):
            place = f"{where}, qa_pairs[{number}]"
            if not isinstance(pair, dict):
                raise UserError(f"{place}: expected an object, found {type(pair).__name__}")
            more = field(pair, "validated_answers", list, place) if pair.get("validated_answers") else []
            given = [field(pair, "answer", dict, place), *more]
            answers = [spans for spans in (_spans(answer, place) for answer in given) if spans[0].strip()]
            if not answers:
                raise UserError(f"{place}: the answer has no number, span or date")
            question = field(pair, "question", str, place)
            name = str(pair.get("query_id", f"{passage_id}/{number}"))
            yield name, f"Passage: {passage}\nQuestion: {question}\nAnswer:", answers


def _spans(answer: dict, where: str) -> list[str]:
    if not isinstance(answer, dict):
        raise UserError(f"{where}: an answer must be an object, found {type(answer).__name__}")
    if str(answer.get("number", "")) != "":
        return [str(answer["number"])]
    if answer.get("spans"):
        return [str(span) for span in field(answer, "spans", list, where)]
    date = field(answer, "date", dict, where) if answer.get("date") else {}
    return [" ".join(str(date.get(part, "")) for part in ("day", "month", "year")).strip()]


def score(item: Item, completion: str) -> dict[str, float]:
    """The best f1 and em over the right answers."""
    text = completion.strip().partition("\n")[0].strip()
    found = [compare(_parts(text) if len(answer) > 1 else [text], answer) for answer in item.answer]
    return {"f1": max(f1 for _, f1 in found), "em": max(em for em, _ in found)}


def _parts(text: str) -> list[str]:
    """Split a line of text into the spans that it enumerates."""
    return [part for part in re.split(r",\s+(?:and\s+)?|\s+and\s+|;\s*", text) if part.strip()] or [text]


def compare(given: list[str], right: list[str]) -> tuple[float, float]:
    """(em, f1) of predicted spans against the right ones: bags of words, matched one to one for the largest sum."""
    given, right = [normal(span) for span in given], [normal(span) for span in right]
    em = float(set(given) == set(right) and len(given) == len(right))
    return em, round(float(np.mean(_aligned([set(s.split()) for s in given], [set(s.split()) for s in right]))), 2)


def normal(text: str) -> str:
    """Normalize: lower case, no articles or punctuation, canonical numbers; words are split at spaces and hyphens."""
    words = (_ARTICLES.sub(" ", _number(_bare(word))) for word in re.split(" |-", text.lower()))
    return " ".join(" ".join(words).split())


def _bare(word: str) -> str:
    return word if _is_number(word) else word.translate(_PUNCTUATION)


def _number(word: str) -> str:
    return str(float(word)) if _is_number(word) else word


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _aligned(given: list[set], right: list[set]) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment  # comes with mindspore

    scores = np.array([[_f1(bag, wanted) for bag in given] for wanted in right])
    rows, columns = linear_sum_assignment(-scores)
    best = np.zeros(max(len(given), len(right)))  # an extra or missing span counts as 0
    best[: len(rows)] = scores[rows, columns]
    return best


def _f1(given: set, right: set) -> float:
    """F1 of two bags of words; 0 when the right one has numbers and the other has none of them."""
    numbers = {word for word in right if _is_number(word)}
    if numbers and not numbers & given:
        return 0.0
    common = len(given & right)
    precision, recall = (common / len(bag) if bag else 1.0 for bag in (given, right))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


TASK = Task(read, score, ("f1", "em"), shots=3, stop=("\n",), max_new_tokens=64)
