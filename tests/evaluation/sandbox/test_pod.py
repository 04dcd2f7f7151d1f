"""The OS benchmark with a pod's rights: the image's user, a newuidmap that is there, and capabilities or none.

Kubeflow Pipelines 2.17 drops all capabilities of a task and forbids it to get any, so that newuidmap cannot map; in a
plain container it can. as_pod.py makes either for a process of its own, and changes nothing else on this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest

from cycleqd.evaluation import sandbox
from cycleqd.evaluation.benchmarks.os.root import default_tar
from examples.tiny.make_tasks import main as make_tasks
from tests.evaluation.benchmarks.test_os_data import BROKEN_CHECK, NEED_PROCESSES, NEED_USERS
from tests.evaluation.sandbox.as_pod import PLACE, RANGE

pytestmark = pytest.mark.timeout(900)  # the first to need the root may have to make it
ROOT = Path(__file__).parents[3]
SMALL = ROOT / "tests/data/os_small.json"
IMAGE_USER = 1000  # USER of docker/Dockerfile
ONE = [IMAGE_USER, 1]
PYDANTIC = ("pydantic", "pydantic_core", "annotated_types", "typing_inspection", "typing_extensions.py")
KINDS = ["file capabilities", "set-user-id"]

PLAY = """
import json, sys
from pathlib import Path
from cycleqd.evaluation.benchmarks.os.task import OsTask
from cycleqd.evaluation.benchmarks.os.needs import machine_offers
from cycleqd.evaluation.sandbox.ids import id_range
from cycleqd.evaluation.sandbox.machine import Keeper, MachinePlan
from cycleqd.evaluation.task import Workspace
from cycleqd.errors import UnavailableError
from tests.os_play import gold, play_all, says

with Keeper() as keeper, keeper.open(MachinePlan(proc=machine_offers().proc)) as machine:
    ran = machine.run(["bash", "-c", "id -u; stat -c %u /root"], 30)
told = {"ids": id_range(), "offers": vars(machine_offers()), "ran": ran.stdout.decode().split(), "played": []}
for data, settings, model in json.loads(sys.argv[1]):
    Path("scratch").mkdir(exist_ok=True)
    task = OsTask(settings, Workspace(Path("scratch"), workers=2))
    assert task.preflight() == [], task.preflight()
    with task:
        try:
            samples = task.load(Path(data))
        except UnavailableError as error:
            told["played"].append(str(error))
            continue
        verdicts = play_all(task, samples, {"gold": gold}.get(model) or says(model), workers=2)
    told["played"].append({one: verdict.outcome for one, verdict in verdicts.items()})
print(json.dumps(told))
"""
Pod = Callable[..., dict[str, Any]]


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    """pod(plays, newuidmap=KIND, restricted=…, covered=…): what PLAY prints in such a pod.

    A play is (data, settings, model): "gold", or one reply. The folder `home` keeps what was unpacked between calls.
    """
    for program, package in (("setpriv", "util-linux"), ("newuidmap", "uidmap")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on this machine: apt-get install {package}")
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("only root that may mount can make a pod's place and become its user")
    tmp_path.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, IMAGE_USER, IMAGE_USER)
    for name in ("components", "cycleqd"):
        shutil.copytree(ROOT / name, tmp_path / "code" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", tmp_path / "code/tests", ignore=lambda folder, names: {*names} - {"os_play.py"})

    def run(plays: list[tuple[Path, dict[str, Any], str]], **changes: Any) -> dict[str, Any]:
        program, binds = sandbox.interpreter()
        show = {path.strip("/"): str(folder) for path, folder in binds.items()}  # "python", where it is not below /usr
        show |= {f"data-{number}": str(data) for number, (data, _, _) in enumerate(plays)}
        program = str(PLACE / program.strip("/")) if binds else program
        packages = Path(pydantic.__file__).parents[1]
        show |= {f"code/{name}": str(packages / name) for name in PYDANTIC}
        show |= {"os-root.tar": str(default_tar())} if default_tar().exists() else {}
        given = [(str(PLACE / f"data-{number}"), settings, model) for number, (_, settings, model) in enumerate(plays)]
        environment = {"HOME": PLACE / "home", "PYTHONPATH": PLACE / "code", "CYCLEQD_OS_ROOT": PLACE / "os-root.tar"}
        variables = [f"{name}={value}" for name, value in environment.items()]
        inside = ["env", "--chdir", str(PLACE / "home"), *variables, program, "-B", "-c", PLAY, json.dumps(given)]
        as_pod = [sys.executable, "-m", "tests.evaluation.sandbox.as_pod", str(tmp_path)]
        command = [*as_pod, json.dumps({**changes, "show": show}), str(IMAGE_USER), *inside]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    return run


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    make_tasks(tmp_path / "tiny", 16, seed=3)
    return tmp_path / "tiny/os.json"


@pytest.mark.parametrize("newuidmap", KINDS)
def test_without_capabilities_machines_have_one_id_and_verdicts_are_right(pod: Pod, tiny: Path, newuidmap: str) -> None:
    settings = {"prompt": "{description}", "max_rounds": 1, "root": "host"}  # as in examples/tiny/config.yaml
    small = {"root": "host", "exclude": [7, 8, 9]}
    plays = [(tiny, settings, "gold"), (tiny, settings, "Act: finish"), (SMALL, small, "gold"), (SMALL, small, "no")]
    told = pod(plays, newuidmap=newuidmap, restricted=True, covered=True)
    assert told["ids"] == ONE
    assert told["offers"] == {"problem": "", "users": False, "proc": False}
    assert told["ran"] == ["0", "0"]
    outcomes = [(len(verdicts), {*verdicts.values()}) for verdicts in told["played"]]
    assert outcomes == [(16, {"passed"}), (16, {"wrong"}), (7, {"passed"}), (7, {"format"})]


@pytest.mark.parametrize("newuidmap", KINDS)
def test_with_capabilities_machines_have_a_range(pod: Pod, newuidmap: str) -> None:
    told = pod(
        [(SMALL, {"root": "host", "ids": [*range(8)]}, "gold")], newuidmap=newuidmap, restricted=False, covered=False
    )
    assert told["ids"] == [*RANGE]
    assert told["offers"] == {"problem": "", "users": True, "proc": True}
    assert {*told["played"][0].values()} == {"passed"}


def test_root_of_a_name_space_with_one_id_has_machines() -> None:
    """As in a rootless container whose user has no range."""
    code = (
        "from cycleqd.evaluation.benchmarks.os.needs import machine_offers\n"
        "from cycleqd.evaluation.sandbox.ids import id_range\n"
        "print(id_range(), machine_offers())"
    )
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout.startswith("(0, 1) Offers(problem='', users=False, "), done


def test_what_was_unpacked_for_one_id_is_not_taken_for_a_range(pod: Pod, os_image: Path, tmp_path: Path) -> None:
    """Pods that share a home, the restricted one first: each has the root with its own owners, and users log in."""
    one, many = {"exclude": [7, 8, 9]}, {"exclude": []}
    for _ in range(2):
        restricted = pod([(SMALL, one, "gold")], newuidmap=KINDS[0], restricted=True, covered=True)
        free = pod([(SMALL, many, "gold")], newuidmap=KINDS[0], restricted=False, covered=False)
        assert [*restricted["played"][0].values()] == ["passed"] * 7
        assert [*free["played"][0].values()] == ["passed"] * 10
    unpacked = {folder.name.split("-", 3)[3]: folder for folder in (tmp_path / "home/.cache/cycleqd").iterdir()}
    assert {key: folder.joinpath("root/etc").stat().st_uid for key, folder in unpacked.items()} == {
        f"{ONE[0]}-{ONE[1]}": ONE[0],
        f"{RANGE[0]}-{RANGE[1]}": RANGE[0],
    }


def test_agentbench_without_capabilities_and_proc(pod: Pod, os_image: Path) -> None:
    """Of the 110 tasks 98 run in a Kubeflow pod, and the stage names the others; docs/kubernetes.md says which."""
    if not (folder := os.environ.get("CYCLEQD_BENCHMARKS")):
        pytest.skip("CYCLEQD_BENCHMARKS does not name the folder with the benchmarks' data")
    data, lacking = Path(folder) / "agentbench_os", sorted(map(int, NEED_USERS | NEED_PROCESSES))
    plays = [(data, {"ids": "task_ids.json", "exclude": left_out}, "gold") for left_out in (lacking, [])]
    run, refused = pod(plays, newuidmap=KINDS[0], restricted=True, covered=True)["played"]
    assert len(run) == 98
    assert {one for one, outcome in run.items() if outcome != "passed"} == BROKEN_CHECK
    assert "cannot run 12 of the OS samples (some look at processes" in refused
    assert f"exclude: {lacking}." in refused
