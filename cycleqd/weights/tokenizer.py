"""What a model's or an adapter's folder says of its tokenizer: token ids, chat template, tokens that end a reply."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from cycleqd.errors import InvalidInputError
from cycleqd.weights.headers import read_object
from cycleqd.weights.pieces import pieces
from cycleqd.weights.protocols import Source
from cycleqd.weights.verified import VerifiedReader

GENERATION = "generation_config.json"
"""The file that names a model's end tokens."""

TEMPLATE = "chat_template.jinja"
"""The file that holds a model's chat template."""

_TOKENS, _PIECES = "tokenizer.json", "tokenizer.model"
_SETTINGS, _MAP, _ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_VOCABULARY, _WORDS = "vocab.json", "vocab.txt"
_FILES = (
    _TOKENS, _PIECES, _SETTINGS, _MAP, _ADDED, TEMPLATE, GENERATION, _VOCABULARY, _WORDS, "merges.txt"
)  # fmt: skip
_SPECIAL = ("bos_token", "eos_token", "unk_token")
"""Tokens that a template may write."""


class Tokenizer:
    """A folder's tokenizer; each file is read when it is asked for, once."""

    def __init__(self, source: Source) -> None:
        self._location, self._sizes = source.location, source.files()
        self._reader = VerifiedReader(source)

    @property
    def exists(self) -> bool:
        """Whether the folder holds a vocabulary of any kind."""
        known = (_TOKENS, _PIECES, _VOCABULARY, _WORDS)
        return any(name in known or name.endswith(".tiktoken") for name in self._sizes)

    @cached_property
    def ids(self) -> dict[str, int] | None:
        """Token → id, added tokens included, from the first of the files that hold them; None without one."""
        if _TOKENS in self._sizes:
            content = self._object(_TOKENS)
            vocabulary = content.get("model", {}).get("vocab", {})
            if isinstance(vocabulary, list):  # unigram models list [token, score]
                vocabulary = {token: index for index, (token, _) in enumerate(vocabulary)}
            return {**vocabulary, **{token["content"]: token["id"] for token in content.get("added_tokens", [])}}
        if _VOCABULARY in self._sizes:
            return {**self._object(_VOCABULARY), **self._added}
        if _WORDS in self._sizes:
            words = self._read(_WORDS).decode("utf-8", "replace").split("\n")
            return {word: index for index, word in enumerate(words) if word} | self._added
        if _PIECES not in self._sizes:
            return None
        try:
            return {piece: index for index, piece in enumerate(pieces(self._read(_PIECES)))} | self._added
        except ValueError as error:
            raise InvalidInputError(f"{_PIECES} of {self._location} is broken ({error}); fetch it again.") from error

    @cached_property
    def pieces(self) -> str | None:
        """The sha256 of a sentencepiece model; None without one."""
        return hashlib.sha256(self._read(_PIECES)).hexdigest() if _PIECES in self._sizes else None

    @property
    def cuts_by_pieces(self) -> bool:
        """Whether texts are cut as the sentencepiece model says: tokenizer.json is preferred to it."""
        return _PIECES in self._sizes and _TOKENS not in self._sizes

    @property
    def _added(self) -> dict[str, int]:
        """Token → id of what was added to a vocabulary."""
        listed = self._settings.get("added_tokens_decoder") or {}
        settings = {str(token["content"]): int(index) for index, token in listed.items()}
        return settings | {str(token): int(index) for token, index in self._object(_ADDED).items()}

    @cached_property
    def padding(self) -> set[str]:
        """The token of padding, where it is for nothing else: it is in no prompt and no reply."""
        return {token for token in [self._token("pad_token")] if token} - set(map(self._token, _SPECIAL))

    @cached_property
    def template(self) -> tuple[str, Mapping[str, str | None]] | None:
        """The chat template, and the special tokens that it writes; None where there is none."""
        text = self._settings.get("chat_template")
        if isinstance(text, list):
            text = next((each["template"] for each in text if each.get("name") == "default"), None)
        if TEMPLATE in self._sizes:
            text = self._read(TEMPLATE).decode("utf-8", "replace")
        if not text:
            return None
        return text.strip(), {name: self._token(name) for name in _SPECIAL if name in text}

    @cached_property
    def stop(self) -> str | None:
        """The token that ends a reply where no configuration names another."""
        return self._token("eos_token")

    @cached_property
    def ends(self) -> tuple[int, ...] | None:
        """The end tokens that the folder's generation config, else its model's configuration names; None: neither."""
        file = GENERATION if GENERATION in self._sizes else "config.json"
        found = self._object(file).get("eos_token_id")
        if found is None:
            return None
        return tuple(found) if isinstance(found, list) else (found,)

    def with_ends(self, ends: tuple[int, ...]) -> dict[str, Any]:
        """The folder's generation config with other end tokens.

        Args:
            ends: Their ids.
        """
        content = self._object(GENERATION)
        if not content:  # then the model's configuration has been saying these
            config = self._object("config.json")
            content = {key: config[key] for key in ("bos_token_id", "pad_token_id") if config.get(key) is not None}
        return {**content, "eos_token_id": list(ends)}

    def files(self) -> dict[str, bytes]:
        """What prompts are made with and replies end by: the tokenizer's own files, template and generation config.

        Raises:
            IntegrityError: A file is not the one that was recorded.
        """
        found = {name: self._read(name) for name in self._sizes if name in _FILES or name.endswith(".tiktoken")}
        self._reader.finish()
        return found

    @cached_property
    def _settings(self) -> dict[str, Any]:
        settings = self._object(_SETTINGS)
        return settings if "added_tokens_decoder" in settings else settings | self._object(_MAP)  # as transformers does

    def _token(self, name: str) -> str | None:
        found = self._settings.get(name)
        return found.get("content") if isinstance(found, dict) else found

    def _object(self, name: str) -> dict[str, Any]:
        if name not in self._sizes:
            return {}
        return read_object(self._reader.read, self._location, name, self._sizes[name])

    def _read(self, name: str) -> bytes:
        return bytes(self._reader.read(name, 0, self._sizes[name]))
