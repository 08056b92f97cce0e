"""Tests for a GPU, skipped without one; `FLOWERS_TEST_DEVICE=cpu` rehearses those that can run on a CPU.

The file uses no `conftest.py`, so that it runs on a machine with torch, numpy, safetensors and pytest alone:
`python -m pytest tests/test_gpu.py --noconftest`. The names of tests say which way of running fails: "recorded" or
"compiled".
"""

import copy
import dataclasses
import os
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ddpm import (
    GaussianDiffusion,
    ImageNoise,
    TrainingConfig,
    TrainingImages,
    TrainingState,
    UNet,
    UNetConfig,
    linear_betas,
    sample,
    train,
)
from ddpm.checkpoint import checkpoint_path, load_checkpoint, save_checkpoint
from ddpm.checkpoint_writer import CheckpointWriter
from ddpm.devices import arithmetic, drawing, resolve_precision
from ddpm.operations import (
    apply_joined,
    attend,
    attend_by_products,
    convolve_before_doubling,
    halve_and_convolve,
    normalize_channels_last,
)
from ddpm.training_step import HalfWeights
from tests.ddpm.small_networks import noise
from tests.ddpm.small_training import assert_same_bits

DEVICE = torch.device(os.environ.get("FLOWERS_TEST_DEVICE", "cuda"))
IS_GPU = DEVICE.type == "cuda"
pytestmark = pytest.mark.skipif(IS_GPU and not torch.cuda.is_available(), reason="there is no GPU")
on_a_gpu = pytest.mark.skipif(not IS_GPU, reason="needs a GPU")

# Attention at 16 channels and, where the kernels of GPUs end, at 512 would cost seconds of compiling: see below.
NETWORK = UNetConfig(widths=(16, 32), attention=(False, True), num_res_blocks=1, time_embedding_dim=16, norm_groups=4)
CONFIG = TrainingConfig(
    num_steps=10,
    learning_rate=3e-3,
    rate_schedule="cosine",
    warmup_steps=2,
    gradient_clip=0.5,
    ema_decay=0.9,
    extra_ema_decays=(0.5,),
    compilation="off",
    deterministic=True,
)


def awake(network):
    """Move all weights off their start, so that no layer hides behind a zero."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.device))
    return network


def start(config=CONFIG, **changes):
    torch.manual_seed(0)
    return TrainingState.start(UNet(dataclasses.replace(NETWORK, **changes)).to(DEVICE), config)


def images():
    pixels = torch.randint(0, 256, (20, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TrainingImages(pixels, batch_size=8, seed=1, device=DEVICE)


DIFFUSION = GaussianDiffusion(linear_betas(100))


def losses_of(state, config):
    """Return losses and norms of all steps; raise an error if the recording failed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*cannot be recorded.*")
        return [(float(event.loss), float(event.gradient_norm)) for event in train(state, images(), DIFFUSION, config)]


def weights_of(state):
    modules = {"model": state.model} | {f"ema {number}": ema.module for number, ema in enumerate(state.emas)}
    return {f"{kind}.{name}": value for kind, module in modules.items() for name, value in module.state_dict().items()}


def relative_error(found, expected):
    expected = expected.double().cpu()
    return float((found.double().cpu() - expected).norm() / expected.norm())


def outputs_and_gradients(network, device, precision):
    network = copy.deepcopy(network).to(device=device, memory_format=torch.channels_last)
    x, t = noise(4, 3, 16, 16).to(device), torch.tensor([0, 3, 50, 99], device=device)
    with arithmetic(precision, device):
        out = network(x.contiguous(memory_format=torch.channels_last), t)
        (out.float() * noise(*out.shape, seed=5).to(device)).sum().backward()
    return {"output": out.detach()} | {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.06)])
@pytest.mark.parametrize("widths", [(16, 32), pytest.param((64, 512), marks=on_a_gpu)])
def test_the_network_and_its_gradients_are_those_of_a_cpu(precision, tolerance, widths):
    if precision == "bfloat16" and resolve_precision("auto", DEVICE) != "bfloat16":
        pytest.skip("the device has no bfloat16")
    torch.manual_seed(0)
    network = awake(UNet(dataclasses.replace(NETWORK, widths=widths)))
    expected = outputs_and_gradients(network, torch.device("cpu"), "float32")
    found = outputs_and_gradients(network, DEVICE, precision)
    assert relative_error(found.pop("output"), expected.pop("output")) < tolerance
    gradients, others = (torch.cat([each.cpu().flatten() for each in some.values()]) for some in (expected, found))
    assert relative_error(others, gradients) < 3 * tolerance


@on_a_gpu
def test_a_compiled_network_gives_the_losses_of_the_plain_one():
    plain = dataclasses.replace(CONFIG, precision="float32", deterministic=False)
    compiled = dataclasses.replace(plain, compilation="default")
    for one, other in zip(losses_of(start(plain), plain), losses_of(start(compiled), compiled), strict=True):
        assert other == pytest.approx(one, rel=5e-3)


@on_a_gpu
def test_a_compiled_step_is_compiled_once():
    config = dataclasses.replace(CONFIG, compilation="default")
    events = train(start(config), images(), DIFFUSION, config)
    next(events)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert len(list(events)) == 9


@on_a_gpu
def test_compiled_and_recorded_steps_are_the_compiled_ones():
    compiled = dataclasses.replace(CONFIG, compilation="default")
    recorded = dataclasses.replace(CONFIG, compilation="auto")
    one, other = start(compiled), start(recorded)
    assert losses_of(one, compiled) == losses_of(other, recorded)
    assert_same_bits(weights_of(one), weights_of(other))


@pytest.mark.parametrize("changes", [{}, {"network": {"dropout": 0.2}}, {"deterministic": False}, *(
    pytest.param(changes, marks=on_a_gpu) for changes in (  # on a CPU, where nothing is recorded, all are alike
        {"ema_warmup": True}, {"accumulation_steps": 2, "min_snr_gamma": 5.0}, {"precision": "float32"},
        {"gradient_checkpointing": True},
    )
)])  # fmt: skip
def test_recorded_steps_are_the_plain_ones(monkeypatch, changes):
    """Not compiled, which would take its time in each case; the recording is the same."""
    monkeypatch.setattr("ddpm.training_step.compile_network", lambda network, *_: network)
    changes = dict(changes)
    network = changes.pop("network", {})
    plain = dataclasses.replace(CONFIG, **changes)
    recorded = dataclasses.replace(plain, compilation="auto")
    one, other = start(plain, **network), start(recorded, **network)
    expected, found = losses_of(one, plain), losses_of(other, recorded)
    if plain.deterministic:
        assert found == expected
        assert_same_bits(weights_of(one), weights_of(other))
    else:
        for step, (first, second) in enumerate(zip(expected, found, strict=True)):
            assert second == pytest.approx(first, rel=0.02), step


@on_a_gpu
@pytest.mark.parametrize("compilation", ["off", "auto"])
def test_no_step_waits_for_the_device(monkeypatch, compilation):
    monkeypatch.setattr("ddpm.training_step.compile_network", lambda network, *_: network)
    config = dataclasses.replace(CONFIG, compilation=compilation, deterministic=False)
    events = train(start(config), images(), DIFFUSION, config)
    for _ in range(5):  # recorded by now
        next(events)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(events)) == 5
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("compilation", ["off", "auto"])
def test_a_recorded_training_resumes_to_the_bit_where_it_is_deterministic(monkeypatch, tmp_path, compilation):
    monkeypatch.setattr("ddpm.training_step.compile_network", lambda network, *_: network)
    config = dataclasses.replace(CONFIG, compilation=compilation)
    whole, first = start(config, dropout=0.1), start(config, dropout=0.1)
    expected = losses_of(whole, config)
    for event in train(first, images(), DIFFUSION, config):
        if event.step == 5:
            path = save_checkpoint(tmp_path, first, {}, {}, keep=1)
        if event.step == 7:
            break
    torch.manual_seed(9)
    second = TrainingState.start(UNet(dataclasses.replace(NETWORK, dropout=0.1)).to(DEVICE), config)
    load_checkpoint(path, second, {})
    assert losses_of(second, config) == expected[5:]
    assert_same_bits(weights_of(whole), weights_of(second))


def test_a_checkpoint_written_beside_recorded_steps_holds_its_step(monkeypatch, tmp_path):
    monkeypatch.setattr("ddpm.training_step.compile_network", lambda network, *_: network)
    config = dataclasses.replace(CONFIG, compilation="auto")
    state, kept = start(config), {}
    with CheckpointWriter(tmp_path, {}, keep=10) as writer:
        for event in train(state, images(), DIFFUSION, config):
            writer.save(state, {})
            kept[event.step] = {name: value.clone() for name, value in weights_of(state).items()}
    for step in (1, 5, 10):
        loaded = start(config)
        load_checkpoint(checkpoint_path(tmp_path, step), loaded, {})
        assert_same_bits(kept[step], weights_of(loaded))


def test_half_weights_give_the_gradients_of_autocast():
    if resolve_precision("auto", DEVICE) != "bfloat16":
        pytest.skip("the device has no bfloat16")
    model = awake(UNet(NETWORK)).to(device=DEVICE, memory_format=torch.channels_last)
    x, t = noise(4, 3, 16, 16).to(DEVICE), torch.tensor([0, 3, 50, 99], device=DEVICE)
    gradients = []
    half = HalfWeights(model)
    for network in (model, half.network):
        model.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16):
            out = network(x, t)
        (out.float() * noise(*out.shape, seed=5).to(DEVICE)).sum().backward()
        if network is not model:
            half.hand_over_gradients()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        if not name.endswith("key.bias"):
            assert relative_error(gradients[1][name], gradient) < 0.03, name


class Projections(nn.Module):
    """Three dense layers of the same input."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])


def attention(function):
    return lambda x, projections: function(*(layer(x) for layer in projections.layers))


def attention_in_full(query, key, value):
    return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1) @ value


OPERATIONS = {
    "norm": (nn.GroupNorm(8, 64), (4, 64, 16, 16), normalize_channels_last, lambda x, norm: norm(x)),
    "upsampling": (
        nn.Conv2d(64, 64, 3, padding=1), (4, 64, 8, 8), convolve_before_doubling,
        lambda x, conv: conv(F.interpolate(x, scale_factor=2.0, mode="nearest")),
    ),
    "downsampling": (
        nn.Conv2d(64, 64, 3, stride=2), (4, 64, 8, 8), halve_and_convolve, lambda x, conv: conv(F.pad(x, (0, 1, 0, 1))),
    ),
    "joined products": (
        Projections(64), (4, 10, 64), lambda x, three: torch.cat(apply_joined(x, list(three.layers))),
        lambda x, three: torch.cat([layer(x) for layer in three.layers]),
    ),
    **{f"attention at {width}": (Projections(width), (4, 64, width), attention(attend), attention(attention_in_full))
       for width in (64, 256, 512)},
    "attention by products": (
        Projections(64), (4, 64, 64), attention(attend_by_products), attention(attention_in_full),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_an_arranged_operation_is_the_plain_one_in_float64(name, precision, tolerance):
    if precision == "bfloat16" and resolve_precision("auto", DEVICE) != "bfloat16":
        pytest.skip("the device has no bfloat16")
    module, shape, arranged, plain = OPERATIONS[name]
    found, expected = (
        results(function, noise(*shape), module, device, precision)
        for function, device, precision in ((arranged, DEVICE, precision), (plain, torch.device("cpu"), "float64"))
    )
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if float(other.norm()) > 1e-6:  # the bias of the key has no gradient
            assert relative_error(one, other) < tolerance, number


def results(function, x, module, device, precision):
    module = copy.deepcopy(module).to(device)
    x = x.to(device)
    if precision == "float64":
        module, x = module.double(), x.double()
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_(True)
    with arithmetic("bfloat16" if precision == "bfloat16" else "float32", device):
        out = function(x, module)
    (out.double() * noise(*out.shape, seed=3).to(device)).sum().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in module.parameters())]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm_solver++"])
def test_images_drawn_on_a_gpu_do_not_depend_on_their_batch(sampler):
    network = awake(UNet(NETWORK)).to(device=DEVICE, memory_format=torch.channels_last).eval()
    diffusion = DIFFUSION.to(DEVICE)

    def draw(numbers):
        noise = ImageNoise(3, numbers, (3, 16, 16), DEVICE)
        with drawing(network, "float32", DEVICE):
            return sample(sampler, network, diffusion, noise, 20)

    torch.testing.assert_close(draw(range(5))[2:4], draw(range(2, 4)), rtol=0, atol=2e-3)
