"""Packaging. conf/ lies beside the package in a clone and travels inside it in a wheel, as do the native operators."""

import importlib.util
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
VERSION = next(
    line.split('"')[1]
    for line in (HERE / "mindspore_impl/__init__.py").read_text().splitlines()
    if "__version__" in line
)
CONF_FOLDERS = [
    "mindspore_impl.conf",
    *(f"mindspore_impl.conf.{p.name}" for p in sorted((HERE / "conf").iterdir()) if p.is_dir()),
]
COMMANDS = [path.stem for path in sorted((HERE / "mindspore_impl/cli").glob("[a-z]*.py")) if path.stem != "command"]
HF = ["tokenizers>=0.21,<1"]
GGUF = ["gguf>=0.17,<1", *HF]
SELECT = ["datasketch>=2,<3"]  # the index of near-duplicates
TEST = ["pytest>=8,<10", "pytest-xdist>=3.6,<4", "hypothesis>=6.100,<7", "ruff>=0.9,<1", *GGUF, *SELECT]
BENCH = ["torch==2.13.0", "transformers==4.57.1", *SELECT]
SWEEP = ["optuna>=3,<5"]  # proposes the trials of a sweep, through ask and tell


def native_builder():
    """The module kernels/cpu/build.py; None where there are no sources or no compiler."""
    path = HERE / "kernels" / "cpu" / "build.py"
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location("pangu_cpu_build", path)
    builder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(builder)
    return builder if builder.compiler() else None


BUILDER = native_builder()


class BuildWithOperators(build_py):
    """Adds mindspore_impl/lib with the native CPU operators: to the wheel, or to the clone of an editable install."""

    def run(self):
        super().run()
        root = HERE if getattr(self, "editable_mode", False) else Path(self.build_lib)
        folder = root / "mindspore_impl" / "lib"
        if BUILDER is None:
            print("no C++ compiler, or no kernels/cpu: composed operators will serve on the CPU", file=sys.stderr)
            return
        try:
            if not BUILDER.is_current(folder):
                BUILDER.build(folder)
        except (BUILDER.BuildError, OSError) as error:
            print(f"the native CPU operators are left out, composed ones will serve: {error}", file=sys.stderr)


class PlatformDistribution(Distribution):
    """A wheel with a compiled library serves one platform."""

    def has_ext_modules(self):
        return BUILDER is not None


setup(
    cmdclass={"build_py": BuildWithOperators},
    distclass=PlatformDistribution,
    name="openpangu-posttrain",
    version=VERSION,
    description="MindSpore-native curriculum SFT and top-k distillation for openPangu-Embedded",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.12",
    packages=find_packages(include=["mindspore_impl", "mindspore_impl.*"]) + CONF_FOLDERS,
    package_dir={"mindspore_impl.conf": "conf"},
    package_data={name: ["*.yaml"] for name in CONF_FOLDERS}
    | {"mindspore_impl.report": ["templates/*"], "mindspore_impl.data.selection": ["refusals.json", "*.jinja"]},
    install_requires=[
        "mindspore==2.9.0",
        "mindformers==1.9.0",
        "numpy==1.26.4",
        "sentencepiece==0.2.3",
        "hydra-core==1.3.8",
        "safetensors>=0.4.3,<1",
        "tqdm>=4.66,<5",
        "tensorboardX>=2.6,<3",
        "matplotlib>=3.8,<4",
        "psutil>=5.9,<8",  # states and children of processes (distributed/processes.py), memory (doctor)
        "jinja2>=3.1,<4",  # templates of the reports, with escaping
        "scipy>=1.10,<2",  # t distribution of the intervals and tests over seeds; MindSpore brings it too
    ],
    extras_require={
        "test": TEST,
        "dev": TEST + BENCH + SWEEP,
        "bench": BENCH,
        "sweep": SWEEP,
        "eval": ["lm_eval>=0.4.5,<0.5"],
        "hf": HF,
        "gguf": GGUF,
        "select": SELECT,
    },
    entry_points={
        "console_scripts": [f"pangu-{name.replace('_', '-')} = mindspore_impl.cli.{name}:main" for name in COMMANDS]
    },
)
