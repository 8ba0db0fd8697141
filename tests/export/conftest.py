"""Small packages, made once a session: one a precision, and the training model they come from."""

import shutil

import numpy as np
import pytest
from mindspore import Tensor

from mindspore_impl.data.list_programs import generate
from mindspore_impl.data.options import ListProgramsSet
from mindspore_impl.export import build as exporting
from mindspore_impl.export import parity
from mindspore_impl.export.options import ExportOptions
from mindspore_impl.export.session import open_session
from mindspore_impl.text.chat import segments
from mindspore_impl.text.tokenizer import train_tokenizer
from tests.model.small_models import build, small_options

CACHE, BUCKETS, STEPS = 96, [12, 24], 8
PROMPTS = [[1, 5, 9, 30, 2, 8], [1, 7, 7, 40, 21, 3, 90, 14, 2, 60, 11, 12, 13, 14, 15, 16, 4]]  # one a bucket


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    texts = [text for record in generate(ListProgramsSet(count=60)) for text in segments(record)]
    return train_tokenizer(texts, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", 120)


@pytest.fixture(scope="session")
def options(tokenizer):
    return small_options(vocab_size=tokenizer.vocab_size, max_position_embeddings=128)


@pytest.fixture(scope="session")
def model(ms_runtime, options):
    return build(options)


def in_this_process(folder, wanted):
    return parity.measure(open_session(folder), wanted)


@pytest.fixture(scope="session")
def reference(model):
    """What the training graph says about PROMPTS."""
    return parity.reference(model, PROMPTS, STEPS)


@pytest.fixture(scope="session")
def packages(model, options, tokenizer, reference, tmp_path_factory):
    """precision -> (folder, parity report), compared with one reference in this process."""
    found, folder = {}, tmp_path_factory.mktemp("packages")
    patch = pytest.MonkeyPatch()
    patch.setattr(exporting.parity, "reference", lambda *_: reference)
    for precision in ("fp32", "fp16", "int8"):
        buckets = BUCKETS if precision == "fp32" else BUCKETS[1:]
        settings = ExportOptions(precision, CACHE, buckets, compare=[], parity_tokens=STEPS)
        report = exporting.export_package(
            folder / precision, options, lambda: (model, "cafe"), tokenizer, PROMPTS, settings, in_this_process
        )
        found[precision] = folder / precision, report
    patch.undo()
    return found


@pytest.fixture
def package(packages, tmp_path):
    """A copy of the fp32 package, to be damaged."""
    return shutil.copytree(packages["fp32"][0], tmp_path / "package")


def full_logits(model, ids):
    """logits_LV of the training graph at every place of one sequence."""
    place_L = np.arange(CACHE, dtype=np.int32)
    ids_L = np.pad(np.array(ids, np.int32), (0, CACHE - len(ids)))
    inputs = [Tensor(array[None]) for array in (ids_L, place_L, (place_L < len(ids)).astype(np.int32))]
    return model(*inputs).asnumpy()[0, : len(ids)]
