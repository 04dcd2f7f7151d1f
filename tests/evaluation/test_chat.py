"""A task's chat: system message, arguments of the chat template, the beginning of replies, and the reasoning before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from cycleqd.errors import EvaluationError
from cycleqd.evaluation import engines
from cycleqd.evaluation.engines import Chat, Completion, Progress, Request, Sampling
from cycleqd.evaluation.engines.common.checkpoint import ModelFolder
from cycleqd.evaluation.evaluator import evaluate_jobs
from cycleqd.evaluation.jobs import Job, SampleRecord
from cycleqd.evaluation.reasoning import THINK
from cycleqd.evaluation.task import Episode, Message, Outcome, Sample, Task, Verdict, Workspace
from cycleqd.search.tasks import ChatConfig
from tests.scripted import Scripted

SAMPLING = Sampling(max_tokens=8)
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}[{{ strftime_now('%d %B %Y') }}]"
    "[assistant]{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


class Asking(Episode):
    """Two rounds."""

    def next(self, reply: str) -> list[Message] | None:
        self.replies.append(reply)
        self.messages.append({"role": "assistant", "content": reply})
        if len(self.replies) == 2:
            return None
        self.messages.append({"role": "user", "content": "sure?"})
        return self.messages


class Questions(Task):
    """Passes nobody; the reason is what it saw."""

    def load(self, data: Path) -> list[Sample]:
        return []

    def start(self, sample: Sample) -> Episode:
        return Asking(sample, [{"role": "user", "content": "1 + 1?"}])

    def verdict(self, episode: Episode) -> Verdict:
        return Verdict(Outcome.WRONG, "|".join(episode.replies))


class Thinking(Scripted):
    """Thinks before every reply, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Request] = []

    def reply(self, conversation: Sequence[Message]) -> str:
        return f"<think>{len(conversation)}?</think>2"

    def generate(self, requests: Sequence[Request], progress: Progress | None = None) -> list[Completion]:
        self.asked += [Request(list(r.conversation), r.sampling, chat=r.chat) for r in requests]
        return super().generate(requests, progress)


def played(engine: Thinking, chat: Chat, reasoning: tuple[str, ...] = THINK) -> SampleRecord:
    job = Job(Questions({}, Workspace(Path())), [Sample("a", {})], SAMPLING, chat=chat, reasoning=reasoning)
    found: list[SampleRecord] = []
    evaluate_jobs(engine, [job], lambda _, evaluation: found.extend(evaluation.records), workers=1)
    return found[0]


def test_a_task_sees_replies_without_their_reasoning_and_the_record_has_all() -> None:
    record = played(Thinking(), Chat())
    assert record.reason == "2|2"
    assert record.replies == ("<think>1?</think>2", "<think>3?</think>2")
    assert played(Thinking(), Chat(), ()).reason == "<think>1?</think>2|<think>3?</think>2"
    assert played(Thinking(), Chat(), ("", "?")).reason == "</think>2|</think>2"


def test_what_was_written_for_the_model_is_part_of_its_reply() -> None:
    engine, chat = Thinking(), Chat(system="Add.", prefill="It is ")
    record = played(engine, chat)
    assert record.reason == "It is <think>1?</think>2|It is <think>3?</think>2"
    assert [message["role"] for message in record.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert [request.chat for request in engine.asked] == [chat] * 2
    assert [message["role"] for message in engine.asked[1].conversation] == ["user", "assistant", "user"]


@pytest.fixture
def folder(make_model: Callable[..., Path]) -> ModelFolder:
    opened = ModelFolder.open(make_model(0), None)
    opened.tokenizer.chat_template = TEMPLATE
    return opened


def prompts(folder: ModelFolder, *chats: Chat) -> list[str]:
    asked: list[Message] = [{"role": "user", "content": "1 + 1?"}]
    return [folder.tokenizer.decode(tokens) for tokens in folder.encode([asked] * len(chats), chats)]


def test_prompts_hold_what_the_chat_says_and_a_fixed_date(folder: ModelFolder) -> None:
    plain, quiet, full = prompts(
        folder, Chat(), Chat(template={"enable_thinking": False}), Chat("Add.", {"enable_thinking": True}, "It is ")
    )
    assert plain == "[user]1 + 1?[26 July 2024][assistant]"
    assert quiet == plain + "<think></think>"
    assert full == "[system]Add." + plain + "It is "


def test_a_template_without_system_messages_refuses_one(folder: ModelFolder) -> None:
    folder.tokenizer.chat_template = "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}x"
    with pytest.raises(EvaluationError, match=r"refuses a conversation .no system"):
        prompts(folder, Chat("Add."))


def test_a_model_goes_on_from_the_beginning_of_its_reply(make_model: Callable[..., Path]) -> None:
    """Greedy decoding: after the first half of its own reply it writes the second."""
    engine = engines.create("transformers", engines.EngineSettings(device="cpu", threads=1))
    engine.load(make_model(0), "0")
    asked: list[Message] = [{"role": "user", "content": "hello"}]
    (whole,) = engine.generate([Request(asked, Sampling(max_tokens=8))])
    half = whole.text[:4]
    if not (half.isascii() and len(whole.text) == 8):
        pytest.skip("the tiny model's reply does not have a token a letter")
    (rest,) = engine.generate([Request(asked, Sampling(max_tokens=4), chat=Chat(prefill=half))])
    assert half + rest.text == whole.text


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ({"reasoning": ["<think>"]}, "what opens and what closes it"),
        ({"reasoning": ["<think>", ""]}, "what opens and what closes it"),
        ({"template": {"tokenize": True}}, "template has tokenize"),
        ({"template": {"tools": [1]}}, "valid"),
        ({"prompt": "x"}, "xtra"),
    ],
)
def test_a_chat_that_cannot_be_is_refused(chat: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ChatConfig.model_validate(chat)
