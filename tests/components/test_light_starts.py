"""A control stage begins at once: what it imports before it asks S3 for anything takes no seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipelines.configs import ROOT

HEAVY = ("mlflow", "matplotlib", "torch", "transformers", "safetensors", "pandas", "peft", "vllm", "jinja2")
CLIENTS = ("kfp.client", "kfp.compiler", "kfp_server_api", "kubernetes")
STAGES = {"seed": "seeding", "select-parents": "generation", "update-archives": "generation", "report": "finalising"}
GIVEN = {"STRING": "x", "NUMBER_INTEGER": 0, "LIST": []}
PROGRAM = """
import sys
from kfp.dsl.executor_main import executor_main
from cycleqd.storage.objects import Store

def reached(*given):
    print(*sorted(sys.modules))
    raise SystemExit

Store.connect = reached
executor_main()
"""


@pytest.mark.parametrize("stage", STAGES)
def test_a_control_stage_reaches_s3_without_what_is_slow_to_import(stage: str, tmp_path: Path) -> None:
    """As its pod does it: KFP's executor runs the source that the compiled pipeline holds."""
    pipeline = next(yaml.safe_load_all((ROOT / "tests/golden" / f"llama3-{STAGES[stage]}.yaml").read_text()))
    source = tmp_path / "component.py"
    source.write_text(pipeline["deploymentSpec"]["executors"][f"exec-{stage}"]["container"]["command"][-1])
    given = json.dumps(executor_input(pipeline["components"][f"comp-{stage}"], tmp_path))
    function = stage.replace("-", "_")
    arguments = ["--component_module_path", str(source), "--executor_input", given, "--function_to_execute", function]
    environment = {"PYTHONPATH": str(ROOT), "_KFP_RUNTIME": "true", **ADDRESSES}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    imported = done.stdout.split("\n")[-2].split() if done.stdout else []
    assert "cycleqd.storage.objects" in imported, done.stderr
    assert [module for module in (*HEAVY, *CLIENTS) if module in imported] == []


ADDRESSES = {
    "AWS_ENDPOINT_URL": "http://localhost:1",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "MLFLOW_TRACKING_URI": "http://localhost:1",
    "CYCLEQD_BUCKET": "none",
}


def executor_input(component: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What KFP tells a task: something of the right type for each input, a place for each output."""
    inputs = component["inputDefinitions"]["parameters"]
    outputs = component.get("outputDefinitions", {})
    artifacts = {
        name: {"artifacts": [{"name": name, "uri": str(folder / name), "metadata": {}, "type": one["artifactType"]}]}
        for name, one in outputs.get("artifacts", {}).items()
    }
    files = {name: {"outputFile": str(folder / name)} for name in outputs.get("parameters", {})}
    return {
        "inputs": {"parameterValues": {name: GIVEN[one["parameterType"]] for name, one in inputs.items()}},
        "outputs": {"parameters": files, "artifacts": artifacts, "outputFile": str(folder / "outputs.json")},
    }
