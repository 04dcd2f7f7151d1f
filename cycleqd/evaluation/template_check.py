"""Whether models' tokenizers load and their chat templates end, tried in a process of its own: a template is a program.

python -m cycleqd.evaluation.template_check CHATS FOLDER…      prints a line of JSON a folder: what is wrong, or null
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from cycleqd.evaluation.engines import Chat
from cycleqd.evaluation.engines.common.checkpoint import LOCAL, filled
from cycleqd.evaluation.task import Message

CPU_SECONDS, MEMORY = 15, 4 << 30
"""What loading one tokenizer and filling its template may take; real ones take a second."""

_ENDLESS = f"its tokenizer or chat template does not end within {CPU_SECONDS} s and {MEMORY >> 30} GiB"
_WALL_SECONDS = 600  # with the import of transformers, on a busy machine
_USER, _ASSISTANT = Message(role="user", content="1 + 1?"), Message(role="assistant", content="2")
_CONVERSATIONS = ([_USER], [_USER, _ASSISTANT, _USER])


def problems(folders: Sequence[Path], chats: Sequence[Chat] = (Chat(),)) -> list[str | None]:
    """What is wrong with each folder's tokenizer or chat template, as a clause; None where nothing is.

    A folder without a chat template has nothing to check.

    Args:
        folders: Of models; their weights are not read.
        chats: How tasks put conversations before them.
    """
    found: list[str | None] = []
    while len(found) < len(folders):  # a process that was ended goes on with the next folder
        told = json.dumps([[chat.system, dict(chat.template), chat.prefill] for chat in chats])
        command = [sys.executable, "-m", __name__, told, *map(str, folders[len(found) :])]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_WALL_SECONDS, check=False
            )
            lines, failed = done.stdout.splitlines(), done.returncode != 0
        except subprocess.TimeoutExpired as error:
            lines, failed = (error.stdout or b"").splitlines(), True
        found += [json.loads(line) for line in lines]
        if failed and len(found) < len(folders):
            found.append(_ENDLESS)
    return found


def _problem(folder: str, chats: Sequence[Chat]) -> str | None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
        if tokenizer.chat_template:
            for conversation, chat in product(_CONVERSATIONS, chats):
                filled(tokenizer, conversation, chat)
    except MemoryError:
        return _ENDLESS
    except Exception as error:  # whatever a template or a tokenizer's files make of it
        if "trust_remote_code" in str(error):
            return "its tokenizer is code of its own (auto_map), which is not run; save it as a tokenizer.json"
        return f"its tokenizer or chat template fails: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None


def _status() -> list[str]:
    return Path("/proc/self/status").read_text().splitlines()


def _main(chats: Sequence[Chat], folders: Sequence[str]) -> None:
    import transformers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401 (before the clock starts)

    transformers.logging.set_verbosity_error()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    used_by_imports = next(int(line.split()[1]) << 10 for line in _status() if line.startswith("VmData:"))
    resource.setrlimit(resource.RLIMIT_DATA, (used_by_imports + MEMORY, used_by_imports + MEMORY))
    for folder in folders:
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        print(json.dumps(_problem(folder, chats)), flush=True)


if __name__ == "__main__":
    _main([Chat(*chat) for chat in json.loads(sys.argv[1])], sys.argv[2:])
