"""The server's adapters without vLLM: names, refusals, folders that stay while they are used and go when many are."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cycleqd.errors import CycleQDError, InvalidInputError
from cycleqd.evaluation.engines.common import resolver
from cycleqd.evaluation.engines.common.resolver import AdapterKeeper, Folders, Served
from cycleqd.storage.addresses import Address
from cycleqd.storage.evolution import manifest, model_ref
from cycleqd.storage.settings import Settings
from tests.evolution import EXPERTS, Evolution, write_adapters

Make = Callable[..., Evolution]
DIGEST = "ab" * 32


@pytest.mark.parametrize("name", [f"evo/base/{DIGEST}", f"e.v-o/g000001-c00/{DIGEST}", f"evo/expert-x.y/{DIGEST}"])
def test_names_of_adapters(name: str) -> None:
    assert str(Address.parse(name)) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "base", DIGEST, f"evo/{DIGEST}", f"/base/{DIGEST}", f"evo/base/{DIGEST}/", f"../base/{DIGEST}"),
        *(f"evo/../{DIGEST}", f"evo/base/../{DIGEST}", f"evo/base/{DIGEST[1:]}", f"evo/base/{DIGEST}0"),
        *(f"evo/base/{DIGEST.upper()}", f"evo\n/base/{DIGEST}", f"evo/base\n/{DIGEST}", f"evo/base/{DIGEST}\n"),
        *(f"evo/nothing/{DIGEST}", f"evo/expert-A/{DIGEST}", f"{'e' * 65}/base/{DIGEST}", f"s3:/base/{DIGEST}"),
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInputError):
        Address.parse(name)


@pytest.fixture
def seeded(evolution: Make, tiny_models: Path, tmp_path: Path) -> Evolution:
    adapters = write_adapters(tiny_models, tmp_path)
    made = evolution("resolver", models={"experts": {name: {"path": str(adapters / name)} for name in EXPERTS}})
    made.seed()
    made.basis()
    return made


def served(made: Evolution, folder: Path, **changes: Any) -> Served:
    folder.mkdir()
    values = {"base": model_ref(made.store, "base").digest, "rank": 16, "dtype": "float32", "cache": "10MB"}
    return Served(**{**values, "folder": str(folder), "size": 10**9, **changes})


def test_a_core_becomes_a_folder_once(seeded: Evolution, tmp_path: Path) -> None:
    known = Folders(served(seeded, tmp_path / "folders"), Settings.from_environment())
    digest = manifest(seeded.store, "expert-a").digest
    name = f"{seeded.name}/expert-a/{digest}"

    async def both() -> list[Path]:
        return await asyncio.gather(known.get(name), known.get(name))

    first, second = asyncio.run(both())
    assert first == second == tmp_path / "folders" / digest
    config = json.loads((first / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] and config["base_model_name_or_path"] == known._served.base
    assert [path.name for path in (tmp_path / "folders").iterdir()] == [digest]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"base": "f" * 64}, "is a model of base .*, and this server has fff"),
        ({"rank": 8}, "has rank 9, and this server takes 8; start one for its evolution"),
    ],
)
def test_what_the_server_is_not_made_for_is_refused(
    seeded: Evolution, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    known = Folders(served(seeded, tmp_path / "folders", **changes), Settings.from_environment())
    digest = manifest(seeded.store, "expert-a").digest
    with pytest.raises(CycleQDError, match=sentence):
        asyncio.run(known.get(f"{seeded.name}/expert-a/{digest}"))
    assert not list((tmp_path / "folders").iterdir())


class Making(Folders):
    """Folders of ten bytes each; room for two."""

    def __init__(self, folder: Path) -> None:
        self.made: list[str] = []
        settings = Settings("bucket", "http://localhost:1", "us-east-1", "", folder, folder)
        super().__init__(Served("base", 8, "float32", str(folder), 20, "1GB"), settings)

    def _make(self, address: Address) -> int:
        if address.model == "naive":
            raise InvalidInputError("no")
        self.made.append(address.digest[0])
        (Path(self._served.folder) / address.digest).mkdir()
        return 10


@pytest.fixture
def making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Making:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    return Making(tmp_path)


def name(letter: str, model: str = "base") -> str:
    return f"evo/{model}/{letter * 64}"


def test_the_least_recently_used_folder_that_nobody_holds_goes(making: Making, tmp_path: Path) -> None:
    gone: list[str] = []

    def forget(digest: str) -> None:
        gone.append(digest[0])

    async def use() -> None:
        for letter in "abc":
            with making.held(name(letter), forget):
                await making.get(name(letter))
        assert gone == ["a"]
        with making.held(name("b"), forget):
            pass
        with making.held(name("c"), forget):
            with making.held(name("d"), forget):
                await making.get(name("d"))
            assert gone == ["a", "b"]  # c is older than d, and held
            for letter in "ef":
                with making.held(name(letter), forget):
                    await making.get(name(letter))
        with making.held(name("a"), forget):
            await making.get(name("a"))

    asyncio.run(use())
    assert gone == ["a", "b", "d", "e", "c"]
    assert making.made == list("abcdefa")
    assert {path.name[0] for path in tmp_path.iterdir()} == {"f", "a"}


def test_a_failure_is_not_kept(making: Making) -> None:
    async def ask() -> None:
        for _ in range(2):
            with pytest.raises(InvalidInputError), making.held(name("a", "naive"), lambda digest: None):
                await making.get(name("a", "naive"))
        await making.get(name("a"))

    asyncio.run(ask())
    assert making.made == ["a"]


def test_the_middleware_holds_what_a_request_names_and_passes_its_body_on(
    making: Making, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    body = json.dumps({"model": name("a")}).encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        parts = [await receive(), await receive()]
        seen.append((b"".join(part["body"] for part in parts), dict(making._held)))

    async def ask(path: str) -> list[Any]:
        parts = [
            {"type": "http.request", "body": body[:9], "more_body": True},
            {"type": "http.request", "body": body[9:]},
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return parts.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await AdapterKeeper(app)({"type": "http", "path": path, "app": None}, receive, send)
        return sent

    monkeypatch.setattr(resolver, "_folders", making)
    asyncio.run(ask("/v1/completions"))
    assert seen == [(body, {"a" * 64: 1})] and not making._held
    assert asyncio.run(ask("/v1/load_lora_adapter"))[0]["status"] == 404
    assert len(seen) == 1
