"""The software that the machines need beside the project's own: Debian's packages, and two environments of Python's."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
FOLDER = PROJECT / "build/several-machines"
SERVICE, STORE = FOLDER / "service", FOLDER / "store"
"""Environments: the project's with what the servers need in addition, as docs/operations.md names it; moto, an S3."""

POSTGRESQL = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
_PROGRAMS = {
    "ip": "iproute2",
    "unshare": "util-linux",
    "pkill": "procps",
    "git": "git",
    "make": "make",
    "curl": "curl",
    "openssl": "openssl",
    "caddy": "caddy",
}
_IN_ADDITION = ["psycopg2-binary", "boto3", "dvc[s3]"]


def list_missing() -> list[str]:
    """Return what has to be installed first, as shell commands."""
    packages = sorted({package for program, package in _PROGRAMS.items() if not shutil.which(program)})
    if not POSTGRESQL:
        packages.append("postgresql")
    commands = [f"apt-get install --no-install-recommends {' '.join(packages)}"] if packages else []
    if not all((folder / "ready").exists() for folder in (SERVICE, STORE)):
        commands.append("make several-machines INSTALL=1    # from PyPI, into build/several-machines")
    return commands


def install() -> None:
    """Make both environments; the first sees the packages of the one that runs this, and adds its own."""
    for folder, packages in ((SERVICE, _IN_ADDITION), (STORE, ["moto[server]"])):
        print(f"Installing {' '.join(packages)} into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        if folder == SERVICE:
            _show_packages_of_this_one(folder)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--constraint", str(PROJECT / "constraints.txt"), *packages], check=True)
        (folder / "ready").touch()
    (SERVICE / "installed").touch()  # what the Makefile looks for


def _show_packages_of_this_one(folder: Path) -> None:
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "project.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    for script in Path(sysconfig.get_path("scripts")).iterdir():
        target = folder / "bin" / script.name
        if script.is_file() and not script.is_symlink() and not target.exists():
            first, _, rest = script.read_bytes().partition(b"\n")
            if first.startswith(b"#!") and b"python" in first:
                target.write_bytes(f"#!{folder / 'bin/python'}\n".encode() + rest)
                target.chmod(0o755)
