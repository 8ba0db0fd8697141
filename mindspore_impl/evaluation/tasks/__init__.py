"""The benchmarks, one file each, and their registry `TASKS`."""

from mindspore_impl.evaluation.tasks import ceval, cluewsc, cmmlu, drop, gsm8k, humaneval, ifeval, math500, mbpp, mmlu
from mindspore_impl.evaluation.tasks.base import Task

TASKS: dict[str, Task] = {
    "mmlu": mmlu.TASK,
    "cmmlu": cmmlu.TASK,
    "ceval": ceval.TASK,
    "cluewsc": cluewsc.TASK,
    "gsm8k": gsm8k.TASK,
    "math500": math500.TASK,
    "drop": drop.TASK,
    "ifeval": ifeval.TASK,
    "humaneval": humaneval.TASK,
    "humaneval_chat": humaneval.CHAT,
    "mbpp": mbpp.TASK,
}
