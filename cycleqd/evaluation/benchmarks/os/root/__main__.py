"""`python -m cycleqd.evaluation.benchmarks.os.root [FILE]`: make the root file system's tar, as root on Debian."""

import sys
from pathlib import Path

from cycleqd.errors import CycleQDError
from cycleqd.evaluation.benchmarks.os.root.build import build
from cycleqd.evaluation.benchmarks.os.root.tree import default_tar

target = Path(sys.argv[1]) if len(sys.argv) > 1 else default_tar()
try:
    build(target)
except CycleQDError as error:
    sys.exit(str(error))
print(target)
