"""`python -m benchmarks.span`: the estimate that docs/performance.md shows, and the core that it measures."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.span import RANK, estimates, make_core, serve, write_cores
from cycleqd.weights.span import Core

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def test_the_estimate_is_the_one_that_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    estimates()
    printed, page = capsys.readouterr().out, PAGE.read_text()
    for said, shown in (
        ("64.2 GB of base and experts", "64.2 GB"),
        ("19.5 TB written, at most 11.0 TB kept (16.1 GB a child)", "| 11.0 TB |"),
        ("83.8 GB written, at most 26.8 GB kept (33.0 MB a child; an engine makes an adapter of 1.0 GB", "| 26.8 GB |"),
        ("1.3 TB written, at most 26.8 GB kept", "| 1.3 TB |"),
        ("125.8 million tokens", "126 million"),
        ("one GPU 7.0 hours at 5,000 tokens/s (assumed)", "| 7.0 |"),
        ("one GPU 109.3 hours", "| 109 |"),
        ("at most 78 engine starts", "| 78 |"),
        ("13320 pods", "| 13,320 |"),
        ("833 pods", "| 833 |"),
    ):
        assert said in printed and shown in page


def test_a_core_is_made_as_the_stages_make_it(tmp_path: Path) -> None:
    seconds, cpu = make_core(write_cores(tmp_path / "parents", 1), tmp_path)
    assert seconds > 0 and cpu > 0
    child = Core.from_bytes((tmp_path / "child").read_bytes(), "child")
    assert {matrix.shape for matrix in child.matrices.values()} == {(RANK, RANK)} and len(child.matrices) == 7


def test_what_a_server_makes_of_a_core_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serve(tmp_path, rank=64, layers=1, repeat=1)
    run = capsys.readouterr().out.splitlines()[-1]
    assert run.split("|")[4].strip() == f"{2 * 64 * 81_920 / 1e6:.0f}"  # MB: rows and columns of a layer's matrices
    assert not list(tmp_path.iterdir())
