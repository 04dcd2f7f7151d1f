"""Models on the Hugging Face Hub: hf://ORG/NAME, or hf://ORG/NAME@REVISION, fetched into the Hub's own cache."""

from __future__ import annotations

import re
from pathlib import Path

from cycleqd.errors import InvalidInputError, UnavailableError

HUB = "hf://"

_URL = re.compile(r"hf://(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?/?")
_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "LICENSE*", "NOTICE*", "USE_POLICY*"]


def snapshot(url: str) -> Path:
    """The folder of a model on the Hub: files that are not in the Hub's cache are downloaded.

    Args:
        url: hf://ORG/NAME; a branch, tag or commit may follow "@".

    Raises:
        InvalidInputError: The URL is none, or the Hub has no such model for this user.
        UnavailableError: huggingface_hub is not installed, or the Hub cannot be reached and the cache lacks the model.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise InvalidInputError(f"{url} is no model on the Hugging Face Hub; write hf://ORG/NAME or hf://ORG/NAME@TAG")
    repository, revision = found["repository"], found["revision"]
    by_hand = f"download it elsewhere (hf download {repository} --local-dir FOLDER) and give its folder"
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise UnavailableError(f"{url} needs huggingface_hub (pip install huggingface_hub); or {by_hand}") from error
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=_FILES))
    except GatedRepoError as error:
        raise InvalidInputError(
            f"{url} is only for users who accepted its terms; do so there, and hf auth login"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise InvalidInputError(
            f"the Hugging Face Hub has no {url} for this user; correct it, or hf auth login"
        ) from error
    except Exception as error:  # whatever the client's libraries raise without a network
        raise UnavailableError(
            f"{url} cannot be fetched from the Hugging Face Hub ({type(error).__name__}); check the network and"
            f" HF_HUB_OFFLINE, or {by_hand}"
        ) from error
