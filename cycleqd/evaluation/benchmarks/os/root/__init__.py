"""The root file system of the OS benchmark's machines: made once as a tar, unpacked where it is used."""

from cycleqd.evaluation.benchmarks.os.root.tree import default_tar, opened, unpacked

__all__ = ["default_tar", "opened", "unpacked"]
