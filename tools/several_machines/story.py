"""Claims of the documentation: each function runs commands on the machines and checks what is promised of them."""

import json
import re
import shlex
import shutil
import subprocess
import time
from collections import Counter
from typing import Any

from contract.assignments import parse_overrides
from contract.params import activate
from tools.several_machines.machine import Machine, Program, show, tell, tell_end, wait_for
from tools.several_machines.servers import BEHIND_PROXY, STORE_SETTINGS, list_store, log_in, make_up, start_proxy
from tools.several_machines.software import PROJECT
from tools.tiny_experiment import TINY

LONGER = {
    "download.synthetic.seed": 1,
    "train.num_steps": 360,
    "train.log_every": 40,
    "train.sample_every": 120,
    "train.checkpoint_every": 40,
}
"""Changes to that for a training that can be ended twice in the middle, on other images."""

TORCHRUN = "torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint box:29500 -m stages.train"
END_SECONDS = 200
"""Time in which a training must end after another machine is lost."""


def make_clones(box: Machine, gpu: Machine) -> None:
    """Put this project's last commit, with a tiny quickstart, into a repository on `box`, and clone it on both."""
    hub = box.disk / "git/flowers.git"
    subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", hub], check=True)
    push = ["git", "-c", f"safe.directory={PROJECT}", "push", "--quiet", str(hub), "HEAD:refs/heads/main"]
    subprocess.run(push, cwd=PROJECT, check=True)
    for machine in (box, gpu):
        machine.run("git config --global user.name Flora && git config --global user.email flora@box", quiet=True)
    box.run("git clone --quiet git://box/flowers.git /srv/flowers")
    for name in ("dvc.lock", "data.dvc"):
        (box.disk / "flowers" / name).unlink(missing_ok=True)  # of another experiment
    set_params(box, TINY)
    shutil.copy(box.disk / "flowers/params.yaml", box.disk / "flowers/profiles/quickstart.yaml")
    box.run("git commit --quiet --all --message 'A tiny quickstart' && git push --quiet", quiet=True)
    gpu.run("git clone --quiet git://box/flowers.git /srv/flowers")
    for machine in (box, gpu):
        machine.run("dvc remote add --local --default store s3://flowers/dvc")


def set_params(machine: Machine, changes: dict[str, object]) -> None:
    """Put the quickstart with changes into a clone's params.yaml."""
    overrides = parse_overrides([f"{name}={value}" for name, value in changes.items()])
    activate("quickstart", overrides, machine.disk / "flowers/params.yaml")


def connect(box: Machine, gpu: Machine) -> None:
    """Tell both machines' commands where the servers are."""
    places = {"PREFECT_API_URL": "http://box:4200/api", "MLFLOW_TRACKING_URI": "http://box:5000"}
    for name, value in places.items():
        tell(f"gpu$ export {name}={value}")
    gpu.environment |= places | STORE_SETTINGS
    box.environment |= {name: value.replace("box", "127.0.0.1") for name, value in places.items()}


def start_worker(gpu: Machine, name: str) -> Program:
    """Start a worker with room for a sweep and two trials."""
    worker = gpu.start(name, "prefect worker start --pool local --limit 3")
    worker.wait_until_says("started!", 60)
    return worker


def run_deployment(gpu: Machine, worker: Program, learning_rate: float) -> str:
    """Start a run of the deployment, wait for its end, and return its name."""
    params = shlex.quote(json.dumps({"train": {"learning_rate": learning_rate}}))
    output = gpu.run(f"prefect deployment run pipeline/quickstart --param params={params} --watch", seconds=400)
    name = re.search(r"Created flow run '([\w-]+)'", output)
    show("the run has completed, and its events came while it ran", "prefect.task-run.Completed" in output)
    assert name
    show(
        f"the worker on gpu executed {name[1]}", f"Flow run '{name[1]}' - Finished in state Completed" in worker.said()
    )
    return name[1]


def show_deployment(box: Machine, gpu: Machine, worker: Program) -> str:
    """Show a run of a deployment: executed on `gpu`, recorded and used on `box`."""
    name = run_deployment(gpu, worker, 0.001)
    table = box.run("flowers compare")
    show("box sees the MLflow run, with its name and its metrics", name in table and "kid_" in table)
    run_id = re.findall(r"%22([0-9a-f]{32})%22", table)[0]
    stored = [path for path in list_store(box, "mlflow/") if run_id in path]
    show(f"the S3 store holds {len(stored)} artifacts of the run", any(path.endswith("grid.png") for path in stored))
    box.run(f"mlflow artifacts download --run-id {run_id} --artifact-path samples/grid.png --dst-path /srv/fetched")
    fetched = next((box.disk / "fetched").rglob("grid.png")).read_bytes()
    show("box gets a picture of it through the server", fetched.startswith(b"\x89PNG"))
    show(
        "neither machine has a folder of artifacts",
        not [*box.disk.glob("*/mlartifacts"), *gpu.disk.glob("*/mlartifacts")],
    )
    box.run("flowers draw 4 --sampler ddim --steps 5 --output /srv/drawn")
    show("box draws with the champion that gpu registered", len([*(box.disk / "drawn").glob("?.png")]) == 4)
    return name


def show_experiment(box: Machine, gpu: Machine, name: str) -> None:
    """Show that an experiment goes from the machine that made it to the other, data included."""
    output = gpu.run(f"dvc exp push origin {name}")
    show("its files are pushed, too", re.search(r"\d+ files? uploaded", output))
    box.run(f"dvc exp pull origin {name}")
    box.run(f"dvc exp apply {name}")
    status = box.run("dvc status")
    show("box has the whole experiment: `dvc status` is clean", "up to date" in status)
    metrics = json.loads((box.disk / "flowers/build/metrics.json").read_text())
    weights = (box.disk / "flowers/build/model/averaged.safetensors").is_file()
    show("box has its weights and metrics", weights and metrics)
    box.run("git checkout --quiet params.yaml && rm data.dvc dvc.lock", quiet=True)


def show_data(box: Machine, gpu: Machine) -> None:
    """Show that new data are made and pushed on one machine, and pulled on the other."""
    set_params(gpu, TINY | LONGER)
    gpu.run("dvc repro preprocess", seconds=120)
    pushed = gpu.run("dvc push")
    show("gpu has pushed its data", re.search(r"\d+ files? pushed", pushed))
    gpu.run("git add . && git commit --quiet --message 'New data' && git push --quiet")
    box.run("git pull --quiet")
    box.run("dvc pull --allow-missing")
    one, other = (machine.disk / "flowers/build/dataset/images.npy" for machine in (gpu, box))
    show("box has pulled the same images", one.read_bytes() == other.read_bytes())


def show_sweep(box: Machine, gpu: Machine, worker: Program) -> None:
    """Show a sweep: its trials run on `gpu`, and `box` ranks them."""
    overrides = shlex.quote(json.dumps([{"train.learning_rate": 0.0015}, {"train.learning_rate": 0.003}]))
    output = gpu.run(
        f"prefect deployment run sweep/quickstart --param overrides={overrides} --param 'name=\"owls\"' --watch",
        seconds=500,
    )
    show("the sweep has completed", "finished successfully" in output)
    trials = [f"Flow run 'owls-{number}' - Finished in state Completed" in worker.said() for number in (1, 2)]
    show("both trials ran on gpu", all(trials))
    table = box.run("flowers compare --sweep owls")
    show("box ranks both trials", "owls-1" in table and "owls-2" in table)


def show_training(box: Machine, gpu: Machine) -> None:
    """Show one training by both machines: whatever parts them, it ends on both and goes on from the checkpoint."""
    for machine in (box, gpu):
        machine.environment["GLOO_SOCKET_IFNAME"] = "cable"
    programs = start_training(box, gpu, "train", 80)
    show("both machines train together", "steps of 4 on cpu by 2 processes" in programs[0].said())
    show("gpu has none of its checkpoints: nothing is shared", step_reached(gpu) < 40)
    part_machines(programs, gpu, "pkill -KILL -f '[u] -m stages.train'")
    kept = step_reached(box)
    programs = start_training(box, gpu, "train-again", kept + 40)
    show_resumed(programs[0], kept)
    part_machines(programs, gpu, "ip link set cable down", "ip link set cable up")
    kept = step_reached(box)
    programs = start_training(box, gpu, "train-to-the-end", kept)
    statuses = [program.wait(150) for program in programs]
    show_resumed(programs[0], kept)
    show("and comes to its end on both machines", statuses == [0, 0])
    weights = [machine.disk / "flowers/build/model/averaged.safetensors" for machine in (box, gpu)]
    show("box has the model, gpu none", [path.exists() for path in weights] == [True, False])
    box.run("dvc commit --force train")
    show("`dvc commit` has recorded it", "train:" not in box.run("dvc status train", quiet=True))


def start_training(box: Machine, gpu: Machine, name: str, step: int) -> list[Program]:
    """Start the training on both machines, and wait for a checkpoint of this step or a later one."""
    programs = [machine.start(name, TORCHRUN) for machine in (box, gpu)]
    wait_for(lambda: step_reached(box) >= step, f"the checkpoint of step {step}", 150)
    return programs


def part_machines(programs: list[Program], gpu: Machine, command: str, undo: str | None = None) -> None:
    """Part the machines by a command on `gpu`, and show how the training ends there and on the other."""
    begin = time.monotonic()
    gpu.run(command)
    status = programs[0].wait(END_SECONDS)
    wait_for(lambda: not gpu.run("pgrep -f '[u] -m stages.train' || true", quiet=True), "the end on gpu", END_SECONDS)
    show(f"the training has ended on both after {time.monotonic() - begin:.0f} seconds", status)
    if undo:
        gpu.run(undo)
    show("so has torchrun", programs[1].wait(END_SECONDS))
    (said,) = [line for line in lines_of(programs[0]) if "train: error" in line]
    tell_end(said)
    show("box says in one line why", "the connection to another process is lost" in said)


def show_resumed(program: Program, step: int) -> None:
    """Show that a training started from the checkpoint of this step."""
    (said,) = [line for line in lines_of(program) if "going on from" in line]
    tell_end(said)
    show(f"run again, it goes on from step {step}, which box alone has", f"{step:09d}" in said)


def lines_of(program: Program) -> list[str]:
    """Return what a program has said, the states of its progress bar as lines, too."""
    return program.said().replace("\r", "\n").splitlines()


def step_reached(machine: Machine) -> int:
    """Return the step of a machine's newest checkpoint of the longer training, 0 without one."""
    steps = [int(path.stem.removeprefix("step_")) for path in machine.disk.glob("flowers/build/checkpoints/*/step_*")]
    return max([0, *steps])


def show_proxy(box: Machine, gpu: Machine, up: Program, worker: Program) -> None:
    """Show that both servers can stand behind a proxy with TLS and a login."""
    worker.end(15, 60)
    tell("box$ kill %1    # as Ctrl-C")
    show("`make up` ends when told to", up.end(15, 100) is not None)
    make_up(box, BEHIND_PROXY, "")
    (gpu.disk / "box.pem").write_bytes(start_proxy(box).read_bytes())
    refused = gpu.run("curl --silent --max-time 5 http://box:4200/api/health", status=None)
    show("the servers themselves are out of reach", not refused)
    show_refusals(gpu)
    login = log_in("flora", "SECRET")
    for name, value in login.items():
        tell(f"gpu$ export {name}={shlex.quote(value)}")
    gpu.environment |= login
    before = len(list_requests(box))
    name = run_deployment(gpu, start_worker(gpu, "worker-behind-proxy"), 0.004)
    requests = Counter(
        (each["request"]["uri"].partition("?")[0], each["status"]) for each in list_requests(box)[before:]
    )
    show("the proxy refused none of their requests", not [path for path, status in requests if status in {401, 403}])
    show("events and logs came through it", sum(number for (path, _), number in requests.items() if "/logs" in path))
    gpu.run("flowers set-up", seconds=120)
    table = gpu.run("flowers compare --last 1")
    show("the MLflow run was recorded and read through it", name in table and "https://box:5443" in table)


def show_refusals(gpu: Machine) -> None:
    """Show what is said without the right login, or without the certificate."""
    wrong = log_in("flora", "WRONG")
    for missing, settings in {
        "a wrong password": wrong,
        "a certificate that is not trusted": {**wrong, "SSL_CERT_FILE": "", "REQUESTS_CA_BUNDLE": ""},
    }.items():
        with gpu.exporting(settings):
            for command in ("flowers compare", "flowers set-up"):
                said = gpu.run(command, status=1)
                show(f"{missing} gives one line", len(said.strip().splitlines()) == 1)


def list_requests(box: Machine) -> list[dict[str, Any]]:
    """Return what the proxy has written about the requests so far."""
    return [json.loads(line) for line in (box.disk / "proxy/access.log").read_text().splitlines()]
