"""The audit of a finished evolution: the whole chain is named, and nothing can be changed without being noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from cycleqd.cli import app
from cycleqd.run.audit import resolve, trace, verify
from cycleqd.search.config import load
from cycleqd.storage import layout
from cycleqd.storage.evolution import current, manifest
from cycleqd.storage.objects import Store
from cycleqd.storage.results import need_result, sealed
from cycleqd.tracking.tags import generation_key, ids_of
from tests.evolution import Evolution
from tests.run.conftest import POD, Finished

Call = Callable[..., Any]
pytestmark = pytest.mark.timeout(1800)  # the evolution that these look at is run first, a minute on an idle machine


@contextmanager
def replaced(store: Store, key: str, data: bytes | None) -> Iterator[None]:
    """Another object, or none, in the place of one."""
    kept = store.get(key)
    store.delete([key]) if data is None else store.put(key, data)
    try:
        yield
    finally:
        store.put(key, kept)


def flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]


def refused(finished: Finished, model: str) -> tuple[int, list[str], str]:
    """Exit code, problems and what was said on standard error."""
    result = CliRunner().invoke(app, ["audit", model, "-c", str(finished.path), "--json"])
    return result.exit_code, json.loads(result.stdout)["problems"] if result.stdout else [], result.stderr


def test_a_final_models_chain_ends_at_the_base_and_the_experts(call: Call, finished: Finished) -> None:
    store, found = finished.session.store, call("audit", "final")
    assert found["problems"] == [] and found["models"] == ["final"]
    chain = {link["model"]: link for link in found["chain"]}
    family = call("lineage", "final")["models"]
    assert set(chain) == {*family, "base"}
    for model, link in chain.items():
        assert link["digest"] == manifest(store, model).digest
        assert [tuple(parent) for parent in link["parents"]] == [
            (part["id"], part["weight"]) for part in family.get(model, {"parents": []})["parents"]
        ]
        stages = {work["stage"] for work in link["work"]}
        made = ["aggregate"] if model == "final" else ["merge", "mutate"] if model.startswith("g") else ["seed"]
        assert stages == {*made, "evaluate", *(["update_archives"] if model != "final" else [])}
        for work in link["work"]:
            where = work["where"]
            assert (where["kfp_run"], where["kfp_pod"]) == (POD["KFP_RUN_ID"], POD["KFP_POD_NAME"])
            assert (where["image"], where["code_version"]) == (POD["CYCLEQD_IMAGE"], POD["CYCLEQD_CODE_VERSION"])
            assert work["sha256"] == store.sha256(work["record"])


def test_every_object_that_a_chain_depends_on_is_hashed(call: Call, finished: Finished) -> None:
    """All of the evolution but records (sealed), MLflow's ids, HEAD, and what belongs to models outside the chain."""
    store, found = finished.session.store, call("audit", "final")
    chain = {link["model"] for link in found["chain"]}
    for key in store.list(""):
        parts = key.split("/")
        others = len(parts) > 1 and layout.home("base").split("/")[0] == parts[0] and parts[1] not in chain
        others |= len(parts) > 3 and parts[2] == "children" and parts[3] not in chain
        loose = parts[-1] in ("result.json", "run.json", "mlflow.json", "plan.json", "HEAD.json", "models.json")
        if not others and not loose and parts[0] not in ("archives", "parameters"):
            assert key in found["objects"], key


def test_the_chain_is_told_to_people(text: Call, finished: Finished) -> None:
    store, told = finished.session.store, text("audit", "g000000-c00")
    assert f"KFP run {POD['KFP_RUN_ID']}, {POD['CYCLEQD_IMAGE']}, code {POD['CYCLEQD_CODE_VERSION']}" in told
    base, red, blue, child = (
        manifest(store, name).digest[:12] for name in ("base", "expert-red", "expert-blue", "g000000-c00")
    )
    (merge,) = [line for line in told.splitlines() if " merge in " in line]
    (mutate,) = [line for line in told.splitlines() if " mutate in " in line]
    assert POD["KFP_POD_NAME"] in merge and f"→ checkpoint {child}" in mutate
    assert all(digest in merge for digest in (base, red, blue))
    assert told.index("evaluate one (search)") < told.index("update_archives")
    assert f"sha256 {hashlib.sha256(store.get(layout.CONFIG)).hexdigest()}" in told
    assert "every digest is as recorded" in told


def test_mlflow_leads_to_a_model_and_a_kfp_run_to_all_that_it_made(call: Call, finished: Finished) -> None:
    store = finished.session.store
    own = ids_of(store, "g000001-c00").runs
    assert call("audit", own["model:g000001-c00"])["models"] == ["g000001-c00"]
    assert call("audit", own[generation_key(1)])["models"] == ["g000001-c00"]
    tags = MlflowClient(finished.session.settings.tracking).get_run(own[generation_key(1)]).data.tags
    assert (tags["cycleqd.kfp_run"], tags["cycleqd.kfp_pod"]) == (POD["KFP_RUN_ID"], POD["KFP_POD_NAME"])
    assert call("audit", POD["KFP_RUN_ID"])["models"] == sorted(
        ["base", "expert-blue", "expert-red", "g000000-c00", "g000001-c00", *load(finished.path).combined]
    )
    code, _, said = refused(finished, "00000000-0000-0000-0000-000000000000")
    assert code == 2 and "cycleqd models" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "key",
    [
        "models/final/checkpoint/model.safetensors",
        "models/base/checkpoint/config.json",
        "models/final/evaluations/two/test/samples.jsonl.gz",
        "tasks/one/data/words.json",
        "tasks/one/plugin.py",
        "archives/000002.json",
    ],
)
def test_a_flipped_bit_is_found_and_its_object_named(key: str, finished: Finished) -> None:
    store = finished.session.store
    with replaced(store, key, flipped(store.get(key))):
        code, problems, said = refused(finished, "final")
    assert code == 3
    assert store.url(key) in "".join(problems) + said


@pytest.mark.parametrize("key", ["models/final/make/result.json", "generations/000000/plan.json"])
def test_an_altered_record_ends_the_chain(key: str, finished: Finished) -> None:
    store = finished.session.store
    with replaced(store, key, flipped(store.get(key))):
        code, _, said = refused(finished, "g000000-c00" if "generations" in key else "final")
    assert code == 3 and store.url(key) in said and len(said.splitlines()) == 1


def test_a_record_that_was_replaced_with_its_seal_contradicts_the_others(finished: Finished) -> None:
    """Another score, sealed anew: the archives' update names the record that it read."""
    store, model = finished.session.store, "g000000-c00"
    key = layout.result(layout.evaluation(model, "one", "search"))
    body = need_result(store, layout.evaluation(model, "one", "search"))
    body["outputs"]["score"] = 0.123
    with replaced(store, key, sealed(body)):
        code, (problem,), _ = refused(finished, model)
    assert code == 3 and store.url(key) in problem and "one of them was replaced" in problem


def test_a_file_of_a_model_that_is_needed_is_missed(finished: Finished) -> None:
    store, key = finished.session.store, "models/expert-red/checkpoint/model.safetensors"
    with replaced(store, key, None):
        code, (problem,), _ = refused(finished, "expert-red")
    assert code == 3 and f"{store.url(key)} is missing" in problem


def test_a_changed_tag_in_mlflow_is_found(finished: Finished) -> None:
    run = ids_of(finished.session.store, "naive").runs["model:naive"]
    client = MlflowClient(finished.session.settings.tracking)
    kept = client.get_run(run).data.tags["cycleqd.image"]
    client.set_tag(run, "cycleqd.image", "another")
    try:
        code, (problem,), _ = refused(finished, "naive")
    finally:
        client.set_tag(run, "cycleqd.image", kept)
    assert code == 3 and run in problem and "'another'" in problem


def test_a_collected_child_is_said_to_be_so(grown: Evolution) -> None:
    """What nothing needs may be gone. What a snapshot or a pin needs may not: then its files are missed."""
    store, config = grown.store, grown.config
    lines = current(store)[1].children
    (model, *_) = [line.model.id for line in lines if not store.list(layout.checkpoint(line.model.id))]
    found = trace(store, config, [model], pins=())
    link = next(link for link in found.links if link.model == model)
    assert not link.stored and link.digest == manifest(store, model).digest
    assert not any(key.startswith(layout.checkpoint(model)) for key in found.objects)
    assert found.problems == [] and list(verify(store, found.objects, lambda done: None)) == []
    pinned = trace(store, config, [model], pins=[model])
    files = {f"{layout.checkpoint(model)}/{name}" for name in manifest(store, model).files}
    missed = list(verify(store, pinned.objects, lambda done: None))
    assert len(missed) == len(files) and all(any(store.url(key) in said for key in files) for said in missed)


def test_ids_of_models_are_taken_as_they_are(finished: Finished) -> None:
    class Nobody:
        """Must not be asked."""

    assert resolve(finished.session.store, Nobody(), "expert-red") == ["expert-red"]  # type: ignore[arg-type]
