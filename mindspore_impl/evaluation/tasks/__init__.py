"""The benchmarks and their registry `TASKS`."""

from mindspore_impl.evaluation.tasks import cluewsc, drop, gsm8k, humaneval, ifeval, math500, mbpp, multiple_choice
from mindspore_impl.evaluation.tasks.base import Task

TASKS: dict[str, Task] = {
    **multiple_choice.TASKS,
    "cluewsc": cluewsc.TASK,
    "gsm8k": gsm8k.TASK,
    "math500": math500.TASK,
    "drop": drop.TASK,
    "ifeval": ifeval.TASK,
    "humaneval": humaneval.TASK,
    "humaneval_chat": humaneval.CHAT,
    "mbpp": mbpp.TASK,
}
