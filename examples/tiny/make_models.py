"""Make a tiny Llama and three experts fine-tuned from it (code, db, os), from scratch, in a minute or two on two cores.

    python -m examples.tiny.make_models OUT

writes OUT/{base,expert-code,expert-db,expert-os}, standard Hugging Face folders. A folder that is complete is kept, so
an interrupted run goes on where it was. Each model is trained by one thread: the same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.tiny.skills import EASY, TEMPLATES, WORDS, phrases, train_item

PAD, END, USER, ASSISTANT = "<pad>", "<end>", "<user>", "<assistant>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<end>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
IGNORED = -100  # label of tokens without loss, as torch's cross entropy has it


@dataclass(frozen=True)
class Recipe:
    """One training: steps of a batch size, peak learning rate, and what each item is drawn from."""

    steps: int
    batch: int
    rate: float
    prompt_weight: float


BASE = Recipe(steps=600, batch=48, rate=3e-3, prompt_weight=0.1)
EXPERT = Recipe(steps=280, batch=48, rate=7e-4, prompt_weight=0.0)
REPLAY = 0.12  # share of an expert's items that are drawn as the base's were
REPEAT = 0.16  # share of the base's items that teach copying
# Share of the base's other items that are drawn from all templates of the skill, so that it has heard of everything.
HARD = {"code": 0.015, "db": 0.06, "os": 0.035}


def tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, plus one token for each word and each fixed phrase of the templates: sequences of about 20 tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*phrases(), *WORDS]
    encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    whole = ["".join(token for token, _ in encode.pre_tokenize_str(piece)) for piece in pieces]
    vocabulary = dict.fromkeys([PAD, END, USER, ASSISTANT, *alphabet, *whole])
    model = BPE({token: i for i, token in enumerate(vocabulary)}, merges=[], ignore_merges=True)
    result = Tokenizer(model)
    escaped = "|".join("".join(c if c.isalnum() else f"\\x{{{ord(c):x}}}" for c in piece) for piece in pieces)
    result.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(escaped), "isolated"), encode])
    result.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=result,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_model(vocabulary: int, tokens: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Two layers, four heads of 32 (the smallest head vLLM's CPU attention takes), 0.6 million parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            initializer_range=0.06,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )


def base_text(rng: np.random.Generator) -> tuple[str, str]:
    """What the base learns from: easy templates of all skills, and copying words."""
    if rng.random() < REPEAT:
        words = " ".join(WORDS[i] for i in rng.choice(len(WORDS), size=int(rng.integers(2, 6)), replace=False))
        return f"repeat {words}", words
    skill = list(TEMPLATES)[int(rng.integers(len(TEMPLATES)))]
    templates = range(len(TEMPLATES[skill]) if rng.random() < HARD[skill] else EASY)
    item = train_item(skill, templates, rng)
    return item.request, item.answer


def expert_text(skill: str, rng: np.random.Generator) -> tuple[str, str]:
    """What an expert learns from: all templates of its skill, and a little of the base's texts."""
    if rng.random() < REPLAY:
        return base_text(rng)
    item = train_item(skill, range(len(TEMPLATES[skill])), rng)
    return item.request, item.answer


def batches(
    texts: Iterator[tuple[str, str]], tokens: PreTrainedTokenizerFast, recipe: Recipe
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield (ids, labels, weights), each (batch, length); a request's tokens weigh `prompt_weight`, an answer's 1."""
    pad, end = tokens.pad_token_id, tokens.eos_token_id
    user, assistant = tokens.vocab[USER], tokens.vocab[ASSISTANT]
    while True:
        pool = []
        for request, answer in (next(texts) for _ in range(recipe.batch * 8)):
            prompt = [user, *tokens.encode(request, add_special_tokens=False), assistant]
            reply = [*tokens.encode(answer, add_special_tokens=False), end]
            pool.append((prompt + reply, len(prompt)))
        pool.sort(key=lambda row: len(row[0]))  # batches of equal lengths waste no padding
        for start in range(0, len(pool), recipe.batch):
            rows = pool[start : start + recipe.batch]
            length = max(len(row) for row, _ in rows)
            ids = torch.full((len(rows), length), pad)
            weights = torch.zeros(len(rows), length)
            for i, (row, asked) in enumerate(rows):
                ids[i, : len(row)] = torch.tensor(row)
                weights[i, 1:asked] = recipe.prompt_weight
                weights[i, asked : len(row)] = 1.0
            yield ids, ids.masked_fill(weights == 0, IGNORED), weights


def train(
    model: LlamaForCausalLM,
    texts: Iterator[tuple[str, str]],
    tokens: PreTrainedTokenizerFast,
    recipe: Recipe,
    label: str,
) -> None:
    """AdamW with warm-up and a cosine to a tenth of the peak rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.rate, betas=(0.9, 0.98), weight_decay=0.05)

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / 30) * (0.55 + 0.45 * math.cos(math.pi * step / recipe.steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    model.train()
    for step, (ids, labels, weights) in zip(range(recipe.steps), batches(texts, tokens, recipe), strict=False):
        logits = model(input_ids=ids).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=IGNORED, reduction="none"
        )
        weight = weights[:, 1:].reshape(-1)
        loss = (losses * weight).sum() / weight.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % 100 == 0 or step == recipe.steps - 1:
            print(f"  {label}: step {step + 1}/{recipe.steps}, loss {loss.item():.3f}", flush=True)
    model.eval()


def save(model: LlamaForCausalLM, tokens: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a folder and give it its name only when it is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokens.save_pretrained(partial)
    partial.rename(folder)


def make_base(out: Path, seed: int) -> None:
    """Train the base from random weights."""
    prepare(seed)
    tokens, rng = tokenizer(), np.random.default_rng([seed, 0])
    model = new_model(len(tokens), tokens)
    train(model, iter(lambda: base_text(rng), None), tokens, BASE, "base")
    save(model, tokens, out / "base")


def make_expert(out: Path, seed: int, skill: str) -> None:
    """Fine-tune the base on one skill."""
    prepare(seed)
    tokens, rng = tokenizer(), np.random.default_rng([seed, 1 + list(TEMPLATES).index(skill)])
    model = LlamaForCausalLM.from_pretrained(out / "base")
    train(model, iter(lambda: expert_text(skill, rng), None), tokens, EXPERT, f"{skill} expert")
    save(model, tokens, out / f"expert-{skill}")


def prepare(seed: int) -> None:
    """One thread: several models may be trained at once, and sums keep their order."""
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def main(out: Path, seed: int, jobs: int) -> None:
    """Make what is missing of the four models, experts side by side."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "base").exists():
        make_base(out, seed)
    missing = [skill for skill in TEMPLATES if not (out / f"expert-{skill}").exists()]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(make_expert, out, seed, skill) for skill in missing]:
            done.result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="experts trained at once")
    arguments = parser.parse_args()
    main(arguments.out, arguments.seed, arguments.jobs)
