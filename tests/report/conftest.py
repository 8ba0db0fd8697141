"""Runs and pages that the tests of the reports share, and pages without plots."""

import pytest

from mindspore_impl.report import drawing
from mindspore_impl.report.run_report import write_report
from tests.report.distilled import build_distilled
from tests.report.parsed_page import Page


@pytest.fixture(scope="session")
def distilled(tmp_path_factory):
    """A finished run, only to be read; its report is written."""
    folder = build_distilled(tmp_path_factory.mktemp("runs") / "run")
    write_report(folder)
    return folder


@pytest.fixture(scope="session")
def page(distilled):
    """The page of `distilled`."""
    return Page((distilled / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def no_plots(monkeypatch):
    """An empty SVG in place of every plot, since Matplotlib takes most of the time of a report."""
    monkeypatch.setattr(drawing, "svg_of", lambda name, draw, width, height: "<svg></svg>")
