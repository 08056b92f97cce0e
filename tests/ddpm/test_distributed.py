"""Several processes that work as one: torchrun starts two of them once, for all tests here."""

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

import ddpm
from ddpm import GaussianDiffusion, TrainingConfig, TrainingImages, TrainingState, UNet, UNetConfig, linear_betas, train
from ddpm.checkpoint import Snapshot, share_state
from ddpm.distributed import (
    Vote,
    average_,
    collect,
    is_first,
    is_lost_peer,
    local_rank,
    process_group,
    rank,
    share,
    world_size,
)
from ddpm.meeting import is_started_by_torchrun

pytestmark = pytest.mark.xdist_group("distributed")  # one worker, which starts the processes once

CONFIG = TrainingConfig(
    num_steps=5,
    learning_rate=3e-3,
    gradient_clip=0.5,
    min_snr_gamma=5.0,
    ema_decay=0.9,
    extra_ema_decays=(0.5,),
    precision="float32",
)
RUNS = {
    "plain": CONFIG,
    "accumulated": dataclasses.replace(CONFIG, accumulation_steps=2),
    "checkpointed": dataclasses.replace(CONFIG, gradient_checkpointing=True),
    "streamed": CONFIG,
    "conditional": dataclasses.replace(CONFIG, accumulation_steps=2, label_dropout=0.3),
}
VOTES = {0: [False, True, False, False, True, True], 1: [False, False, False, True, False, True]}


def train_by_name(name, dropout=0.0):
    """Train, and return the events, the weights and more."""
    torch.manual_seed(0)
    num_classes, labels = (3, torch.arange(10) % 3) if name == "conditional" else (None, None)
    sizes = {"widths": (8, 16), "attention": (False, True), "num_res_blocks": 1, "norm_groups": 4}
    unet = UNet(UNetConfig(**sizes, time_embedding_dim=8, dropout=dropout, num_classes=num_classes))
    pixels = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = TrainingImages(pixels, batch_size=4, seed=1, resident=name != "streamed", labels=labels)
    state = TrainingState.start(unet, RUNS[name])
    # The optimizer divides by the size of each gradient; of those that are all rounding this leaves more alone.
    state.optimizer.param_groups[0]["eps"] = 1e-3
    batch_sizes, masks = [], []
    unet.first_conv.register_forward_hook(lambda _, __, output: batch_sizes.append(len(output)))
    unet.middle[0].residual.dropout.register_forward_hook(lambda _, __, output: masks.append(output == 0))
    diffusion = GaussianDiffusion(linear_betas(20, 1e-4, 0.3))
    events = [
        [event.num_images_seen, event.loss, event.gradient_norm, *event.quartile_loss_sums, *event.quartile_counts]
        for event in train(state, images, diffusion, RUNS[name])
    ]
    modules = {"model": state.model, "ema": state.ema.module, "extra": state.extra_emas[0].module}
    return {
        "events": torch.tensor(events),
        "state": {f"{key}.{n}": tensor for key, each in modules.items() for n, tensor in each.state_dict().items()},
        "batch_sizes": batch_sizes,
        "mask": masks[0],
    }


def share_first_state():
    """Take one step in the first process alone, share its state, and return what all have."""
    torch.manual_seed(rank())
    state = TrainingState.start(torch.nn.Linear(2, 2), CONFIG)
    if is_first():
        state.model(torch.ones(1, 2)).sum().backward()
        state.optimizer.step()
        state.ema.update(state.model)
        state.step = 1
    notes = share_state(state, {"from": rank()})
    snapshot = Snapshot.capture(state, {}, notes)
    return snapshot.tensors, snapshot.metadata


def open_connections():
    """Yield this process's connections to others, by Gloo and to the place where they met."""
    for descriptor in {each.fd for each in psutil.Process().net_connections("tcp") if each.status == "ESTABLISHED"}:
        with socket.socket(fileno=os.dup(descriptor)) as connection:
            yield connection


def seconds_of_silence(connection):
    """Return after how many seconds a silent machine ends a connection without data on their way, and one with them."""
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    idle, interval, count, confirmation = (
        connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, f"TCP_{name}"))
        for name in ("KEEPIDLE", "KEEPINTVL", "KEEPCNT", "USER_TIMEOUT")
    )
    return [idle + count * interval, confirmation / 1000]


def work_together(folder):
    """The program of each of the two processes; the tests read its results in `folder`."""
    with process_group():
        parts = {0: torch.arange(6).reshape(3, 2), 1: torch.arange(100, 102).reshape(1, 2)}
        vote = Vote()
        outcome = {
            "rank": [rank(), local_rank(), world_size(), int(is_first())],
            "started": is_started_by_torchrun(),
            "backend": dist.get_backend(),
            "collected": collect(parts[rank()]),
            "collected_images": collect(torch.full((2 * rank(), 1, 2, 2), 0.5)),
            "collected_nothing": collect(torch.zeros(0, 3)),
            "average": average_(torch.tensor([1.0, 2.0]) if is_first() else torch.tensor([3.0, 8.0])),
            "votes": [vote.any(flag) for flag in VOTES[rank()]],
            "runs": {name: train_by_name(name) for name in RUNS},
            "with_dropout": train_by_name("plain", dropout=0.5),
            "shared": share_first_state(),
            "connections": [seconds_of_silence(each) for each in open_connections()],
        }
    outcome["joined_afterwards"] = dist.is_initialized()
    torch.save(outcome, folder / f"{outcome['rank'][0]}.pt")
    lose_a_peer(folder, outcome["rank"][0])


def lose_a_peer(folder, number):
    """Join again; then the second process exits without leaving the group."""
    # By a file: torchrun's own meeting point still holds the addresses of the group before.
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=2)
    dist.barrier()
    if number == 1:
        os._exit(0)
    try:
        collect(torch.arange(3))
    except RuntimeError as error:
        torch.save([is_lost_peer(error), str(error)], folder / "lost_peer.pt")
    os._exit(0)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """The results of the two processes, by rank."""
    folder = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, __file__, folder],
        cwd=Path(ddpm.__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lost_peer = torch.load(folder / "lost_peer.pt")
    return [torch.load(folder / f"{number}.pt") | {"lost_peer": lost_peer} for number in range(2)]


def test_each_process_knows_its_place_and_leaves_the_group(outcomes):
    assert [outcome["rank"] for outcome in outcomes] == [[0, 0, 2, 1], [1, 1, 2, 0]]
    for outcome in outcomes:
        assert outcome["started"] and outcome["backend"] == "gloo" and not outcome["joined_afterwards"]


def test_all_processes_get_the_parts_and_the_average(outcomes):
    for outcome in outcomes:
        assert outcome["collected"].tolist() == [[0, 1], [2, 3], [4, 5], [100, 101]]
        assert outcome["collected"].dtype == torch.int64
        # The first process has no images here, and below neither has.
        torch.testing.assert_close(outcome["collected_images"], torch.full((2, 1, 2, 2), 0.5), rtol=0, atol=0)
        assert outcome["collected_nothing"].shape == (0, 3)
        assert outcome["average"].tolist() == [2.0, 5.0]


def test_the_first_process_gives_the_others_its_state_to_the_bit(outcomes):
    # On another machine they do not see its checkpoints; moments of the optimizer exist in the first alone before.
    (tensors, metadata), (others, other_metadata) = (outcome["shared"] for outcome in outcomes)
    assert "optimizer.0.exp_avg" in tensors and metadata["notes"] == '{"from": 0}' and metadata["step"] == "1"
    assert metadata == other_metadata
    torch.testing.assert_close(tensors, others, rtol=0, atol=0)


def test_a_vote_is_answered_alike_on_all_processes_one_step_later(outcomes):
    expected = [one or other for one, other in zip(*VOTES.values(), strict=True)]
    assert [outcome["votes"] for outcome in outcomes] == [[False, *expected[:-1]]] * 2


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(outcomes, name):
    alone = train_by_name(name)
    first, second = (outcome["runs"][name] for outcome in outcomes)
    torch.testing.assert_close(first["events"], alone["events"], rtol=1e-4, atol=1e-6)
    assert first["state"].keys() == alone["state"].keys()
    for key, tensor in alone["state"].items():
        torch.testing.assert_close(first["state"][key], tensor, rtol=0, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
    assert_same_bits(first, second)
    for one in (first, second):  # each did one half of the work
        assert one["batch_sizes"] == [size // 2 for size in alone["batch_sizes"]]


def assert_same_bits(first, second):
    torch.testing.assert_close(first["events"], second["events"], rtol=0, atol=0)
    torch.testing.assert_close(first["state"], second["state"], rtol=0, atol=0)


def test_each_process_has_dropout_of_its_own(outcomes):
    first, second = (outcome["with_dropout"] for outcome in outcomes)
    assert first["mask"].shape == second["mask"].shape and not torch.equal(first["mask"], second["mask"])
    assert_same_bits(first, second)


def test_a_process_notices_that_another_is_gone(outcomes):
    is_lost, message = outcomes[0]["lost_peer"]
    assert is_lost, message


def test_no_connection_waits_for_ever_for_a_silent_machine(outcomes):
    # `make several-machines` shows that the work ends.
    for outcome in outcomes:
        assert len(outcome["connections"]) >= 2
        assert all(seconds == [120, 120] for seconds in outcome["connections"])


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (dist.DistBackendError("NCCL error"), True),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed"), True),
        (RuntimeError("Gloo AllReduce failed"), True),
        (RuntimeError("Connection reset by peer"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
    ],
)
def test_errors_of_a_lost_peer_are_distinguished_from_others(error, is_lost):
    assert is_lost_peer(error) is is_lost


@pytest.mark.parametrize("num_processes", range(1, 7))
def test_shares_cover_everything_once_and_are_equal_up_to_one(monkeypatch, num_processes):
    monkeypatch.setattr("ddpm.distributed.world_size", lambda: num_processes)
    for count in range(15):
        parts = []
        for number in range(num_processes):
            monkeypatch.setattr("ddpm.distributed.rank", lambda number=number: number)
            parts.append(list(range(count))[share(count)])
        assert [item for part in parts for item in part] == list(range(count))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_is_first_and_exchanges_nothing():
    assert (rank(), world_size(), local_rank()) == (0, 1, 0) and is_first()
    tensor, vote = torch.tensor([1.0, 2.0]), Vote()
    assert average_(tensor) is tensor and tensor.tolist() == [1.0, 2.0]
    assert collect(tensor) is tensor
    assert [vote.any(flag) for flag in (False, True, False)] == [False, True, False]


def test_a_group_is_left_after_an_error(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(KeyError), process_group():
        raise KeyError
    assert not dist.is_initialized()


if __name__ == "__main__":  # in each of the two processes
    work_together(Path(sys.argv[1]))
