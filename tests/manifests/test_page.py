"""docs/kubernetes.md: the files and pages that it names exist, and its patch applies."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from tests.manifests.conftest import MANIFESTS, build
from tests.manifests.test_objects import named

ROOT = MANIFESTS.parent
PAGE = (ROOT / "docs" / "kubernetes.md").read_text()


def test_files_exist() -> None:
    ours = PAGE.replace("kubeflow/pipelines/manifests", "")
    named_files = re.findall(r"\b((?:manifests|overlays|components|tests|examples|docker)/[\w./-]+\w)", ours)
    assert len(named_files) > 2
    for name in named_files:
        if not name.startswith("docker/build"):
            assert (ROOT / name).exists() or (MANIFESTS / name).exists(), name


def test_links_lead_somewhere() -> None:
    def anchors(page: str) -> set[str]:
        return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)$", page)}

    for file, anchor in re.findall(r"\]\((?!https:)([^)#]*)#?([^)]*)\)", PAGE):
        page = ROOT / "docs" / file if file else ROOT / "docs" / "kubernetes.md"
        assert page.exists(), file
        assert not anchor or anchor in anchors(page.read_text()), anchor


def test_the_patch_for_the_kubernetes_api_narrows_that_rule(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (example,) = [text for text in examples if "NetworkPolicy" in text]
    (tmp_path / "manifests").symlink_to(MANIFESTS)
    folder = tmp_path / "mine"
    folder.mkdir()
    lines = {"resources": ["../manifests/overlays/test"], **yaml.safe_load(example)}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(lines))
    rules = named(list(yaml.safe_load_all(build(folder))), "NetworkPolicy", "cycleqd-pods")["spec"]["egress"]
    (rule,) = [rule for rule in rules if 6443 in [port["port"] for port in rule["ports"]]]
    assert rule["to"] == [{"ipBlock": {"cidr": "172.18.0.2/32"}}]
