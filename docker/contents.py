"""What an image may hold: the packages that its stages need, with whichever build of torch that is."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

PROBE = """
import importlib.metadata, importlib.util, json, re
found = {re.sub("[-_.]+", "-", d.name).lower(): d.version for d in importlib.metadata.distributions()}
own = [name for name in ("cycleqd", "components", "pipelines", "tests") if importlib.util.find_spec(name)]
print(json.dumps([found, own]))
"""
"""What is run in an image; `read` reads what it prints."""

_COMMON = {"boto3", "mlflow-skinny", "kfp", "matplotlib", "jinja2"}
_CLIENT = {"typer", "rich", "kubernetes"}
_NEEDED = {
    "control": _COMMON | _CLIENT,
    "weights": _COMMON | {"torch", "safetensors"},
    "evaluate": _COMMON | {"torch", "safetensors", "transformers", "peft", "evalplus", "tree-sitter", "pymysql"},
}
_OWN = {"control": {"cycleqd", "components", "pipelines"}}
_NEVER = {"pytest", "hypothesis", "vllm"}


def read(printed: str) -> tuple[dict[str, str], list[str]]:
    """The versions of an image's packages by name, and which of our own packages it holds, from what PROBE printed."""
    packages, own = json.loads(printed)
    return packages, own


def faults(image: str, packages: Mapping[str, str], own: Collection[str]) -> list[str]:
    """A sentence for each thing that is missing, and for each that has no business there.

    torch's CUDA build brings libraries of its own; they may be where torch is, and only beside that build. EvalPlus and
    transformers may bring parts of the client along.
    """
    needed, present = _NEEDED[image], set(packages)
    every = set().union(*_NEEDED.values()) | _NEVER
    found = [f"{image} lacks {name}" for name in sorted(needed - present)]
    found += [f"{image} needs no {name}" for name in sorted((present & every) - needed - _CLIENT)]
    ours = _OWN.get(image, {"cycleqd", "components"})
    found += [f"{image} lacks our {name}" for name in sorted(ours - set(own))]
    found += [f"{image} needs none of our {name}" for name in sorted(set(own) - ours)]
    libraries = _cuda_libraries(packages)
    if libraries and "torch" not in needed:
        found.append(f"{image} runs no torch and needs no {', '.join(libraries)}")
    elif libraries and packages.get("torch", "").endswith("+cpu"):
        found.append(f"{image} has torch's CPU build and needs no {', '.join(libraries)}")
    return found


def torch_build(packages: Mapping[str, str]) -> str:
    """Which build of torch these packages hold, in words."""
    if "torch" not in packages:
        return "no torch"
    libraries = _cuda_libraries(packages)
    build = f"its CUDA build, with {len(libraries)} packages of libraries" if libraries else "its CPU build"
    return f"torch {packages['torch']}, {build}"


def _cuda_libraries(packages: Collection[str]) -> list[str]:
    """What torch's CUDA build asks for and its CPU build does not."""
    return sorted(name for name in packages if name.startswith(("nvidia-", "cuda-")) or name == "triton")
