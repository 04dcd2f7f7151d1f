"""`python -m components.evaluate.os_root [FILE]`: make the root file system tar, as root on Debian or Ubuntu."""

import sys
from pathlib import Path

from components.evaluate.os_root.build import build
from components.evaluate.os_root.tree import default_tar
from cycleqd.errors import CycleQDError

target = Path(sys.argv[1]) if len(sys.argv) > 1 else default_tar()
try:
    build(target)
except CycleQDError as error:
    sys.exit(str(error))
print(target)
