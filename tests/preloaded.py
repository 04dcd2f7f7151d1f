"""Imported once by the server from which tests fork processes: what every stage would else import again."""

import matplotlib.figure
import mlflow
import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.generation.utils import GenerationMixin

from components.aggregate import stage as aggregate
from components.basis import stage as basis
from components.evaluate import stage as evaluate
from components.merge import stage as merge
from components.mutate import stage as mutate
from components.seed import stage as seed
from components.select_parents import stage as select_parents
from components.update_archives import stage as update_archives
from cycleqd.evaluation.engines import transformers as engine
from cycleqd.report import heatmaps
from cycleqd.storage import adapters, making
from tests import evolution

__all__ = [
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "GenerationMixin",
    "LlamaForCausalLM",
    "PreTrainedTokenizerFast",
    "adapters",
    "aggregate",
    "basis",
    "engine",
    "evaluate",
    "evolution",
    "heatmaps",
    "making",
    "matplotlib",
    "merge",
    "mlflow",
    "mutate",
    "peft",
    "seed",
    "select_parents",
    "torch",
    "update_archives",
]
