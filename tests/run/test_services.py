"""Embedded services: shared by the commands of one folder, stopped by the last."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cycleqd.cli.session import connect
from cycleqd.errors import InvalidInputError
from cycleqd.run.local.runner import alone
from cycleqd.run.local.services import Services, running
from cycleqd.search.place import Place
from cycleqd.storage.client import probe
from cycleqd.storage.objects import Store
from tests.pipelines.configs import two_tasks
from tests.run.processes import processes_of, run_until, wait_for_none

COMMAND = """
from cycleqd.search.place import Place
from cycleqd.run.local.services import running

with running(Place(services="embedded", folder={folder!r}), tracking=False):
    pass
"""


@pytest.mark.timeout(600)
def test_commands_share_services_and_the_last_one_stops_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "")  # so that what `connect` sets is undone
    for name in ("CYCLEQD_BUCKET", "CYCLEQD_CACHE"):
        monkeypatch.setenv(name, "")
    place = Place(services="embedded", folder=str(tmp_path), bucket="kept")
    with running(place, tracking=False) as first:
        services = Services(tmp_path)
        pid = services._alive("s3")
        with running(place, tracking=False) as second:
            assert second == first and services._alive("s3") == pid
        assert services._alive("s3") == pid  # the first command still uses it
        session = connect(two_tasks(services="embedded", bucket="kept"), first)
        probe(session.store)
        session.store.put("note", b"durable")
    assert services._alive("s3") == 0
    assert services._alive("mlflow") == 0  # nobody needed it
    with running(place, tracking=False) as again:
        assert again["AWS_ACCESS_KEY_ID"] == first["AWS_ACCESS_KEY_ID"]
        assert Store.connect(connect(session.config, again).settings, "golden").get("note") == b"durable"
    keys = tmp_path / "services" / "credentials.json"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert stat.S_IMODE((keys.parent / "s3.json").stat().st_mode) == 0o600
    printed = "".join(capfd.readouterr())
    assert first["AWS_SECRET_ACCESS_KEY"] not in printed


def test_buckets_do_not_run_out_of_volumes(tmp_path: Path) -> None:
    """A bucket takes seven volumes: twenty would need 140 GB if only as many were allowed as the disk holds full."""
    place = Place(services="embedded", folder=str(tmp_path))
    with running(place, tracking=False):
        client = Services(tmp_path).client()
        for number in range(20):
            client.create_bucket(Bucket=f"bucket-{number}")
            client.put_object(Bucket=f"bucket-{number}", Key="note", Body=b"kept")


def test_external_services_are_the_environments_own(tmp_path: Path) -> None:
    with running(Place(folder=str(tmp_path), bucket="theirs")) as environment:
        assert environment == {"CYCLEQD_BUCKET": "theirs"}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = two_tasks(services="embedded", folder=str(tmp_path / "file" / "state"))
    with pytest.raises(InvalidInputError, match=r"file/state/services cannot be made .* set place\.folder to another"):
        running(config.place).__enter__()
    with pytest.raises(InvalidInputError, match=r"file/state/runs/golden cannot be made"):
        alone(config).__enter__()


@pytest.mark.timeout(600)
def test_a_server_that_a_killed_command_was_stopping_is_not_used(folder: Path) -> None:
    """SeaweedFS says that it is well for some fifteen seconds after it was told to end."""
    run_until("c_return", "killpg", COMMAND.format(folder=str(folder)), folder)
    (dying,) = processes_of(folder)
    with running(Place(services="embedded", folder=str(folder)), tracking=False):
        (serving,) = processes_of(folder)
        assert serving != dying
    wait_for_none(folder)


@pytest.mark.timeout(600)
def test_a_server_whose_command_was_killed_as_soon_as_it_was_started_is_taken_over(folder: Path) -> None:
    run_until("return", "Popen.__init__", COMMAND.format(folder=str(folder)), folder)
    (orphan,) = processes_of(folder)
    with running(Place(services="embedded", folder=str(folder)), tracking=False):
        assert processes_of(folder) == [orphan]
    wait_for_none(folder)


@pytest.mark.parametrize(
    ("event", "name", "times"), [("c_call", "TextIOWrapper.write", 1), ("call", "dump", 2), ("call", "dump", 3)]
)
def test_a_command_killed_while_it_writes_ports_or_keys_leaves_no_part_of_them(
    tmp_path: Path, event: str, name: str, times: int
) -> None:
    run_until(
        event, name, f"from cycleqd.run.local.services import *\nServices(Path({str(tmp_path)!r}))", tmp_path, times
    )
    made = Services(tmp_path)
    assert len(set(made.ports.values())) == 9 and made.credentials["secret"] in (made.folder / "s3.json").read_text()
    assert stat.S_IMODE((made.folder / "credentials.json").stat().st_mode) == 0o600
    again = Services(tmp_path)
    assert again.credentials == made.credentials
