"""The page: what it says, and that it needs nothing but itself."""

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cycleqd.report import curves, page, render
from cycleqd.report.data import ReportData, Tally
from cycleqd.report.theme import LIGHT
from cycleqd.report.verdicts import comparisons, conclusion
from tests.report.sample import report


class Seen(HTMLParser):
    """Collects what tests ask about: texts, references, images, ids."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.references, self.images, self.ids = "", [], [], set()  # type: ignore[var-annotated]
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {given["id"]} if "id" in given else set()
        self.references += [given[name] for name in ("src", "srcset", "href", "action") if given.get(name)]
        self.images += [given] if tag == "img" else []
        if tag not in ("meta", "img", "source", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def data() -> ReportData:
    return report({"generations": 12}, watched={"math": 0.9})


@pytest.fixture(scope="module")
def html(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> str:
    return render.write(data, tmp_path_factory.mktemp("report")).read_text()


def test_it_refers_to_nothing_outside_itself(html: str) -> None:
    seen = Seen(html)
    assert seen.open == []
    assert all(r.startswith(("data:image/png;base64,", "#")) for r in seen.references)
    assert {r[1:] for r in seen.references if r.startswith("#")} <= seen.ids
    assert not re.search(r"https?://|@import|url\(|<script|<link", html)


def test_every_picture_is_there_in_light_and_dark_and_has_a_text(html: str) -> None:
    seen = Seen(html)
    assert len(seen.images) == 8
    assert all(len(image["alt"]) > 20 for image in seen.images)
    pictures = [r for r in seen.references if r.startswith("data:")]
    assert len(pictures) == len(set(pictures)) == 16
    assert all(base64.b64decode(r.split(",")[1]).startswith(b"\x89PNG") for r in pictures)
    assert html.count('media="(prefers-color-scheme: dark)"') == 8


def test_the_tables_hold_every_model_on_both_splits(html: str, data: ReportData) -> None:
    text = Seen(html).text
    for row in data.rows:
        assert text.count(row.label) >= 2
    for split in ("test", "search"):
        for tally in data.scored(split, "final").values():  # type: ignore[union-attr]
            assert f"{100 * tally.score:.1f}" in text
    assert "sha256 " + data.state.digest in " ".join(text.split())


def with_final(data: ReportData, verdicts: dict[str, str], pairs: int = 60) -> ReportData:
    """The data with other test results: naive merge and experts at half, the final model as given."""
    half = {task: Tally("10" * pairs) for task in data.tasks}
    final = {task: Tally(bits) for task, bits in verdicts.items()}
    rivals = dict.fromkeys(("base", "naive", "lambda-0.4", *(e.model.id for e in data.state.experts)), half)
    return replace(data, results={**data.results, "test": {**rivals, "final": final}})


@pytest.mark.parametrize(
    ("bits", "tone", "sentence"),
    [
        ("1110" * 30, "good", "It is better (exact test, p < 0.001)"),
        ("10" * 59 + "11", "open", "No difference is shown (exact test, p = "),
        ("1000" * 30, "bad", "It is worse (exact test, p < 0.001)"),
    ],
)
def test_it_says_whether_gains_exceed_the_error_bars(data: ReportData, bits: str, tone: str, sentence: str) -> None:
    given = with_final(data, dict.fromkeys(data.tasks, bits))
    found = page.verdicts(given)
    assert [verdict.tone for verdict in found] == [tone] * 3
    assert all(sentence in verdict.text for verdict in found)
    rivals = ("the best expert (", "the naive merge", "task arithmetic with tuned λ (0.4)")
    assert all(rival in verdict.text for verdict, rival in zip(found, rivals, strict=True))
    said = conclusion(given) or ""
    start = {"good": "The search helped", "open": "It is not shown that the search helped", "bad": "The search did not"}
    assert said.startswith(start[tone]) and all(said.count(rival) == 2 for rival in rivals)


def test_the_worst_task_is_each_models_own(data: ReportData) -> None:
    code, *others = data.tasks
    given = with_final(data, {code: "1000" * 30, **dict.fromkeys(others, "1111" * 30)})
    against = next(iter(comparisons(given)))
    assert against.average.value > 0 and against.worst.ours == (code, 0.25) and against.worst.theirs == (code, 0.5)
    assert against.worst.low < against.worst.value == -0.25 < against.worst.high < 0
    assert "Worst task: −25.0 points" in page.verdicts(given)[0].text


def test_a_baseline_that_was_switched_off_is_said(data: ReportData) -> None:
    off = replace(data, tuned=None)
    assert any("tuned λ was not measured" in note for note in page.notes(off))
    assert (conclusion(off) or "").endswith("task arithmetic with tuned λ was not measured")
    assert "lambda-0.4" in {row.id for row in data.rows} and "lambda-0.4" not in {row.id for row in off.rows}


def test_notes_warn_of_what_weakens_the_figures(data: ReportData) -> None:
    assert page.notes(data) == []
    flat = replace(data.state, experts=tuple(replace(e, scores={**e.scores, "db": 0.4}) for e in data.state.experts))
    cases: Iterator[tuple[ReportData, str]] = iter(
        [
            (replace(data, state=flat), "same on db, which so gave the search no information (bins on its axis: 15)"),
            (replace(data, recipe=(), final_snapshot=None), "not finalised yet"),
            (replace(data, final_snapshot=3), "built from snapshot 3; the search has since gone on to 12"),
            (replace(data, results={"search": data.results["search"]}), "not scored on held-out samples"),
            (replace(data, best="expert-code"), "No child has a better average"),
            (with_final(data, dict.fromkeys(data.tasks, "10" * 5), 5), "Only 10 samples of os are held out"),
        ]
    )
    for changed, sentence in cases:
        assert any(sentence in note for note in page.notes(changed)), sentence


def text_of(data: ReportData) -> str:
    """The page's HTML without its pictures."""
    return page.page(data, curves.measured(data), {})


def test_an_evolution_that_was_only_seeded_has_a_report() -> None:
    data = report({"generations": 0})
    bare = replace(data, recipe=(), final_snapshot=None, results={"search": {}, "test": {}})
    assert all(draw(LIGHT) for draw in render.drawings(bare, curves.measured(bare)).values())
    text = Seen(text_of(bare)).text
    assert "not finalised yet" in text and "0 generations" in text


def test_it_says_when_by_what_and_where(data: ReportData, tmp_path: Path) -> None:
    text = Seen(render.write(data, tmp_path, command="cycleqd run -c mine.yaml").read_text()).text
    for said in (
        "2023-11-14 22:13 to 2023-11-14 23:13 UTC",
        "0.2.0",
        "torch 2.13.0",
        "x86_64 (avx2, avx512f) with cuda",
        "cycleqd/evaluate@sha256:00",
        "cycleqd run -c mine.yaml",
    ):
        assert said in text


def test_names_cannot_break_the_page(data: ReportData) -> None:
    assert "<script" not in text_of(replace(data, url="s3://bucket/<script>alert(1)</script>"))


def test_the_files_beside_the_page(data: ReportData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    only_seeded = replace(report({"generations": 0}), recipe=(), results={"search": {}, "test": {}})
    assert render.write(only_seeded, Path("out")) == Path("out/report.html")
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "archives.png", "cost.png", "curves.png", "family.png", "fronts.png", "report.html",
    ]  # fmt: skip
