import pytest

from mindspore_impl.distributed import ranks


@pytest.fixture
def run(monkeypatch, capsys):
    """run(tool, *arguments) -> (exit code, stdout, stderr), in this process."""
    monkeypatch.setenv("PANGU_DEBUG", "0")
    monkeypatch.setattr(ranks, "stop_on_sigterm", lambda: None)

    def call(tool, *arguments: str) -> tuple[int, str, str]:
        code = tool.main([*arguments])
        return code, *capsys.readouterr()

    return call
