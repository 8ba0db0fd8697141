"""C-Eval: 52 subjects of four options each, Chinese (Huang et al., arXiv 2305.08322).

Files: the published folder with `dev/SUBJECT_dev.csv` and `val/SUBJECT_val.csv`: id, question, A, B, C, D, answer (and
explanation), the first row naming them; the answers of `test` are not published, so `val` is measured. Prompt: an
instruction that names the subject, the first 5 of dev as shots, the question with its options, "答案："; the letter of
largest log-likelihood is the answer. Metric: acc over all questions (and per subject). `subject_mapping.json` of the
data set, put beside the folders, gives the subjects' Chinese names.
"""

from functools import partial

from mindspore_impl.evaluation.tasks import multiple_choice
from mindspore_impl.evaluation.tasks.base import Task


def _instruction(name: str) -> str:
    return f"以下是中国关于{name}的单项选择题，请选出其中的正确答案。"


LAYOUT = multiple_choice.Layout("question", "answer", True, "_{split}", "val", _instruction, "答案：")
TASK = Task(partial(multiple_choice.read, LAYOUT), shots=5)
