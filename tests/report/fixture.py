"""A synthetic run directory with stages of several groups, for tests and for looking at a report."""

import json
import math
import random
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
GROUPS = {
    "sft": "training",
    "distill": "training",
    "rollout": "generation",
    "capture": "scoring",
    "evaluate": "evaluation",
}
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


def build_run(
    folder: Path,
    seed: int = 1,
    stop_after: int | None = None,
    name: str = "quickstart",
    hostile: str = "",
    final: str = "",
) -> Path:
    """Write a run directory: `stop_after` stages are finished and the next is under way (None: all are finished).

    hostile: is put into every free text that a run takes from outside: names, prompts, answers, versions, config.
    final: the run ends with distill_fast, under this name.
    """
    stages, config = STAGES, CONFIG.format(name=json.dumps(name), folder=json.dumps(str(folder)), seed=seed)
    if final:
        config = config.replace(", control]", "]").partition("  control:")[0].replace("distill_fast", final)
        stages = json.loads(json.dumps(STAGES[:-2]).replace("distill_fast", final))
    folder.mkdir(parents=True)
    draw = random.Random(seed)
    (folder / "config.yaml").write_text(config + (f"# {hostile}\n" if hostile else ""), encoding="utf-8")
    environment = {
        "device": f"Intel(R) Xeon(R) Processor @ 2.60GHz, 2 cores{hostile}",
        "versions": {"python": "3.11.2", "mindspore": "2.9.0", "mindformers": "1.9.0", "numpy": f"1.26.4{hostile}"},
        "commit": "4f1d2a90c3b7e5d8f6a1b2c3d4e5f60718293a4b",
        "started": "2026-02-03T10:11:12+00:00",
    }
    (folder / "environment.json").write_text(json.dumps(environment), encoding="utf-8")
    write_plan(folder, [(name, kind, inputs) for name, kind, inputs, *_ in stages])
    under_way = None if stop_after is None else stop_after + 1
    for number, stage in enumerate(stages[:under_way], start=1):
        _write_stage(folder / "stages" / f"{number:02d}_{stage[0]}", stage, draw, number != under_way, hostile)
    return folder


def write_plan(folder: Path, stages: list[tuple[str, str, dict]]) -> None:
    """Write plan.json of stages (name, kind, inputs); an evaluation measures the stage that it reads."""
    names = {name for name, *_ in stages}
    entries = []
    for index, (name, kind, inputs) in enumerate(stages, start=1):
        measured = inputs["init"] if kind == "evaluate" and inputs["init"] in names else ""
        entry = {"index": index, "folder": f"{index:02d}_{name}", "name": name, "kind": kind, "group": GROUPS[kind]}
        entries.append(entry | {"inputs": inputs, "measured": measured, "work": f"{index} steps"})
    (folder / "plan.json").write_text(json.dumps({"schema": 1, "stages": entries}), encoding="utf-8")


def _write_stage(folder: Path, stage: tuple, draw: random.Random, finished: bool, hostile: str) -> None:
    name, kind, inputs, steps, losses, right = stage
    folder.mkdir(parents=True)
    record = {
        "name": name,
        "kind": kind,
        "fingerprint": "0" * 64,
        "inputs": inputs,
        "started": "2026-02-03T10:11:12+00:00",
    }
    if steps:
        lines = _training_lines(kind, steps if finished else steps // 2, losses, draw)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text if finished else text + '{"step": 1', encoding="utf-8")
    if not finished:
        (folder / "stage.json").write_text(json.dumps(record | {"status": "running", "seconds": 0.0}), encoding="utf-8")
        return
    tokens = steps * 1900 or 24000
    metrics = {"tokens": tokens, "tokens_per_second": 18000 + draw.random() * 4000}
    if kind == "evaluate":
        metrics = _evaluation(right, draw) | {"tokens": tokens}
        lines = _samples(right, draw, hostile)
        (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    if kind == "rollout":
        metrics |= {"prompts": 2000, "generations": 2000, "finished_share": 0.97}
    if kind == "capture":
        metrics |= {
            "positions": 24000,
            "bytes_per_position": 44.1,
            "teacher_mass": 0.997,
            "teacher_entropy": float("nan"),
        }
    record |= {"status": "finished", "seconds": 4 + tokens / 17000, "tokens": tokens, "metrics": metrics}
    (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")


def _training_lines(kind: str, steps: int, losses: tuple, draw: random.Random) -> list[dict]:
    first, last = losses
    lines = []
    for step in range(10, steps + 1, 10):
        fade = math.exp(-step / 120)
        loss = last + (first - last) * fade * (1 + 0.1 * draw.gauss(0, 1)) + 0.01 * abs(draw.gauss(0, 1))
        line = {"step": step, "loss": loss, "ce": loss, "supervised_tokens": 900, "tokens": 1900, "grad_norm": 0.7}
        if kind == "distill":
            line |= {
                "ce": 0.42 + 0.05 * draw.gauss(0, 1), "kd": loss * 0.9,
                "teacher_entropy": 0.21 + 0.01 * draw.gauss(0, 1),
                "teacher_mass": 0.997 + 0.0005 * draw.gauss(0, 1), "student_mass": 0.995 - 0.02 * fade,
                "agreement": 0.955 - 0.09 * fade + 0.004 * draw.gauss(0, 1),
            }  # fmt: skip
        if step == 50:
            line["loss"] = float("nan")
        lines.append(line)
        if step % 100 == 0 or step == steps:
            held = {name: {"loss": loss * factor, "perplexity": math.exp(loss * factor), "tokens": 5000}
                    for name, factor in (("validation_fast", 1.15), ("validation_reasoning", 1.02))}  # fmt: skip
            lines.append({"step": step, "validation": held})
    return lines


def _evaluation(right: tuple, draw: random.Random) -> dict:
    accuracy = {}
    for name, correct in zip(SETS, right, strict=True):
        correct = max(0, min(200, correct + draw.randrange(-6, 7)))
        low, high = wilson_interval(correct, 200)
        accuracy[name] = {"correct": correct, "total": 200, "accuracy": correct / 200, "low": low, "high": high,
                          "truncated": 2, "seconds": 3.5}  # fmt: skip
    return {
        "accuracy": accuracy,
        "perplexity": {"validation_fast": {"loss": 0.31, "perplexity": 1.36, "tokens": 9000}},
        "calibration": {"validation_fast": _calibration(draw)},
    }


def _calibration(draw: random.Random) -> dict:
    """A model that is surer than it is right."""
    bins = []
    for number in range(3, 15):
        confidence = (number + 0.6) / 15
        accuracy = min(1.0, 0.85 * confidence + 0.02 * draw.random())
        bins.append({"low": number / 15, "high": (number + 1) / 15, "tokens": 60 * number, "confidence": confidence,
                     "accuracy": accuracy})  # fmt: skip
    tokens = sum(each["tokens"] for each in bins)
    ece = sum(each["tokens"] * abs(each["confidence"] - each["accuracy"]) for each in bins) / tokens
    return {"ece": ece, "bins": bins, "tokens": tokens}


def _samples(right: tuple, draw: random.Random, hostile: str) -> list[dict]:
    lines = []
    for name in SETS:
        thinking = name.removeprefix("test_")
        for number in range(6):
            correct, finished = number != 1, number != 2
            lines.append(
                {
                    "id": f"list_programs/test/1/{number}{hostile}",
                    "set": name,
                    "thinking": thinking,
                    "prompt": f"list d b a c apply reverse sort{hostile}",
                    "reasoning": f"reverse c a b d sort a b c d{hostile}" if thinking == "reasoning" else "",
                    "answer": f"a b {'c d' if correct else 'd c'}{hostile}" if finished else "a b",
                    "expected": "a b c d",
                    "correct": correct and finished,
                    "finished": finished,
                    "shown": number < 3,
                }
            )
    return lines
