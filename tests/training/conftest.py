"""Graphs that the tests of this room share."""

import pytest


@pytest.fixture(scope="session")
def graphs(ms_runtime):
    """See SharedGraphs."""
    from tests.training.shared_graphs import SharedGraphs

    return SharedGraphs()


@pytest.fixture
def linear_objective(graphs, monkeypatch):
    """The trainer over a model that is its own objective, since a real one takes seconds to compile."""
    graphs.use(monkeypatch, linear=True)
