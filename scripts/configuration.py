"""docs/configuration.md, written from the settings' own descriptions: `make docs`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cycleqd.loading import load_class, own_names
from cycleqd.search.config import Config
from cycleqd.search.method import Method
from cycleqd.search.operators import Operator

Schema = dict[str, Any]

_OPENING = """\
# Configuration

Every setting of an evolution, its values and its default. `make docs` writes this page from the code.

- Unknown keys are errors. Relative paths are taken from the configuration file's own folder.
- `name`, `seed`, `models`, `tasks`, `evaluation` and `method` decide the results and are frozen when an evolution is
  seeded. `place` may change at any time.
- A *profile* is a file of `place`'s keys, laid over the configuration's by `--profile FILE` or `CYCLEQD_PROFILE`: one
  method, many places. Sections are merged key by key; lists and maps of values are replaced.
- External services are named by the usual environment variables: `AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`,
  `AWS_SECRET_ACCESS_KEY`, `AWS_REGION` and `MLFLOW_TRACKING_URI`.

`cycleqd init` writes a starting configuration, `cycleqd validate` checks one.
"""


def page() -> str:
    """The whole page, in Markdown."""
    schema = Config.model_json_schema()
    definitions = schema["$defs"]
    paths: dict[str, list[str]] = {}
    for path, name in _sections(schema, "", definitions):
        paths.setdefault(name, []).append(path)
    parts = [_OPENING, "## The file\n", _table(schema, definitions, paths)]
    for name, places in paths.items():
        section = definitions[name]
        parts += [f"## {_heading(places)}\n", f"{section['description']}\n"]
        operators = _operators(places[0])
        parts.append(_table(_choice(places[0], operators) if operators else section, definitions, paths))
        for kind, own in operators.items():
            parts += [f"### {_heading(places)} with `kind: {kind}`\n", f"{own['description']}\n"]
            del own["properties"]["kind"]
            if own["properties"]:
                parts.append(_table(own, own.get("$defs", {}), paths))
    return "\n".join(parts)


def _operators(path: str) -> dict[str, Schema]:
    """The library's operators of a section of `method` by their kind; none for other sections."""
    field = Method.model_fields.get(path.removeprefix("method."))
    base = field.annotation if field is not None else None
    if not (isinstance(base, type) and issubclass(base, Operator)):
        return {}
    return {kind: load_class(kind, base).model_json_schema() for kind in own_names(base.own_modules)}


def _choice(path: str, operators: dict[str, Schema]) -> Schema:
    """A section with the one key that its operators share."""
    usual: Operator = getattr(Method(), path.removeprefix("method."))
    kind = {"enum": list(operators), "default": usual.kind, "description": Operator.model_fields["kind"].description}
    return {"properties": {"kind": kind}}


def _sections(section: Schema, path: str, definitions: Schema) -> Iterator[tuple[str, str]]:
    """Find every section below this one, depth first: its path in the file and its name among the definitions."""
    for key, field in section["properties"].items():
        for suffix, name in _references(field):
            found = f"{path}{key}{suffix}"
            yield found, name
            yield from _sections(definitions[name], f"{found}.", definitions)


def _references(field: Schema) -> Iterator[tuple[str, str]]:
    """The sections that a field holds, each with what its path has behind the key."""
    if "$ref" in field:
        yield "", field["$ref"].rpartition("/")[2]
    for inner in field.get("patternProperties", {}).values():
        yield from ((f".NAME{suffix}", name) for suffix, name in _references(inner))
    if "items" in field:
        yield from ((f"[]{suffix}", name) for suffix, name in _references(field["items"]))


def _heading(paths: list[str]) -> str:
    return ", ".join(f"`{path}`" for path in paths)


def _table(section: Schema, definitions: Schema, paths: dict[str, list[str]]) -> str:
    rows = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key, field in section["properties"].items():
        required = key in section.get("required", ())
        default = "required" if required else _default(field, definitions)
        cells = [f"`{key}`", _values(field, paths), default, field.get("description", "")]
        rows.append("|" + "".join(f" {' '.join(cell.split())} |" if cell else " |" for cell in cells))
    return "\n".join(rows) + "\n"


def _values(field: Schema, paths: dict[str, list[str]]) -> str:
    """What a field may be, in words."""
    if "$ref" in field:
        heading = _heading(paths[field["$ref"].rpartition("/")[2]])
        return f"[section](#{''.join(c for c in heading.lower() if c.isalnum() or c in ' _-').replace(' ', '-')})"
    if "anyOf" in field:
        return " or ".join(_values(one, paths) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    match field.get("type"):
        case "array" if "prefixItems" in field:
            return f"[{', '.join(_values(one, paths) for one in field['prefixItems'])}]"
        case "array":
            return f"list: {_values(field['items'], paths)}"
        case "object":
            inner = [*field.get("patternProperties", {}).values(), field.get("additionalProperties")]
            return f"map: {_values(inner[0], paths)}" if isinstance(inner[0], dict) else "map"
        case "integer" | "number" as kind:
            return f"{kind}{_range(field)}"
        case kind:
            return str(kind or "any")


def _range(field: Schema) -> str:
    low, above = field.get("minimum"), field.get("exclusiveMinimum")
    high, below = field.get("maximum"), field.get("exclusiveMaximum")
    bounds = ((">", above), ("≥", low), ("<", below), ("≤", high))
    return "".join(f" {sign} {bound:g}" for sign, bound in bounds if bound is not None)


def _default(field: Schema, definitions: Schema) -> str:
    """The default; for a section only what differs from the section's own defaults."""
    value = field.get("default")
    if "$ref" in field:
        own = definitions[field["$ref"].rpartition("/")[2]]["properties"]
        other = {key: one for key, one in (value or {}).items() if one != own[key].get("default")}
        return ", ".join(f"{key}: {one}" for key, one in other.items() if not isinstance(one, dict))
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value not in (None, "", [], {}) else ""


if __name__ == "__main__":
    print(page(), end="")
