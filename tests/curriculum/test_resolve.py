"""Which weights a path to a run means."""

import json

import yaml

from mindspore_impl.curriculum.resolve import resolve_model_path


def test_a_run_means_the_last_stage_of_its_order_that_has_weights(tmp_path):
    """Folders are numbered by the order of an earlier command; `dropped` is not in the order any more."""
    for folder in ("01_teacher", "02_student", "03_dropped", "04_package"):
        (tmp_path / "stages" / folder).mkdir(parents=True)
        if folder != "04_package":
            (tmp_path / "stages" / folder / "checkpoints").mkdir()
        note = {"name": folder[3:], "model": "m", "options": {}}
        (tmp_path / "stages" / folder / "stage.json").write_text(json.dumps(note))
    for order, last in (
        (["teacher", "student", "package"], "02_student"),
        (["student", "teacher", "later"], "01_teacher"),
        ([], "03_dropped"),
    ):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"order": order, "models": {"m": {}}}))
        assert resolve_model_path(tmp_path).weights == tmp_path / "stages" / last
