"""Speed benchmarks against named peers, one module each; see README.md."""

from pathlib import Path

PEERS = {  # benchmark: the packages of its peers; with an extra in front it cannot do without them
    "train_step": ("torch", "transformers"),
    "checkpoint": (),
    "generate": ("bench:torch", "bench:transformers"),
    "topk_distill": ("torch",),
    "fused_linear": ("torch",),
    "data_parallel": (),
    "ascend_traffic": (),
    "select_data": ("select:datasketch",),
    "sweep": (),
    "evaluate": (),
}


def run(name: str, json_path: Path | None = None, **sizes) -> list:
    """Measure with `rows(**sizes)` of the module `name` alone; print, append to outputs/benchmarks.csv, write JSON.

    Returns the rows (`common.Row`). Raises UserError where a peer that it needs is not installed.
    """
    from importlib import import_module
    from importlib.metadata import version
    from importlib.util import find_spec

    from mindspore_impl import runtime
    from mindspore_impl.errors import UserError
    from mindspore_impl.speed.common import publish

    versions = runtime.versions()
    for peer in PEERS[name]:
        extra, _, package = peer.rpartition(":")
        if find_spec(package):
            versions[package] = version(package)
        elif extra:
            raise UserError(f"benchmark {name} needs {package}; pip install 'openpangu-posttrain[{extra}]'")
    rows = import_module(f"{__name__}.{name}").rows(**sizes)
    publish(name, rows, versions, json_path)
    return rows
