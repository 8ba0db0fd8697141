"""A synthetic run directory with stages of several groups, for tests and for looking at a report."""

import itertools
import json
import math
from pathlib import Path

from mindspore_impl.evaluation.scoring import wilson_interval

SETS = ("test_reasoning", "test_fast")
CONFIG = """\
name: {name}
run_dir: {folder}
order: [teacher, sft_reasoning, sft_fast, rollout_fast, capture_fast, distill_fast, control]
seed: {seed}
evaluation:
  accuracy: [test_reasoning, test_fast]
  perplexity: [validation_fast]
  samples_in_report: 3
stages:
  teacher: {{kind: sft, model: teacher, evaluate: true}}
  sft_reasoning: {{kind: sft, model: student, evaluate: true}}
  sft_fast: {{kind: sft, init: sft_reasoning, evaluate: true}}
  rollout_fast: {{kind: rollout, init: sft_fast, prompts: [fast]}}
  capture_fast: {{kind: capture, teacher: teacher, rollouts: rollout_fast, capture: {{mode: top_k, top_k: 10}}}}
  distill_fast:
    kind: distill
    init: sft_fast
    store: capture_fast
    rollouts: rollout_fast
    objective: {{kd_weight: 0.9, divergence: forward_kl, support: tail_bucket, temperature: 1.0}}
    evaluate: true
  control: {{kind: sft, init: sft_fast, evaluate: true}}
"""
GROUPS = {"sft": "training", "distill": "training", "rollout": "generation", "capture": "scoring"}
GROUPS["evaluate"] = "evaluation"
# name, kind, inputs, steps, (first, last) loss, right answers of 200 in (reasoning, fast)
STAGES = [
    ("teacher", "sft", {}, 900, (4.9, 0.11), None),
    ("eval_teacher", "evaluate", {"init": "teacher"}, 0, None, (196, 188)),
    ("sft_reasoning", "sft", {}, 520, (4.9, 0.32), None),
    ("eval_sft_reasoning", "evaluate", {"init": "sft_reasoning"}, 0, None, (150, 2)),
    ("sft_fast", "sft", {"init": "sft_reasoning"}, 260, (1.1, 0.45), None),
    ("eval_sft_fast", "evaluate", {"init": "sft_fast"}, 0, None, (148, 117)),
    ("rollout_fast", "rollout", {"init": "sft_fast"}, 0, None, None),
    ("capture_fast", "capture", {"teacher": "teacher", "rollouts": "rollout_fast"}, 0, None, None),
    ("distill_fast", "distill", {"init": "sft_fast", "store": "capture_fast", "rollouts": "rollout_fast"}, 260,
     (0.31, 0.12), None),
    ("eval_distill_fast", "evaluate", {"init": "distill_fast"}, 0, None, (163, 149)),
    ("control", "sft", {"init": "sft_fast"}, 260, (0.46, 0.40), None),
    ("eval_control", "evaluate", {"init": "control"}, 0, None, (152, 131)),
]  # fmt: skip


def build_run(folder: Path, seed=1, stop_after: int | None = None, name="quickstart", hostile="", final="") -> Path:
    """Write a run directory: `stop_after` stages are finished and the next is under way (None: all are finished).

    hostile: is put into every free text that a run takes from outside: names, prompts, answers, versions, config.
    final: the run ends with distill_fast, under this name.
    """
    stages, config = STAGES, CONFIG.format(name=json.dumps(name), folder=json.dumps(str(folder)), seed=seed)
    if final:
        config = config.replace(", control]", "]").partition("  control:")[0].replace("distill_fast", final)
        stages = json.loads(json.dumps(STAGES[:-2]).replace("distill_fast", final))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config + (f"# {hostile}\n" if hostile else ""), encoding="utf-8")
    environment = {
        "device": f"Intel(R) Xeon(R) Processor @ 2.60GHz, 2 cores{hostile}",
        "versions": {"python": "3.11.2", "mindspore": "2.9.0", "mindformers": "1.9.0", "numpy": f"1.26.4{hostile}"},
        "commit": "4f1d2a90c3b7e5d8f6a1b2c3d4e5f60718293a4b",
        "started": "2026-02-03T10:11:12+00:00",
    }
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    names, entries = {name for name, *_ in stages}, []
    for index, (stage, kind, inputs, *_) in enumerate(stages, start=1):
        measured = inputs["init"] if kind == "evaluate" and inputs["init"] in names else ""
        entry = {"index": index, "folder": f"{index:02d}_{stage}", "name": stage, "kind": kind, "group": GROUPS[kind]}
        entries.append(entry | {"inputs": inputs, "measured": measured, "work": f"{index} steps"})
    (folder / "plan.json").write_text(json.dumps({"schema": 1, "stages": entries}), encoding="utf-8")
    under_way = None if stop_after is None else stop_after + 1
    for number, stage in enumerate(stages[:under_way], start=1):
        _write_stage(folder / "stages" / f"{number:02d}_{stage[0]}", stage, seed, number != under_way, hostile)
    return folder


def change_json(path: Path, change) -> None:
    """Let `change` edit the content of a JSON file in place."""
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value)
    path.write_text(json.dumps(value), encoding="utf-8")


def change_stage(folder: Path, stage: str, change) -> None:
    """Let `change` edit the stage.json of a stage in place."""
    (path,) = folder.glob(f"stages/[0-9][0-9]_{stage}/stage.json")
    change_json(path, change)


def set_accuracy(folder: Path, stage: str, share: float) -> None:
    """Change what the evaluation of a stage measured on test_fast."""
    change = {"accuracy": share}
    change_stage(folder, f"eval_{stage}", lambda record: record["metrics"]["accuracy"]["test_fast"].update(change))


def _write_stage(folder: Path, stage: tuple, seed: int, finished: bool, hostile: str) -> None:
    name, kind, inputs, steps, losses, right = stage
    folder.mkdir(parents=True)
    record = {"name": name, "kind": kind, "inputs": inputs, "status": "running", "seconds": 0.0}
    if steps:
        text = _lines(_training_lines(kind == "distill", steps if finished else steps // 2, *losses))
        (folder / "metrics.jsonl").write_text(text if finished else text + '{"step": 1', encoding="utf-8")
    if finished:
        tokens = steps * 1900 or 24000
        metrics = {"tokens": tokens, "tokens_per_second": 18000}
        if right:
            metrics = _evaluation(right, seed) | {"tokens": tokens}
            (folder / "samples.jsonl").write_text(_lines(_samples(hostile)), encoding="utf-8")
        if kind == "rollout":
            metrics |= {"generations": 200, "flaws": {"truncated": 31, "empty": 0, "looping": 3, "nan": 0, "copies": 0}}
        if kind == "capture":
            metrics |= {"positions": 24000, "teacher_entropy": float("nan")}
        record |= {"status": "finished", "seconds": 4 + tokens / 17000, "tokens": tokens, "metrics": metrics}
    (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")


def _lines(values: list[dict]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def _training_lines(distills: bool, steps: int, first: float, last: float) -> list[dict]:
    lines = []
    for step in range(10, steps + 1, 10):
        fade = math.exp(-step / 120)
        loss = last + (first - last) * fade
        line = {"step": step, "loss": float("nan") if step == 50 else loss, "ce": loss, "tokens": 1900}
        if distills:
            line |= {"ce": 0.42, "kd": loss * 0.9, "teacher_entropy": 0.21, "teacher_mass": 0.997}
            line |= {"student_mass": 0.995 - 0.02 * fade, "agreement": 0.955 - 0.09 * fade}
        lines.append(line)
        if step % 100 == 0 or step == steps:
            names = ("validation_fast", "validation_reasoning")
            held = {name: {"loss": 1.1 * loss, "perplexity": math.exp(1.1 * loss), "tokens": 5000} for name in names}
            lines.append({"step": step, "validation": held})
    return lines


def _evaluation(right: tuple, seed: int) -> dict:
    """Right answers that vary with the seed, and a model that is surer than it is right."""
    accuracy = {}
    for name, correct in zip(SETS, right, strict=True):
        correct = max(0, min(200, correct + seed * 5 % 13 - 6))
        low, high = wilson_interval(correct, 200)
        accuracy[name] = {"correct": correct, "total": 200, "accuracy": correct / 200, "low": low, "high": high}
    bins = [{"tokens": 60, "confidence": (n + 0.6) / 15, "accuracy": 0.85 * (n + 0.6) / 15} for n in range(3, 15)]
    return {
        "accuracy": accuracy,
        "perplexity": {"validation_fast": {"loss": 0.31, "perplexity": 1.36, "tokens": 9000}},
        "calibration": {"validation_fast": {"ece": 0.096, "bins": bins, "tokens": 720}},
    }


def _samples(hostile: str) -> list[dict]:
    """Six answers of each set: the second is wrong, the third is cut; three are shown."""
    lines = []
    for name, number in itertools.product(SETS, range(6)):
        thinking, answer = name.removeprefix("test_"), "a b d c" if number == 1 else "a b c d"
        reasoning = f"reverse c a b d sort a b c d{hostile}" if thinking == "reasoning" else ""
        line = {"id": f"test/{number}{hostile}", "set": name, "thinking": thinking, "prompt": f"list d b a c{hostile}"}
        line |= {"reasoning": reasoning, "answer": f"{answer}{hostile}", "expected": "a b c d"}
        lines.append(line | {"correct": number not in (1, 2), "finished": number != 2, "shown": number < 3})
    return lines
