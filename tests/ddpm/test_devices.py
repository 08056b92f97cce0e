"""Choices that depend on the device: precision, compilation, the largest batch. No GPU is needed."""

import contextlib
import dataclasses
import importlib.util
import os
import platform
import subprocess
import sys

import pytest
import torch

from ddpm import operations, unet
from ddpm.devices import (
    arithmetic,
    compile_network,
    deterministic_algorithms,
    drawing,
    fits_on,
    largest_batch_size,
    prepare_best_device,
    resolve_precision,
)
from tests.ddpm.small_networks import Operations

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def tensorfloat32():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("device", "bf16", "amx", "capability", "expected"),
    [
        ("cpu", False, False, (9, 0), "float32"),
        ("cpu", True, False, (7, 5), "bfloat16"),
        ("cpu", False, True, (7, 5), "bfloat16"),
        ("cuda:0", True, True, (7, 5), "float32"),
        ("cuda:0", False, False, (8, 0), "bfloat16"),
        ("mps", True, True, (9, 0), "float32"),
    ],
)
def test_auto_is_bfloat16_on_hardware_that_has_it(monkeypatch, device, bf16, amx, capability, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_precision("auto", torch.device(device)) == expected
    for precision in ("float32", "tensorfloat32", "bfloat16"):
        assert resolve_precision(precision, torch.device(device)) == precision


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_kept_for_the_next_tensors():
    """Asked in a process of its own, because the setting is the whole process's."""
    program = """
import resource, sys, torch
from ddpm.devices import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(3):
    torch.ones(50_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(40_000_000)  # fits, whatever small block lies beside
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        name: int(subprocess.run([sys.executable, "-c", program, name], capture_output=True, check=True).stdout)
        for name in ("kept", "given back")
    }
    assert faults["kept"] < 100 < faults["given back"]


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_program_sets_its_process_up_for_the_best_device(monkeypatch, has_gpu):
    kept = []
    monkeypatch.setattr("ddpm.devices.keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", 10)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    assert prepare_best_device() == (GPU if has_gpu else CPU)
    assert kept == ([] if has_gpu else [True])
    assert torch.backends.cudnn.benchmark == has_gpu
    assert torch.backends.cudnn.benchmark_limit == (0 if has_gpu else 10)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"  # the caller's own


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("flags", [(False, True), (True, False)])  # the caller's own settings, one of them on
@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tensorfloat32", True), ("bfloat16", True)])
def test_tensorfloat32_is_set_inside_and_restored_afterwards(monkeypatch, flags, precision, allowed, fails):
    for library, flag in zip((torch.backends.cuda.matmul, torch.backends.cudnn), flags, strict=True):
        monkeypatch.setattr(library, "allow_tf32", flag)
    with contextlib.suppress(KeyError), arithmetic(precision, CPU):
        assert tensorfloat32() == (allowed, allowed)
        # Inductor reads the older record in mode "max-autotune"; torch raises where the two records disagree.
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
        if fails:
            raise KeyError
    assert tensorfloat32() == flags
    assert not torch.is_autocast_enabled("cpu")


def test_settings_made_in_torchs_newer_way_are_left_as_they_were():
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = products.fp32_precision, convolutions.fp32_precision
    products.fp32_precision = convolutions.fp32_precision = "tf32"
    try:
        with arithmetic("float32", CPU):
            assert products.fp32_precision != "tf32" and convolutions.fp32_precision != "tf32"
        assert products.fp32_precision == convolutions.fp32_precision == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = False, True
        products.fp32_precision, convolutions.fp32_precision = before


def cudnn_settings():
    return torch.get_deterministic_debug_mode(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("device", "is_enabled"), [(GPU, True), (GPU, False), (CPU, True)])
def test_algorithms_are_deterministic_on_a_gpu_inside_alone(device, is_enabled):
    before = cudnn_settings()
    with contextlib.suppress(KeyError), deterministic_algorithms(is_enabled, device):
        assert cudnn_settings() == ((2, True, False) if is_enabled and device == GPU else before)
        raise KeyError
    assert cudnn_settings() == before


def test_weights_are_cast_once_for_all_that_is_drawn():
    network = torch.nn.Linear(3, 5)
    network.weight.requires_grad_(False)
    drawn = {}
    for expected, context in ((4, arithmetic("bfloat16", CPU)), (1, drawing(network, "bfloat16", CPU))):
        with contextlib.suppress(KeyError), context, Operations() as operations:
            drawn[expected] = [network(torch.full((2, 3), float(i))) for i in range(4)]
            assert drawn[expected][0].requires_grad == (expected == 4)  # the bias asks for it
            raise KeyError
        assert not network.weight.requires_grad and network.bias.requires_grad
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        done = list(zip(operations.names, operations.shapes, strict=True))
        assert done.count(("_to_copy", network.weight.shape)) == expected
    for one, other in zip(*drawn.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("compilation", "device", "triton", "compiler", "expected"),
    [
        ("off", CPU, True, "/usr/bin/cc", []),
        ("off", GPU, True, "/usr/bin/cc", []),
        ("auto", CPU, True, "/usr/bin/cc", []),
        ("auto", GPU, False, "/usr/bin/cc", []),
        ("auto", GPU, True, None, []),
        ("auto", GPU, True, "/usr/bin/cc", ["default"]),
        *((mode, CPU, False, None, [mode]) for mode in ("default", "reduce-overhead", "max-autotune")),
    ],
)
def test_networks_are_compiled_on_request_and_on_gpus(monkeypatch, compilation, device, triton, compiler, expected):
    def compile_nothing(network, *, dynamic, mode=None, options=None):
        assert not dynamic  # each shape has a compilation of its own, which is the faster
        modes.append(mode or ("default" if options else None))
        return torch.nn.Sequential(network)

    modes = []
    monkeypatch.setattr(torch, "compile", compile_nothing)
    monkeypatch.setattr("ddpm.devices.has_triton", lambda: triton)
    monkeypatch.setattr("shutil.which", lambda _: compiler)
    network = torch.nn.Linear(2, 2)
    assert (compile_network(network, compilation, device) is network) == (not expected)
    assert modes == expected


@pytest.mark.usefixtures("without_shape_checks")
def test_an_unknown_name_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="'float16'; choose one of auto, float32, tensorfloat32, bfloat16"):
        resolve_precision("float16", CPU)
    with pytest.raises(ValueError, match="'on'; choose one of auto, off, default, reduce-overhead"):
        compile_network(torch.nn.Linear(2, 2), "on", CPU)


@pytest.mark.parametrize(("device", "num_bytes", "fits"), [(GPU, 500, True), (GPU, 501, False), (CPU, 1 << 60, True)])
def test_half_of_a_gpus_free_memory_may_be_used(monkeypatch, device, num_bytes, fits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 8000))
    assert fits_on(device, num_bytes) is fits


@pytest.mark.parametrize(
    ("largest", "limit", "sizes"),
    [(16, 99, [16]), (16, 15, [16, 8]), (16, 5, [16, 8, 4]), (7, 3, [7, 4, 2]), (3, 1, [3, 2, 1]), (4, 0, [4, 2, 1])],
)
def test_a_batch_is_halved_until_it_fits(largest, limit, sizes):
    tried = []

    def attempt(size):
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError

    with contextlib.nullcontext() if limit else pytest.raises(torch.OutOfMemoryError):
        assert largest_batch_size(attempt, largest) == sizes[-1]
    assert tried == sizes


def unet_without_checks(monkeypatch):
    """Import the network as outside tests: the checks of shapes cannot be compiled."""
    for module in (operations, unet):
        spec = importlib.util.spec_from_file_location(module.__name__, module.__file__)
        unchecked = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, unchecked)  # where the other, and its dataclass, look it up
        spec.loader.exec_module(unchecked)
    return unchecked


def test_the_network_compiles_without_a_break(monkeypatch, awake_unet):
    module = unet_without_checks(monkeypatch)
    network = module.UNet(module.UNetConfig(**dataclasses.asdict(awake_unet.config))).eval()
    network.load_state_dict(awake_unet.state_dict())
    x, t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 700])
    whole = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(x, t), awake_unet(x, t), rtol=0, atol=1e-5)
    assert list(map(id, whole.parameters())) == list(map(id, network.parameters()))
