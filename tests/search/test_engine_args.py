"""What of vLLM's settings can be given: all exist, none is in both sections, and what changes replies is recorded."""

from __future__ import annotations

import dataclasses

import pytest

from cycleqd.evaluation.records import inputs_of
from cycleqd.evaluation.staged import StagedTask
from cycleqd.evaluation.task import load_task
from cycleqd.search.config import Config
from cycleqd.search.engine_args import ReplyArgs, SpeedArgs
from tests.pipelines.configs import two_tasks


def test_the_names_are_vllms_and_each_is_in_one_section() -> None:
    arguments = pytest.importorskip("vllm.engine.arg_utils").EngineArgs
    known = {field.name for field in dataclasses.fields(arguments)}
    assert ReplyArgs.model_fields.keys() | SpeedArgs.model_fields.keys() <= known
    assert not ReplyArgs.model_fields.keys() & SpeedArgs.model_fields.keys()


def evaluating(**settings: object) -> Config:
    config = two_tasks(engine_args={"max_num_seqs": 8})
    tree = {**config.model_dump(mode="json", by_alias=True), "evaluation": {"engine": "vllm", **settings}}
    return Config.model_validate(tree)


def test_what_changes_replies_is_frozen_and_an_input_of_every_score_and_what_does_not_is_neither() -> None:
    plain, exact = evaluating(), evaluating(engine_args={"kv_cache_dtype": "fp8"})
    task = StagedTask("one", plain.tasks["one"], {"data": {"digest": "d"}, "plugin": None}, load_task("code"))
    found = [inputs_of(config, "digest", task, "search")["evaluation"] for config in (plain, exact)]
    assert found[1] == {**found[0], "engine_args": {"kv_cache_dtype": "fp8"}}
    assert "engine_args" not in found[0], "scores of earlier versions, which had none, still match"
    assert plain.frozen() != exact.frozen() and "max_num_seqs" not in str(exact.frozen())
