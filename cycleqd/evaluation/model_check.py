"""Whether models' tokenizers load, chat templates end and tensors are their class's, tried in a process of its own.

A chat template is a program, and a configuration may ask for a model of any size.

python -m cycleqd.evaluation.model_check CHATS FOLDER…      prints a line of JSON a folder: the fields of `Tried`
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

from cycleqd.evaluation.engines import Chat
from cycleqd.evaluation.engines.common.architecture import filled, fit
from cycleqd.evaluation.engines.common.checkpoint import LOCAL, prompt_of
from cycleqd.evaluation.task import Message
from cycleqd.weights.checkpoint import Checkpoint
from cycleqd.weights.headers import TensorInfo
from cycleqd.weights.settings import Settings

CPU_SECONDS, MEMORY = 15, 4 << 30
"""What trying one model may take; real ones take a second."""

_ENDLESS = f"its tokenizer, chat template or model class does not end within {CPU_SECONDS} s and {MEMORY >> 30} GiB"
_SHAPES = "cycleqd-shapes.json"
_WALL_SECONDS = 600  # with the import of transformers, on a busy machine
_USER, _ASSISTANT = Message(role="user", content="1 + 1?"), Message(role="assistant", content="2")
_CONVERSATIONS = ([_USER], [_USER, _ASSISTANT, _USER])


@dataclass(frozen=True)
class Tried:
    """What was found of a model, each problem a clause, None where there is none.

    `tokenizer`: it does not load, or its chat template fails. `misfit`: transformers cannot make the model of its
    configuration and tensors. `converted`: it makes other tensors of those that are stored. `filled`: the configuration
    with its class's defaults; None where that is not known.
    """

    tokenizer: str | None = None
    misfit: str | None = None
    converted: bool = False
    filled: Settings | None = None


def tried(folders: Sequence[Path], chats: Sequence[Chat] = (Chat(),)) -> list[Tried]:
    """Try models one by one.

    Args:
        folders: Each a model's without its weights, and with their names and shapes: `write_shapes`.
        chats: How tasks put conversations before them.
    """
    told = json.dumps([[chat.system, dict(chat.template), chat.prefill] for chat in chats])
    found: list[Tried] = []
    while len(found) < len(folders):  # a process that was ended goes on with the next folder
        command = [sys.executable, "-m", __name__, told, *map(str, folders[len(found) :])]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WALL_SECONDS, check=False
            )
            lines, failed = done.stdout.splitlines(), done.returncode != 0
        except subprocess.TimeoutExpired as error:
            lines, failed = (error.stdout or b"").splitlines(), True
        found += [Tried(**json.loads(line)) for line in lines]
        if failed and len(found) < len(folders):
            found.append(Tried(_ENDLESS))
    return found


def write_shapes(model: Checkpoint, folder: Path) -> None:
    """Write what `tried` needs of a model's weights into the folder with its other files.

    Args:
        model: The model.
        folder: The folder.
    """
    (folder / _SHAPES).write_text(json.dumps({name: [t.dtype, t.shape] for name, t in model.tensors.items()}))


def _try(folder: Path, chats: Sequence[Chat]) -> Tried:
    tokenizer = _tokenizer_problem(folder, chats)
    if tokenizer == _ENDLESS:
        return Tried(tokenizer)
    shapes = json.loads((folder / _SHAPES).read_text())
    tensors = {name: TensorInfo(name, dtype, tuple(shape), "", 0, 0) for name, (dtype, shape) in shapes.items()}
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, **LOCAL)
        found = fit(config, tensors)
        return Tried(tokenizer, found.problem, found.converted, filled(config))
    except MemoryError:
        return Tried(_ENDLESS)
    except Exception as error:  # whatever a configuration holds
        return Tried(tokenizer, f"transformers cannot read its configuration: {_line(error)}")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _tokenizer_problem(folder: Path, chats: Sequence[Chat]) -> str | None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
        if tokenizer.chat_template:
            for conversation, chat in product(_CONVERSATIONS, chats):
                prompt_of(tokenizer, conversation, chat)
    except MemoryError:
        return _ENDLESS
    except Exception as error:  # whatever a template or a tokenizer's files make of it
        if "trust_remote_code" in str(error):
            return "its tokenizer is code of its own (auto_map), which is not run; save it as a tokenizer.json"
        return f"its tokenizer or chat template fails: {_line(error)}"
    return None


def _status() -> list[str]:
    return Path("/proc/self/status").read_text().splitlines()


def _main(chats: Sequence[Chat], folders: Sequence[str]) -> None:
    import torch  # noqa: F401 (before the clock starts)
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

    transformers.logging.set_verbosity_error()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used_by_imports = next(int(line.split()[1]) << 10 for line in _status() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (used_by_imports + MEMORY, used_by_imports + MEMORY))
    for folder in folders:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        print(json.dumps(asdict(_try(Path(folder), chats)), default=str), flush=True)


if __name__ == "__main__":
    _main([Chat(*chat) for chat in json.loads(sys.argv[1])], sys.argv[2:])
