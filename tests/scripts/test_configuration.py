"""docs/configuration.md is what the settings say of themselves."""

from __future__ import annotations

from pathlib import Path

from cycleqd.search.config import Config
from scripts.configuration import page

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "configuration.md").read_text() == page(), "the settings have changed: run `make docs`"


def test_every_section_has_a_heading_and_every_key_a_row() -> None:
    headings = [line for line in page().splitlines() if line.startswith("## ")]
    for path in ("models.experts.NAME", "tasks.NAME.split", "method.mutation", "place.control.tolerations[]"):
        assert sum(f"`{path}`" in heading for heading in headings) == 1
    definitions = Config.model_json_schema()["$defs"]
    keys = {key for section in definitions.values() for key in section["properties"]} | set(Config.model_fields)
    assert keys <= {line.split("`")[1] for line in page().splitlines() if line.startswith("| `")}


def test_what_a_setting_may_be_and_is() -> None:
    rows = page().splitlines()
    assert any(row.startswith("| `share` | number ≥ 0 ≤ 1 | `0.5` | Share of the samples") for row in rows)
    assert any(row.startswith("| `base` | string | required |") for row in rows)
    assert any(row.startswith("| `control` | [section](#place") and " | cpu: 1, memory: 2G | " in row for row in rows)
