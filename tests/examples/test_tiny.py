"""The tiny suite: what is trained on is not scored on, the tokenizer loses nothing, gold answers pass, others fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from cycleqd.evaluation.engines import Sampling
from cycleqd.evaluation.evaluator import evaluate
from cycleqd.evaluation.task import Message, Workspace, load_task
from cycleqd.search.config import load
from examples.tiny.make_models import base_text, expert_text, tokenizer
from examples.tiny.make_tasks import items, main
from examples.tiny.skills import TEMPLATES
from tests.scripted import Scripted

CONFIG = Path(__file__).parents[2] / "examples/tiny/config.yaml"
COUNT = 32  # two of each template
SEED = 5


class Knowing(Scripted):
    """A model that gives a fixed reply to each request."""

    def __init__(self, replies: Mapping[str, str]) -> None:
        super().__init__()
        self.replies = replies

    def reply(self, conversation: Sequence[Message]) -> str:
        return self.replies[conversation[-1]["content"]]


def test_training_never_sees_a_scored_request() -> None:
    rng = np.random.default_rng(0)
    trained = {base_text(rng)[0] for _ in range(3000)}
    trained |= {expert_text(skill, rng)[0] for skill in TEMPLATES for _ in range(3000)}
    for skill in TEMPLATES:
        scored = {item.request for item in items(skill, 256, np.random.default_rng(1))}
        assert len(scored) == 256
        assert not scored & trained


def test_the_tokenizer_gives_back_every_request_and_answer() -> None:
    tokens = tokenizer()
    for skill in TEMPLATES:
        for item in items(skill, COUNT, np.random.default_rng(2)):
            for text in (item.request, item.answer):
                assert tokens.decode(tokens.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("skill", TEMPLATES)
def test_gold_passes_and_the_next_answer_fails(skill: str, tmp_path: Path) -> None:
    main(tmp_path, COUNT, SEED)
    task = load(CONFIG).tasks[skill]
    made = items(skill, COUNT, np.random.default_rng([SEED, list(TEMPLATES).index(skill)]))
    gold = {item.request: item.answer for item in made}
    others = {item.request: made[(i + 1) % COUNT].answer for i, item in enumerate(made)}
    (tmp_path / "scratch").mkdir()
    with load_task(task.class_)(task.settings, Workspace(tmp_path / "scratch", workers=2)) as opened:
        samples = opened.load(tmp_path / Path(task.data).name)
        right = evaluate(Knowing(gold), opened, samples, Sampling(64), workers=2)
        wrong = evaluate(Knowing(others), opened, samples, Sampling(64), workers=2)
    assert right.score == 1.0
    assert wrong.score == 0.0
