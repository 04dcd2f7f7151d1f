"""Write the requirements of a pyproject.toml as files: core.txt, and one an extra. Used while images are built."""

import sys
import tomllib
from pathlib import Path

source, folder = map(Path, sys.argv[1:])
project = tomllib.loads(source.read_text())["project"]
folder.mkdir()
for name, requirements in {"core": project["dependencies"], **project["optional-dependencies"]}.items():
    (folder / f"{name}.txt").write_text("".join(f"{requirement}\n" for requirement in requirements))
