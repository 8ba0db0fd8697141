"""One small model and its compiled graphs for all tests of this room."""

import pytest

from tests.generation.tokens import Ids
from tests.model.small_models import build, small_options


@pytest.fixture(scope="session")
def model(ms_runtime):
    return build(small_options(max_position_embeddings=128, num_hidden_layers=1))


@pytest.fixture(scope="session")
def engine(model):
    from mindspore_impl.generation.engine import Engine

    return Engine(model, Ids())


@pytest.fixture
def engine_for(engine):
    """engine_for(ids): an engine with another tokenizer and the same graphs."""
    from mindspore_impl.generation.engine import Engine

    def make(ids):
        other = Engine(engine.model, ids)
        other._decoders = engine._decoders
        return other

    return make
