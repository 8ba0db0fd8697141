"""An existing run is opened as it is: nothing is trained or written, and what is damaged is named."""

import pytest

from mindspore_impl import files
from mindspore_impl.cli.verify_store import open_run
from mindspore_impl.errors import UserError
from mindspore_impl.schema import to_plain
from mindspore_impl.text.tokenizer import train_tokenizer
from tests.curriculum.conftest import compose_quickly


def write_config(folder, *overrides):
    from omegaconf import OmegaConf

    plain = to_plain(compose_quickly(f"run_dir={folder}", "tokenizer.vocab_size=110", *overrides))
    files.write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(plain)))


def content(folder) -> dict:
    return {path: files.sha256_file(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def tokenizer(tmp_path):
    texts = [f"sort {letter} then reverse" for letter in "abcdefghijklmnopqrstuvwxyz"]
    return train_tokenizer(texts, tmp_path / "run" / "tokenizer" / "tokenizer.model", 80, 1.0)


def test_options_changed_since_leave_the_tokenizer_alone(tmp_path, tokenizer, ms_runtime):
    folder = tmp_path / "run"
    write_config(folder, "tokenizer.vocab_size=120", "runtime=cpu")
    before = content(folder)
    context = open_run(folder)
    assert context.tokenizer.sha256 == tokenizer.sha256
    assert "capture_fast" in context.plan and context.run_dir == folder
    assert content(folder) == before


def test_a_tokenizer_of_its_own_path_is_used(tmp_path, tokenizer, ms_runtime):
    folder = tmp_path / "other"
    folder.mkdir()
    write_config(folder, f"tokenizer.path={tokenizer.path}", "runtime=cpu")
    assert open_run(folder).tokenizer.sha256 == tokenizer.sha256


def test_missing_tokenizer_is_refused_and_not_trained(tmp_path):
    write_config(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer\.model: "):
        open_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"name: [", "config.yaml"), (b"\xff\xfe", "config.yaml"), (b"- a", "config.yaml"), (b"sede: 1", "sede")],
)
def test_damaged_config_is_named(tmp_path, text, message):
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(UserError, match=message):
        open_run(tmp_path)


def test_no_run_directory(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}.*config.yaml"):
        open_run(tmp_path / "absent")
