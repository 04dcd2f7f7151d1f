"""Seeding's image has no tensors library: everything that seeding opens and checks does without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.evolution import write_adapters

PROGRAM = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "safetensors", "transformers", "peft"):
            raise ImportError(f"seeding's image has no {name}")

sys.meta_path.insert(0, Without())
import components.seed.stage, components.select_parents.stage, components.update_archives.stage
from cycleqd.search.config import Config
from cycleqd.storage.inputs import decided
from cycleqd.storage.staging import open_inputs, parts

models, adapters = sys.argv[1:]
paths = {"a": f"{adapters}/a", "b": f"{adapters}/b", "c": f"{models}/c"}
tasks = ("one", "two", "three")
config = Config.model_validate({
    "name": "seeds",
    "models": {
        "base": f"{models}/base",
        "experts": {name: {"path": path, "task": task} for (name, path), task in zip(paths.items(), tasks)},
        "rank": 8,
    },
    "tasks": {task: {"class": "code", "data": task} for task in tasks},
})
opened = open_inputs(None, decided(config, None))
print(*opened, *parts(opened["source-a"]))
"""


def test_adapters_and_full_experts_are_opened(tiny_models: Path, tmp_path: Path) -> None:
    write_adapters(tiny_models, tmp_path)
    arguments = [sys.executable, "-c", PROGRAM, str(tiny_models), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        "base", "source-a", "source-b", "source-c", "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
