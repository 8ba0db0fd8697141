"""MMLU: 57 subjects of four options each, English (Hendrycks et al., arXiv 2009.03300).

Files: the published folder with `dev/SUBJECT_dev.csv` and `test/SUBJECT_test.csv`: question, A, B, C, D, answer,
without a row of names. Prompt: "The following are multiple choice questions (with answers) about SUBJECT.", the first 5
of dev as shots, the question with its options, "Answer:"; the letter of largest log-likelihood is the answer. Metric:
acc over all questions (and per subject). The text is lm-evaluation-harness's (task mmlu).
"""

from functools import partial

from mindspore_impl.evaluation.tasks import multiple_choice
from mindspore_impl.evaluation.tasks.base import Task


def _instruction(name: str) -> str:
    return f"The following are multiple choice questions (with answers) about {name}."


LAYOUT = multiple_choice.Layout("question", "answer", False, "_{split}", "test", _instruction, "Answer:")
TASK = Task(partial(multiple_choice.read, LAYOUT), shots=5)
