"""CycleQD: evolutionary merging of expert language models (Kuroki et al., ICLR 2025, arXiv 2410.14735)."""

__version__ = "0.2.0"
