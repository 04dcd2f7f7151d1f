"""python -m cycleqd.cli"""

from cycleqd.cli import main

main()
