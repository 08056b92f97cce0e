"""`make several-machines`: see tools/several_machines/__init__.py."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tools.several_machines import servers, software, story
from tools.several_machines.machine import ADDRESSES, Machine, NotShownError, make_machines, tell


def main() -> None:
    """Show everything, and end with status 1 and one line at the first thing that cannot be shown."""
    parser = argparse.ArgumentParser(prog="make several-machines", description="Several machines, tried on one.")
    parser.add_argument("--install", action="store_true", help="install what is needed from PyPI, and do nothing else")
    parser.add_argument("--keep", action="store_true", help="keep the machines' disks, with their logs")
    options = parser.parse_args()
    if options.install:
        software.install()
        return
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        sys.exit("several-machines: needs root on Linux, to make namespaces of networks, mounts and processes")
    if missing := software.list_missing():
        sys.exit("several-machines: first run\n  " + "\n  ".join(missing))
    folder = Path(tempfile.mkdtemp(prefix="several-machines-"))
    folder.chmod(0o755)
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            show_all(*make_machines(stack, folder, f"{software.SERVICE}/bin:{os.environ['PATH']}"))
    except (NotShownError, KeyboardInterrupt) as error:
        options.keep = True
        sys.exit(f"several-machines: NOT shown: {error or 'interrupted'} (logs: {folder}/*/logs)")
    finally:
        if not options.keep:
            shutil.rmtree(folder)
    tell(f"\nAll of it has been shown, in {time.monotonic() - begin:.0f} seconds.")


def show_all(box: Machine, gpu: Machine) -> None:
    """Show one thing after the other."""
    tell("# Two machines")
    for name, address in ADDRESSES.items():
        tell(f"{name} {address}, its own disk at /srv, all else read-only")
    tell("\n# The servers on box: PostgreSQL, an S3 store, git, Prefect, MLflow")
    servers.start_database(box)
    servers.start_store(box)
    servers.serve_git(box)
    story.make_clones(box, gpu)
    up = servers.make_up(box, servers.OPEN, "SERVICE_HOST=0.0.0.0")
    tell("\n# A worker on gpu executes a run of a deployment")
    story.connect(box, gpu)
    worker = story.start_worker(gpu, "worker")
    name = story.show_deployment(box, gpu, worker)
    tell("\n# An experiment and data go from one machine to the other")
    story.show_experiment(box, gpu, name)
    story.show_data(box, gpu)
    tell("\n# A sweep on gpu")
    story.show_sweep(box, gpu, worker)
    tell("\n# One training by both machines")
    story.show_training(box, gpu)
    tell("\n# A proxy with TLS and a login before both servers")
    story.show_proxy(box, gpu, up, worker)


if __name__ == "__main__":
    main()
