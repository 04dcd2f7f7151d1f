"""docs/images/mlflow-*.png: what MLflow shows of the demo's evolution once it is finished, by headless Chromium.

`make pictures`, after `make demo`.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image

from cycleqd.run.local.services import running
from cycleqd.search.config import load
from cycleqd.storage.objects import Store
from cycleqd.storage.settings import Settings
from cycleqd.tracking.runs import EVOLUTION
from cycleqd.tracking.tags import ids_of
from cycleqd.tracking.view import NAME

CONFIG = Path("examples/tiny/config.yaml")
FOLDER = Path("docs/images")
_SIZE = (1950, 900)  # CSS pixels
_PAGE = 0.745  # of the width; to the right is a panel that has nothing to do with it
_COLORS = 64
_LOADING = 30_000  # milliseconds of the page's own time


def main() -> None:
    """Take every picture."""
    config = load(CONFIG)
    with running(config.place) as environment:
        os.environ.update(environment)
        for name, page in pages(config.name).items():
            take(f"{environment['MLFLOW_TRACKING_URI']}/#/{page}", FOLDER / f"mlflow-{name}.png")


def pages(evolution: str) -> Mapping[str, str]:
    """What to take a picture of: its name, and the page's address after the `#/`.

    Args:
        evolution: Name of an evolution that is complete.
    """
    ids = ids_of(Store.connect(Settings.from_environment(), evolution), "base")
    version = MlflowClient().get_model_version_by_alias(evolution, "best")
    runs = f"experiments/{ids.experiment}/runs"
    return {
        "models": f"{runs}?viewStateShareKey={NAME}",
        "evolution": f"{runs}/{ids.runs[EVOLUTION]}/model-metrics",
        "final": f"models/{evolution}/versions/{version.version}",
    }


def take(url: str, path: Path) -> None:
    """Take a picture of a page, in few colours.

    Args:
        url: The page's address.
        path: A PNG file.
    """
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}/home"]
        size = f"--window-size={_SIZE[0]},{_SIZE[1]}"
        command = ["chromium", *options, size, f"--virtual-time-budget={_LOADING}", f"--screenshot={shot}", url]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        page = Image.open(shot).convert("RGB").crop((0, 0, round(_PAGE * _SIZE[0]), _SIZE[1]))
        page.quantize(_COLORS).save(path, optimize=True)


if __name__ == "__main__":
    main()
