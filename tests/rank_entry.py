"""What each process of the `two_ranks` fixture runs: a function of a script of ours, whose JSON result it writes.

arguments: script, function, folder. A function takes the folder, which the ranks share.
"""

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main(script: str, function: str, folder: str) -> None:
    from mindspore_impl import runtime
    from mindspore_impl.distributed import ranks, scheduler

    if ranks.is_scheduler():
        return scheduler.serve()
    ranks.join("CPU")
    runtime.watch(120)
    runtime.setup(runtime.RuntimeOptions(device="CPU", threads=1), seed=0)
    spec = importlib.util.spec_from_file_location("ranks_script", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = getattr(module, function)(Path(folder))
    Path(folder, f"result_{runtime.rank()}.json").write_text(json.dumps(result))
    ranks.barrier()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main(*sys.argv[1:])
