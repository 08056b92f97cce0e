"""The GPU command, rehearsed on a CPU at toy size: all phases and files, and the transfer of the weights."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import ddpm
from bench.gpu import record
from bench.gpu.__main__ import main
from bench.gpu.kernels import part_of
from bench.gpu.phases import Phase, run_phases
from bench.gpu.prediction import count_work, predict_step
from bench.gpu.report import Deadline, Report
from bench.gpu.session import TOY, Session
from bench.gpu.weights import PART_BYTES, PartsError, assemble, write_parts
from ddpm import UNetConfig, train

PROJECT = Path(__file__).parents[2]
CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.xdist_group("rehearsal"),  # one worker, which rehearses once
    pytest.mark.timeout(3600),  # the rehearsal is part of its first test
]

FILES = {
    "report.json", "losses.csv", "log.txt", "kernels.txt", "grids.png", "samples_ddpm.npz", "samples_dpm_solver.npz",
}  # fmt: skip
PHASES = [
    "machine", "record", "published run", "samples, few calls", "training speed", "samples, all calls",
    "validation loss", "sampling speed", "kernels", "larger batches", "layers", "parts",
]  # fmt: skip


def call(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, "-m", "bench.gpu", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd=PROJECT,
    )


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """One call of the command on images of noise: what it printed, and its two folders."""
    folder = tmp_path_factory.mktemp("gpu")
    generator = np.random.default_rng(0)
    images = {
        split: generator.integers(0, 256, (n, 16, 16, 3), np.uint8) for split, n in (("train", 40), ("valid", 20))
    }
    np.savez(folder / "images.npz", **images)
    names = ("--images", folder / "images.npz", "--output", folder / "results", "--keep", folder / "kept")
    # On a busy machine nothing is left out or stopped: the test shows what is done, not how fast.
    done = call("--device", "cpu", "--seconds", 3600, "--tests-end-at", 3600, *names)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, folder / "results", folder / "kept"


@pytest.fixture(scope="module")
def report(rehearsal):
    return json.loads((rehearsal[1] / "report.json").read_text())


def test_every_phase_is_done_and_every_file_is_small_enough_to_transfer(report, rehearsal):
    assert [(phase["name"], phase["outcome"]) for phase in report["phases"]] == [(name, "done") for name in PHASES]
    assert all(name in rehearsal[0] for name in PHASES)
    files = list(rehearsal[1].iterdir())
    assert {path.name for path in files} == FILES and len(files) <= 8
    assert all(path.stat().st_size < 16 * 2**20 for path in files)


def test_the_gpu_tests_that_a_cpu_can_run_pass(report):
    counts = report["tests"]["counts"]
    assert set(counts) == {"PASSED", "SKIPPED"} and counts["PASSED"] >= 20
    assert report["mode"] == "auto" and report["rehearsal"] is True
    assert [attempt["compilation"] for attempt in report["record"]] == ["off", "auto"]


def test_the_published_run_trains_to_its_end_and_writes_its_losses(report, rehearsal):
    assert (report["published"]["steps"], report["published"]["of"]) == (TOY.num_steps, TOY.num_steps)
    losses = pd.read_csv(rehearsal[1] / "losses.csv")
    assert losses.step.tolist() == [5, 10, 12]
    assert losses.num_images_seen.tolist() == [20, 40, 48]
    assert losses.loss.between(0.5, 1.5).all() and losses.gradient_norm.gt(0.0).all()
    assert report["published"]["last_loss"] == pytest.approx(losses.loss.iloc[-1])
    assert 0.5 < report["loss on valid"] < 1.5


def test_speeds_are_set_beside_those_of_diffusers(report):
    assert {"this project, recorded", "this project, plain", "diffusers as it ships, fp32"} <= set(report["train"])
    assert {"this project, compiled", "diffusers as it ships, fp32"} <= set(report["sample"])
    assert all(row["ms"] > 0.0 for row in report["train"].values())
    assert len(report["a step's time with a part in its plain form, whole = 1"]) == 5
    assert all(len(forms) >= 2 for forms in report["layers, microseconds forward and backward"].values())


def test_the_profile_stands_beside_the_prediction(report, rehearsal):
    parts = report["parts of a step, ms"]
    assert parts["measured"]["convolutions"] > 0.0 and parts["predicted"]["convolutions"] > 0.0
    assert "µs" in (rehearsal[1] / "kernels.txt").read_text()


@pytest.mark.parametrize("name", ["samples_ddpm.npz", "samples_dpm_solver.npz"])
def test_samples_are_images(rehearsal, report, name):
    with np.load(rehearsal[1] / name) as arrays:
        images = arrays["images"]
    assert images.shape == (10, 8, 8, 3) and images.dtype == np.uint8
    assert len(np.unique(images)) > 100
    assert report[name]["images"] == 10 and len(report[name]["seconds_a_batch"]) == 2


def test_both_sets_are_shown_side_by_side(rehearsal):
    with Image.open(rehearsal[1] / "grids.png") as picture:
        assert picture.size == (2 * 2 * (3 * 10 + 2 + 8), 2 * (3 * 10 + 2))


def test_weights_are_transferred_in_parts_and_draw(rehearsal, tmp_path, monkeypatch):
    monkeypatch.setattr("bench.gpu.weights.PART_BYTES", 30_000)
    kept = rehearsal[2]
    folders = [tmp_path / "first", tmp_path / "second"]
    assert len(write_parts(kept, [0, 1], folders[0])) == 2
    with pytest.raises(PartsError, match="are missing of 4 in all: bring them, too"):
        assemble(folders[:1], tmp_path / "model")
    assert len(write_parts(kept, [2, 3], folders[1])) == 2
    for wrong in (-1, 4):
        with pytest.raises(PartsError, match=f"the weights have parts 0 … 3, got {wrong}"):
            write_parts(kept, [wrong], tmp_path / "none")
    with pytest.raises(PartsError, match="no such folder"):
        assemble([tmp_path / "none"], tmp_path / "other")
    assemble(folders, tmp_path / "model")
    model = ddpm.load(tmp_path / "model")
    assert model.draw(2, steps=2).shape == (2, 3, 8, 8)
    original = load_file(kept / "averaged.safetensors")
    for name, tensor in model.unet.state_dict().items():
        torch.testing.assert_close(tensor, original[name], rtol=1e-3, atol=1e-6)
    (folders[1] / "weights.03.part").write_bytes(b"torn")
    with pytest.raises(PartsError, match="their digest is wrong"):
        assemble(folders, tmp_path / "other")
    with pytest.raises(PartsError, match="exists: name a folder that does not"):
        assemble(folders, tmp_path / "model")


def test_the_published_weights_need_two_calls():
    # 63,200,387 numbers in half precision: 8 parts of at most 16 MiB, four of them at most 64 MiB.
    assert -(-63_200_387 * 2 // PART_BYTES) == 8
    assert PART_BYTES < 16 * 2**20 and 4 * PART_BYTES < 64 * 2**20


@pytest.mark.parametrize(("words", "message"), [
    pytest.param(
        ("--device", "cuda"), "PyTorch finds no GPU here, got --device cuda; cpu rehearses at toy size",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU"),
    ),
    (("--device", "cpu", "--images", "nowhere.npz"), "nowhere.npz holds no images"),
    (("parts", "0", "--keep", "nowhere", "--output", "nowhere"), "no training has left its weights in nowhere"),
])  # fmt: skip
def test_an_impossible_call_fails_with_one_line(words, message, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["bench.gpu", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value).startswith("bench.gpu: ") and "\n" not in str(ended.value)
    assert message in str(ended.value) and capfd.readouterr() == ("", "")


@pytest.fixture
def session(tmp_path):
    """Makes a session with so many seconds."""

    def make(seconds):
        deadline = Deadline(seconds)
        images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        return Session(CPU, TOY, images, images, tmp_path, deadline, Report(tmp_path / "results", deadline))

    return make


def outcomes(session):
    return {phase["name"]: phase["outcome"] for phase in session.report.values["phases"]}


def test_a_phase_that_fails_is_noted_and_the_next_goes_on(session, tmp_path):
    def fail(_session):
        raise KeyError("no such kernel")

    ran = []
    one = session(60.0)
    assert not run_phases(one, [Phase("bad", fail, 1.0, importance=1), Phase("good", ran.append, 1.0, importance=1)])
    assert outcomes(one) == {"bad": "failed: KeyError: 'no such kernel'", "good": "done"}
    assert ran == [one]
    assert "Traceback" in (tmp_path / "results/log.txt").read_text()


def test_less_important_phases_are_left_out_if_time_is_short(session):
    phases = [
        Phase("minor", lambda _: None, 20.0, importance=3),
        Phase("major", lambda _: None, 50.0, importance=1),
        Phase("middle", lambda _: None, 20.0, importance=2),
    ]
    one = session(60.0)
    assert run_phases(one, phases)
    assert outcomes(one) == {"minor": "left out: 0 s were left for it", "major": "done", "middle": "done"}


def test_a_phase_that_hangs_ends_with_the_time(tmp_path):
    program = f"""
import sys, time, torch
from pathlib import Path
from bench.gpu import phases
from bench.gpu.report import Deadline, Report
from bench.gpu.session import TOY, Session
phases._GRACE_SECONDS = 0.5
deadline = Deadline(1.0)
report = Report(Path({str(tmp_path)!r}), deadline)
report.add("known", 1)
session = Session(torch.device("cpu"), TOY, None, None, None, deadline, report)
phases.end_at_deadline(session, lambda: print("the table", flush=True) or {{}}["no such figure"])
phases.run_phases(session, [phases.Phase("hangs", lambda _: time.sleep(600), 0.1, importance=1)])
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 3
    assert done.stdout.endswith("the table\n") and "time.sleep(600)" not in done.stdout
    assert "Current thread" in done.stderr or "Thread 0x" in done.stderr
    assert json.loads((tmp_path / "report.json").read_text()) == {"known": 1}


@pytest.mark.parametrize(("failed", "mode"), [
    ([], "auto"),
    (["test_the_network_and_its_gradients_are_those_of_a_cpu"], "auto"),
    (["test_recorded_steps_are_the_plain_ones"], "default"),
    (["test_compiled_and_recorded_steps_are_the_compiled_ones"], "default"),
    (["test_a_compiled_step_is_compiled_once"], "off"),
    (["test_a_compiled_step_is_compiled_once", "test_recorded_steps_are_the_plain_ones"], "off"),
])  # fmt: skip
def test_the_published_run_takes_the_fastest_mode_without_failed_tests(failed, mode):
    names = re.findall(r"def (test_\w+)", (PROJECT / "tests/test_gpu.py").read_text())
    assert set(failed) <= set(names)
    assert record.choose_mode({name: "FAILED" if name in failed else "PASSED" for name in names}) == mode


@pytest.mark.parametrize(("broken", "expected"), [
    ((), ["auto"]), (("auto",), ["auto", "default"]), (("auto", "default"), ["auto", "default", "off"]),
])  # fmt: skip
def test_a_mode_that_fails_is_followed_by_a_simpler_one(session, monkeypatch, broken, expected):
    def train_or_fail(state, images, diffusion, config):
        if config.compilation in broken:
            raise RuntimeError("no compiler")
        return train(state, images, diffusion, dataclasses.replace(config, compilation="off"))

    monkeypatch.setattr(record, "train", train_or_fail)
    attempts = record.take_first_steps(session(60.0), ["auto", "default", "off"])
    assert [attempt["compilation"] for attempt in attempts] == expected
    assert [attempt.get("failed") for attempt in attempts] == ["RuntimeError: no compiler"] * len(broken) + [None]


def test_results_of_earlier_calls_are_moved_aside(session, tmp_path):
    for text in ("first", "second"):
        session(60.0)
        (tmp_path / "results/losses.csv").write_text(text)
    session(60.0)
    assert [(tmp_path / f"results.{number}" / "losses.csv").read_text() for number in (1, 2)] == ["first", "second"]
    assert not (tmp_path / "results/losses.csv").exists()


def test_results_are_read_from_a_run_that_was_cut_short():
    text = (
        "tests/test_gpu.py::test_one[attention at 64] PASSED   [  5%]\ntests/test_gpu.py::test_two FAILED  [ 9%]\n"
        "tests/test_gpu.py::test_three"
    )
    assert record.parse_results(text) == {"test_one[attention at 64]": "PASSED", "test_two": "FAILED"}


@pytest.mark.parametrize(("kernel", "part"), [
    ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32", "convolutions"),
    ("flash_fwd_kernel", "attention"),
    ("nvjet_hsh_128x128", "dense layers"),
    ("void at::native::multi_tensor_apply_kernel<FusedAdam>", "optimizer, averages, casts of weights"),
    ("triton_poi_fused_convolution_silu_5", "norms, activations, sums"),
    ("Memcpy DtoD", "copies"),
    ("void at::native::vectorized_elementwise_kernel", "norms, activations, sums"),
])  # fmt: skip
def test_kernels_are_assigned_to_parts_by_name(kernel, part):
    assert part_of(kernel) == part


def test_the_prediction_counts_the_work_of_the_network():
    counts = count_work(UNetConfig(), 64, 1)
    assert counts["weights"] == 63_200_387
    in_all = sum(counts[name] for name in ("convolution operations", "dense operations", "attention operations"))
    # torch counts 69.5 GFLOP an image with upsampling in its plain form, of which 5/9 are saved but for the borders.
    assert 60e9 < in_all < 69.5e9


def test_a_prediction_is_the_sum_of_its_parts_and_grows_with_the_batch():
    one, two = (predict_step(UNetConfig(), 64, batch, 800e12, 3e12) for batch in (32, 64))
    for parts in (one, two):
        assert parts["all"] == pytest.approx(sum(parts.values()) - parts["all"], abs=0.05)
    assert two["convolutions"] == pytest.approx(2 * one["convolutions"], rel=0.01)
    assert two["norm, Adam and average"] == one["norm, Adam and average"]
