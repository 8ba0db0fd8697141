"""Making a package: what is refused before, what is checked after, and what a failure leaves behind."""

import json
import sys

import numpy as np
import pytest

from mindspore_impl.cli import export
from mindspore_impl.curriculum import configuration
from mindspore_impl.curriculum.plan import make_plan
from mindspore_impl.errors import UserError
from mindspore_impl.export import build as exporting
from mindspore_impl.export import parity
from mindspore_impl.export.options import ExportOptions
from mindspore_impl.export.package import open_package
from tests.export.conftest import BUCKETS, CACHE, PROMPTS, STEPS, in_this_process


def settings(**changes) -> ExportOptions:
    return ExportOptions(**{"precision": "fp32", "cache_length": 24, "buckets": [16], "compare": [],
                            "parity_tokens": 4, **changes})  # fmt: skip


def run(target, model, options, tokenizer, prompts=PROMPTS[:1], measure=in_this_process, **changes):
    return exporting.export_package(
        target, options, lambda: (model, "cafe"), tokenizer, prompts, settings(**changes), measure
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_length": 129}, "export.cache_length: 129 .* 128"),
        ({"cache_length": 0}, "export.cache_length: 0"),
        ({"buckets": []}, "export.buckets: "),
        ({"buckets": [0, 4]}, r"export.buckets\[0\]: 0"),
        ({"buckets": [4, 4]}, "export.buckets: .* stands twice"),
        ({"buckets": [25]}, "export.buckets: 25 is longer than export.cache_length 24"),
        ({"buckets": [5]}, "prompt has 6 tokens, longer than the largest bucket 5"),
        ({"buckets": [6], "cache_length": 6}, "6 tokens, which leaves no room in a cache of 6"),
        ({"parity_tokens": 0}, "export.parity_tokens: 0 is below 1"),
    ],
)
def test_impossible_options(ms_runtime, options, tokenizer, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path / "p", None, options, tokenizer, **changes)
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_larger_than_the_model(ms_runtime, tokenizer, tmp_path):
    from tests.model.small_models import small_options

    with pytest.raises(UserError, match=f"{tokenizer.vocab_size} pieces, but the model has 37"):
        run(tmp_path / "p", None, small_options(), tokenizer)


def test_foreign_folder_is_not_touched(ms_runtime, model, options, tokenizer, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="exists and is no package"):
        run(tmp_path, model, options, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_package_that_differs_is_not_published(
    packages, package, model, options, tokenizer, reference, monkeypatch, capsys
):
    """An earlier package stays; nothing temporary is left. The graphs are those of the session's package."""
    graphs = packages["fp32"][0]
    monkeypatch.setattr(parity, "reference", lambda *_: reference)
    monkeypatch.setattr(exporting, "_trace", lambda name, *_: (graphs / f"{name}.mindir").read_bytes())
    before, folder = (package / "manifest.json").read_bytes(), package.parent
    row = packages["fp32"][1]["packages"]["fp32"]

    def export(target_soc: str, row: dict) -> dict:
        same = {"cache_length": CACHE, "buckets": BUCKETS, "parity_tokens": STEPS}
        return run(package, model, options, tokenizer, PROMPTS, lambda *_: row, target_soc=target_soc, **same)

    with pytest.raises(UserError, match="fp32 graphs differ from the training graph by 0.5 "):
        export("a", row | {"max_logits_difference": {"prefill": 0.0, "decode": 0.5}})
    assert (package / "manifest.json").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["package"]
    report = export("b", row)
    assert "board memory, modelled (fp32, cache 96, buckets [12, 24])" in capsys.readouterr().out
    assert json.loads((package / "parity.json").read_text()) == report and report["tokens_each"] == STEPS
    assert open_package(package).manifest["target_soc"] == "b"
    assert [path.name for path in folder.iterdir()] == ["package"]


def test_measuring_in_a_process_of_its_own(ms_runtime, packages, reference, monkeypatch):
    tokens_PS, logits_PSV = reference.tokens_PS[:1, :4], reference.logits_PSV[:1, :4]
    wanted = parity.Reference(PROMPTS[:1], tokens_PS, logits_PSV, 0.0)
    row = parity.measure_alone(packages["fp32"][0], wanted)
    assert max(row["max_logits_difference"].values()) <= 1e-5 and row["greedy_tokens_equal"] == [4]
    memory = row["process_memory_bytes"]
    assert 0 < memory["start"] <= memory["one_graph"] <= memory["both_graphs"] <= memory["peak"]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="fp32: the exported graphs do not run"):
        parity.measure_alone(packages["fp32"][0], wanted)


def wanted_of(logits_PSV):
    return parity.Reference([[1]], logits_PSV.argmax(axis=2), logits_PSV, 0.0)


def test_comparison_sees_a_difference_where_it_is():
    logits_PSV = np.zeros((1, 4, 5), np.float32)
    logits_PSV[..., 2] = 3.0
    same = parity.compare(logits_PSV.copy(), wanted_of(logits_PSV))
    assert same["max_logits_difference"] == {"prefill": 0.0, "decode": 0.0} and same["greedy_tokens_equal"] == [4]
    found_PSV = logits_PSV.copy()
    found_PSV[0, 0, 1], found_PSV[0, 2, 4] = 0.25, 3.5
    row = parity.compare(found_PSV, wanted_of(logits_PSV))
    assert row["max_logits_difference"] == {"prefill": 0.25, "decode": 3.5}
    assert row["greedy_tokens_equal"] == [2] and row["greedy_equal_prompts"] == 0 and row["top1_agreement"] == 0.75
    p_SV, q_SV = (np.exp(x[0]) / np.exp(x[0]).sum(1, keepdims=True) for x in (logits_PSV, found_PSV))
    assert row["kl_nats"] == pytest.approx((p_SV * np.log(p_SV / q_SV)).sum() / 4, rel=1e-5)


def test_not_a_number_is_never_near():
    logits_PSV = np.full((1, 2, 5), np.nan, np.float32)
    row = parity.compare(logits_PSV, wanted_of(np.zeros((1, 2, 5), np.float32)))
    with pytest.raises(UserError, match="int8 graphs differ from the training graph by nan"):
        parity.check("int8", row)


def test_estimate_of_the_published_model(ms_runtime):
    """Known sizes: 1,155,912,192 parameters, 79,872 bytes of 16-bit cache a token."""
    model = configuration.compose(["model@models.student=pangu_1b"]).models["student"]
    found = {p: exporting.memory_estimate(model, ExportOptions(p, 2048, [64, 1024])) for p in ("fp32", "fp16", "int8")}
    assert found["fp16"]["cache"] == 2 * 2048 * 79872
    assert found["fp16"]["weights"] == pytest.approx(2 * 1_155_912_192, rel=2e-3)
    assert found["fp32"]["weights"] == pytest.approx(4 * 1_155_912_192, rel=2e-3)
    layers = 1_155_912_192 - 153376 * 1536
    assert found["int8"]["weights"] == pytest.approx(layers + 2 * 153376 * 1536, rel=5e-3)
    assert found["fp16"]["weights_in_each_graph"] - found["fp16"]["weights_shared"] == 2 * found["fp16"]["weights"]


STAGE = [
    "+stage@stages.board=export",
    "stages.board.init=sft_fast",
    "order=[sft_reasoning,sft_fast,board]",
    "compare=[]",
]


def test_a_stage_is_planned_with_its_input_and_data(ms_runtime):
    plan = {planned.name: planned for planned in make_plan(configuration.compose(STAGE))}
    assert plan["board"].kind == "export" and plan["board"].model == "student"
    changed = make_plan(configuration.compose([*STAGE, "stages.board.export.precision=int8"]))[-1]
    assert changed.fingerprint != plan["board"].fingerprint
    sets = make_plan(configuration.compose([*STAGE, "stages.board.prompts=[test_fast]"]))[-1]
    assert sets.fingerprint != plan["board"].fingerprint
    with pytest.raises(UserError, match=r"stages\.board\.export\.buckets: 2000 is longer"):
        make_plan(configuration.compose([*STAGE, "stages.board.export.buckets=[2000]"]))
    with pytest.raises(UserError, match=r"stages\.board\.prompts: no data set is named 'tset_fast'"):
        make_plan(configuration.compose([*STAGE, "stages.board.prompts=[tset_fast]"]))


def test_commands_refuse_by_name(ms_runtime, tmp_path, capsys):
    assert export.main(["--model", str(tmp_path / "nowhere"), "--output", str(tmp_path / "p")]) == 2
    assert "nowhere: no such file or folder" in capsys.readouterr().err
    assert export.main(["materialise", str(tmp_path / "nowhere"), str(tmp_path / "p")]) == 2
    assert "manifest.json: no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_from_a_run_to_a_package_and_full_graphs(ms_runtime, tmp_path, capsys):
    """A trained stage, its export as a stage and by command, and the graphs for the converter."""
    from mindspore_impl.curriculum import runner

    small = [f"data.sets.{name}.count=80" for name in ("reasoning", "fast")]
    overrides = [
        f"run_dir={tmp_path / 'run'}", "+stage@stages.board=export", "stages.board.init=sft_fast",
        "order=[sft_fast,board]", "stages.sft_fast.init=null", "stages.sft_fast.train.max_steps=3", "compare=[]",
        "evaluation.accuracy=[]", "evaluation.perplexity=[]", "tokenizer.vocab_size=110",
        "stages.board.export.compare=[]", "stages.board.export.parity_tokens=8", "stages.board.prompts=[test_fast]",
    ]  # fmt: skip
    composed = configuration.compose(overrides + small)
    runner.run(composed)
    package = tmp_path / "run" / "stages" / "02_board" / "package"
    assert json.loads((package / "parity.json").read_text())["packages"]["fp16"]["top1_agreement"] > 0.9
    capsys.readouterr()
    runner.run(composed)
    assert "[2/2] board (export): finished before, skipped" in capsys.readouterr().out
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("list a b c d apply sort\nlist d c b a apply reverse\n")
    command = ["--model", str(tmp_path / "run"), "--output", str(tmp_path / "p"), "--precision", "int8"]
    command += ["--cache-length", "96", "--buckets", "32,64", "--compare", "fp32", "--prompts", str(prompts)]
    assert export.main(command) == 0
    report = json.loads((tmp_path / "p" / "parity.json").read_text())
    assert set(report["packages"]) == {"int8", "fp32"} and len(report["prompts"]) == 2
    assert export.main(["materialise", str(tmp_path / "p"), str(tmp_path / "full")]) == 0
    assert {path.name for path in (tmp_path / "full").iterdir()} == {
        "prefill_32.mindir", "prefill_64.mindir", "decode.mindir"
    }  # fmt: skip
