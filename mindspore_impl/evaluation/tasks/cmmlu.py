"""CMMLU: 67 subjects of four options each, Chinese (Li et al., arXiv 2306.09212).

Files: the published folder with `dev/SUBJECT.csv` and `test/SUBJECT.csv`: an index, Question, A, B, C, D, Answer, the
first row naming them. Prompt: an instruction that names the subject, the first 5 of dev as shots, the question with its
options, "答案："; the letter of largest log-likelihood is the answer. Metric: acc over all questions (and per
subject). Subjects are named in Chinese with `subject_mapping.json` (see `multiple_choice.read`), else by file name.
"""

from functools import partial

from mindspore_impl.evaluation.tasks import multiple_choice
from mindspore_impl.evaluation.tasks.base import Task


def _instruction(name: str) -> str:
    return f"以下是关于{name}的单项选择题，请直接给出正确答案的选项。"


LAYOUT = multiple_choice.Layout("Question", "Answer", True, "", "test", _instruction, "答案：")
TASK = Task(partial(multiple_choice.read, LAYOUT), shots=5)
