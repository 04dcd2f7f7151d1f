"""Making the root file system tar.

The benchmark's tasks were written for a minimal Ubuntu image with python3, pip, git, vim, curl, wget, unzip, zip and
tree, and with what Ubuntu installs beside those: gcc, make, less and ssh. This is the minimal system of the release
that this machine runs, from the package mirror that this machine's apt is set up with, with the same programs, and
sudo, which one task installs from the network (there is none here).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from cycleqd.errors import InvalidInputError, UnavailableError

PACKAGES = (
    "sudo procps python3 python3-pip git vim curl wget unzip zip tree gcc libc6-dev make less openssh-client patch"
)
_DOCUMENTATION = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale")
_APT = ("var/cache/apt", "var/lib/apt/lists")
_TEXTS = {
    "etc/hostname": "box\n",
    "etc/hosts": "127.0.0.1\tlocalhost box\n",
    "etc/resolv.conf": "",
    "etc/apt/sources.list": "",  # no mirror can be reached: `apt update` then has nothing to do, and succeeds
}


def build(tar: Path) -> None:
    """Make the tar, and beside it TAR.json with the packages and versions in it.

    Args:
        tar: Where it goes; an older one is replaced in one step.

    Raises:
        InvalidInputError: This process is not root's.
        UnavailableError: debootstrap or a package mirror is missing.
    """
    if os.geteuid() != 0:
        raise InvalidInputError("Making the OS benchmark's root needs root: run this as root, or with sudo.")
    if shutil.which("debootstrap") is None:
        raise UnavailableError("debootstrap is not installed: run `apt-get install debootstrap`.")
    release, mirror = _mirror()
    tar.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="os-root-", dir=tar.parent) as scratch:
        root, made = Path(scratch, "root"), Path(scratch, "made.tar")
        _debootstrap(root, release, mirror, Path(scratch, "log"))
        _tidy(root)
        query = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-W", "-f", "${Package} ${Version}\n"]
        command = ["tar", "--sort=name", "--numeric-owner", "--exclude=./dev/*", "-C", str(root), "-cf", str(made), "."]
        subprocess.run(command, check=True)
        versions = dict(line.split(" ") for line in _output(query).splitlines())
        Path(f"{tar}.json").write_text(json.dumps({"release": release, "packages": versions}, indent=1) + "\n")
        made.replace(tar)


def _mirror() -> tuple[str, str]:
    """The release of this machine and the first mirror of its apt that carries it."""
    lines = Path("/etc/os-release").read_text().splitlines()
    release = next((line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_CODENAME=")), "")
    command = ["apt-get", "indextargets", "--format", "$(SITE) $(CODENAME) $(COMPONENT)", "Created-By: Packages"]
    for target in _output(command).splitlines():
        site, codename, component = target.rsplit(" ", 2)
        if codename == release and component == "main":
            return release, site
    raise UnavailableError(
        f"apt on this machine has no source for '{release} main': add one to /etc/apt/sources.list.d."
    )


def _debootstrap(root: Path, release: str, mirror: str, log: Path) -> None:
    include = ",".join(PACKAGES.split())
    proxy = _output(["apt-config", "dump", "--format", "%v", "Acquire::http::Proxy"])
    environment = {**os.environ, "http_proxy": proxy} if proxy else None
    command = ["debootstrap", "--variant=minbase", f"--include={include}", release, str(root), mirror]
    with log.open("wb") as file:
        done = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False)
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise UnavailableError(
            f"debootstrap could not make the root ({' '.join(last)}): see that apt's mirror answers."
        )


def _tidy(root: Path) -> None:
    for folder in (*_DOCUMENTATION, *_APT):
        shutil.rmtree(root / folder, ignore_errors=True)
        (root / folder).mkdir(parents=True)
    for name, text in _TEXTS.items():
        path = root / name
        path.unlink(missing_ok=True)
        path.write_text(text)


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
