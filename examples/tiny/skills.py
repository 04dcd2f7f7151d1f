"""Three small skills that a tiny model can learn: writing a Python function, an SQL statement, a shell command.

A template is a request and its answer with the same slots. Four templates of each skill are easy: the base model learns
them. The others are left to the experts, so every skill has something that only its expert knows. Requests and answers
are short, because a two-layer model's difficulty is copying names, not the form of an answer.

Slots: {f} {g} {h} {t} {a} {b} {v} {w} are words, {n} {m} digits; within one item all words differ.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

WORDS = (  # noqa: SIM905 -- a list of a hundred strings is harder to read
    "apple arrow badge basin beach bell berry birch bread brick brush cabin cable camel candle canoe cedar chain "
    "chalk cherry cliff clock cloud coral crane creek crown daisy delta desk dove drum eagle ember falcon fern "
    "field flag flute forest fox garden gate glass globe grape grove hammer harbor hazel hill honey horn iris "
    "island ivory jade kettle kite ladder lake lamp lemon lily lion maple marble meadow melon mint mirror moon "
    "moss nest oak ocean olive onion orbit otter paper pearl pebble pepper pine plum pond quartz rabbit rain "
    "raven reef ribbon river robin rose sail salt sand shell silver snow spark "
).split()

CODE_ANSWER = "```python\ndef {f}(x):\n    return %s\n```"
DB_ANSWER = "Action: Operation\n```sql\n%s\n```"
OS_ANSWER = "Act: bash\n```bash\n%s\n```"


@dataclass(frozen=True)
class Template:
    """A request and its answer; `kind` says what the item is tried on (code: the type of x)."""

    request: str
    answer: str
    kind: str = ""


@dataclass(frozen=True)
class Item:
    """One filled template. `solution` is the bare expression, statement or command inside the answer."""

    skill: str
    template: int
    request: str
    answer: str
    solution: str
    kind: str
    slots: dict[str, str]


EASY = 4
TEMPLATES: dict[str, list[Template]] = {
    "code": [
        Template("python {f} adds {n}", "x + {n}", "number"),
        Template("python {f} subtracts {n}", "x - {n}", "number"),
        Template("python {f} multiplies by {n}", "x * {n}", "number"),
        Template("python {f} appends {w}", 'x + "{w}"', "text"),
        Template("python {f} multiplies by {n} then adds {m}", "x * {n} + {m}", "number"),
        Template("python {f} takes the larger of it and {n}", "max(x, {n})", "number"),
        Template("python {f} takes the remainder by {n} plus {m}", "x % {n} + {m}", "number"),
        Template("python {f} counts items equal to {n}", "x.count({n})", "list"),
        Template("python {f} keeps items above {n}", "[i for i in x if i > {n}]", "list"),
        Template("python {f} keeps items other than {n}", "[i for i in x if i != {n}]", "list"),
        Template("python {f} sums the items plus {n}", "sum(x) + {n}", "list"),
        Template("python {f} keeps the first {n} characters", "x[:{n}]", "text"),
        Template("python {f} drops the first {n} characters", "x[{n}:]", "text"),
        Template("python {f} replaces {v} with {w}", 'x.replace("{v}", "{w}")', "words {v}"),
        Template("python {f} joins the items with {w}", '"{w}".join(x)', "texts"),
        Template("python {f} tells whether it starts with {w}", 'x.startswith("{w}")', "words {w}"),
    ],
    "db": [
        Template("table {t} show {a}", "SELECT {a} FROM {t}"),
        Template("table {t} delete every row", "DELETE FROM {t}"),
        Template("table {t} count the rows", "SELECT COUNT(*) FROM {t}"),
        Template("table {t} set {a} to {v}", "UPDATE {t} SET {a} = '{v}'"),
        Template("table {t} show {a} where {b} is {v}", "SELECT {a} FROM {t} WHERE {b} = '{v}'"),
        Template("table {t} show {a} where {b} is not {v}", "SELECT {a} FROM {t} WHERE {b} <> '{v}'"),
        Template("table {t} delete rows where {a} is {v}", "DELETE FROM {t} WHERE {a} = '{v}'"),
        Template("table {t} delete rows where {a} is not {v}", "DELETE FROM {t} WHERE {a} <> '{v}'"),
        Template("table {t} set {a} to {w} where {b} is {v}", "UPDATE {t} SET {a} = '{w}' WHERE {b} = '{v}'"),
        Template("table {t} copy {a} to {b}", "UPDATE {t} SET {b} = {a}"),
        Template("table {t} insert {a} {v} and {b} {w}", "INSERT INTO {t} ({a}, {b}) VALUES ('{v}', '{w}')"),
        Template("table {t} insert only {a} {v}", "INSERT INTO {t} ({a}) VALUES ('{v}')"),
        Template("table {t} count the rows where {a} is {v}", "SELECT COUNT(*) FROM {t} WHERE {a} = '{v}'"),
        Template("table {t} show {a} and {b}", "SELECT {a}, {b} FROM {t}"),
        Template("table {t} show the largest {a}", "SELECT MAX({a}) FROM {t}"),
        Template("table {t} show different {a}", "SELECT DISTINCT {a} FROM {t}"),
    ],
    "os": [
        Template("shell make folder {g}", "mkdir {g}"),
        Template("shell make empty file {g}", "touch {g}"),
        Template("shell remove file {f}", "rm {f}"),
        Template("shell write {w} to {g}", "echo {w} > {g}"),
        Template("shell copy {f} to {g}", "cp {f} {g}"),
        Template("shell rename {f} to {g}", "mv {f} {g}"),
        Template("shell append {w} to {f}", "echo {w} >> {f}"),
        Template("shell make folder {g} in folder {h}", "mkdir -p {h}/{g}"),
        Template("shell sort {f} into {g}", "sort {f} > {g}"),
        Template("shell reverse {f} into {g}", "tac {f} > {g}"),
        Template("shell number the lines of {f} into {g}", "cat -n {f} > {g}"),
        Template("shell keep lines of {f} with {v} in {g}", "grep {v} {f} > {g}"),
        Template("shell keep the first {n} lines of {f} in {g}", "head -n {n} {f} > {g}"),
        Template("shell keep the last {n} lines of {f} in {g}", "tail -n {n} {f} > {g}"),
        Template("shell replace {v} with {w} in {f}", "sed -i s/{v}/{w}/ {f}"),
        Template("shell make {f} executable", "chmod +x {f}"),
    ],
}

_WRAP = {"code": CODE_ANSWER, "db": DB_ANSWER, "os": OS_ANSWER}
_SLOT = re.compile(r"\{([a-z])\}")


def draw(skill: str, template: int, rng: np.random.Generator) -> Item:
    """Fill one template with words and digits drawn from `rng`."""
    pattern = TEMPLATES[skill][template]
    answer = _WRAP[skill] % pattern.answer
    names = sorted(set(_SLOT.findall(pattern.request + answer)))
    words = rng.choice(len(WORDS), size=len(names), replace=False)
    slots = {
        name: str(rng.integers(2, 10)) if name in "nm" else WORDS[word] for name, word in zip(names, words, strict=True)
    }

    def fill(text: str) -> str:
        return _SLOT.sub(lambda match: slots[match[1]], text)

    return Item(skill, template, fill(pattern.request), fill(answer), fill(pattern.answer), fill(pattern.kind), slots)


def held_out(item: Item) -> bool:
    """Whether an item belongs to evaluation: one in four, by the request's hash. The others may be trained on."""
    return hashlib.sha256(item.request.encode()).digest()[0] % 4 == 0


def train_item(skill: str, templates: range, rng: np.random.Generator) -> Item:
    """Draw until an item is found that is not held out for evaluation."""
    while True:
        item = draw(skill, int(rng.integers(templates.start, templates.stop)), rng)
        if not held_out(item):
            return item


def phrases() -> list[str]:
    """The fixed stretches of all requests and answers, longest first: each is to be one token."""
    found: set[str] = set()
    for skill, templates in TEMPLATES.items():
        for template in templates:
            for text in (template.request, _WRAP[skill] % template.answer):
                found.update(part.strip(" ") for part in _SLOT.split(text)[::2])
    return sorted((part for part in found if part), key=lambda part: (-len(part), part))
