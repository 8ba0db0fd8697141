"""An installed wheel works outside the clone, its conf/ and console scripts with it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_every_room_is_a_package():
    for path in (ROOT / "mindspore_impl").rglob("*.py"):
        assert (path.parent / "__init__.py").is_file(), f"{path.parent.name} would be missing from a wheel"


@pytest.mark.slow
def test_wheel_outside_the_clone(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("mindspore_impl", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(pip, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("openpangu_posttrain-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        scripts = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "mindspore_impl/report/templates/page.html" in archive.namelist()
        assert "pangu-train = mindspore_impl.cli.train:main\n" in archive.read(scripts).decode()
    shutil.rmtree(source)
    code = "import mindspore_impl, sys; from mindspore_impl.cli.train import main; print(mindspore_impl.__file__); "
    code += "sys.exit(main(sys.argv[1:]))"
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "experiment").mkdir(parents=True)
    (elsewhere / "experiment" / "mine.yaml").write_text("# @package _global_\ndefaults: [quickstart]\nname: mine\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    path, folder = ["experiment=experiment/mine.yaml"], ["--config-dir=.", "experiment=mine"]
    for chosen in (["experiment=quickstart"], path, folder, ["-m", *path, "seed=1,2"]):
        command = [sys.executable, "-c", code, *chosen, "--dry-run"]
        result = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert str(tmp_path / "site") in result.stdout
        assert ("2 trials" if "-m" in chosen else "01_teacher") in result.stdout
