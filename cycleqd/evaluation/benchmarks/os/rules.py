"""AgentBench's rules for os-interaction as functions of texts: a reply, an output, a script."""

from __future__ import annotations

import ast
import hashlib
import re
from enum import Enum

SHOWN, KEPT = 800, 780
"""Characters above which an output is cut, and what is left of it."""


class Action(Enum):
    """What a reply asks for."""

    NONE = 0
    BASH = 1
    FINISH = 2
    ANSWER = 3


def action(reply: str) -> tuple[Action, str]:
    """The action of a reply and its content: the last `Act:` line that can be read counts.

    Of bash: all ```bash blocks of the reply, joined by blank lines. Of answer: the text between the first "(" and the
    last ")" of the line; a line without both is passed over. Neither case nor what follows the word matters.

    Args:
        reply: A model's reply.
    """
    for line in reversed(re.findall(r"Act:\s*(.+)", reply)):
        word = line.lower()
        if word.startswith("bash"):
            return Action.BASH, "\n\n".join(re.findall(r"```bash\n(.*?)\n```", reply, re.DOTALL))
        if word.startswith("finish"):
            return Action.FINISH, ""
        left, right = line.find("("), line.rfind(")")
        if word.startswith("answer") and left >= 0 and right >= 0:
            return Action.ANSWER, line[left + 1 : right]
    return Action.NONE, ""


def shown(output: str) -> str:
    """The message that carries a command's output to the model.

    Args:
        output: The output; above 800 characters it is cut to 780.
    """
    if not output:
        return "The output of the OS is empty."
    cut = output[:KEPT] + "\n[truncated because the output is too long]" if len(output) > SHOWN else output
    return f"The output of the OS:\n\n{cut}"


def seeded(script: str, sample_id: str) -> str:
    """A bash script with RANDOM seeded, so that a sample is the same in every run.

    Args:
        script: The script.
        sample_id: The sample's id, of which the seed is a hash.
    """
    seed = int.from_bytes(hashlib.sha256(sample_id.encode()).digest()[:4], "big") % 32768
    return f"RANDOM={seed}\n{script}"


_PURE_CALLS = {"int", "float", "str", "len", "exit", "norm_newline", "abs", "round", "sorted", "set", "list", "tuple"}


def reads_only_arguments(script: tuple[str, str]) -> bool:
    """Whether a check compares its arguments and looks at nothing else, so that it may run outside the model's machine.

    Such a script is Python, imports from sys only, and calls by name only functions that it defines itself or that have
    no effect. Anything else, or what does not parse, is taken to look at the machine.

    Args:
        script: (language, text).
    """
    language, text = script
    if language != "python":
        return False
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return False
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    names = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    imports = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imports |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return imports <= {"sys"} and names <= _PURE_CALLS | defined
