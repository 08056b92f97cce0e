"""What suits a device: precision, compilation, and the largest batch; GPUs are named here, never asked."""

import contextlib
import dataclasses
import importlib.util
import os
import platform
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddpm import operations, unet
from ddpm.devices import (
    arithmetic,
    compiled,
    deterministic_algorithms,
    drawing,
    largest_batch_size,
    prepare_best_device,
    resolve_precision,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def tensorfloat32():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture(params=[(False, True), (True, False)])
def flags(request):
    """The caller's own settings, one of them on."""
    before = tensorfloat32()
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def compilations(monkeypatch):
    """Which modes torch.compile is asked for, and nothing compiled."""
    modes = []

    def compile_nothing(network, *, dynamic, mode=None, options=None):
        assert not dynamic  # each shape has a compilation of its own, which is the faster
        modes.append(mode or ("default" if options else None))
        return torch.nn.Sequential(network)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    return modes


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("amx", [False, True])
def test_auto_is_bfloat16_where_the_processor_has_it(monkeypatch, bf16, amx):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("auto", CPU) == ("bfloat16" if bf16 or amx else "float32")


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "float32"), ((8, 0), "bfloat16")])
def test_auto_is_bfloat16_on_gpus_from_ampere_on(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_precision("auto", GPU) == precision


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is of glibc")
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


def test_auto_is_float32_on_devices_of_other_kinds():
    assert resolve_precision("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_a_named_precision_is_taken(precision):
    assert resolve_precision(precision, CPU) == precision


@pytest.mark.usefixtures("without_shape_checks")
def test_an_unknown_precision_is_an_error_that_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown precision 'float16'; choose one of auto, float32, tensorfloat32, bfloat16"
    ):
        resolve_precision("float16", CPU)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", torch.float32), ("tensorfloat32", torch.float32), ("bfloat16", torch.bfloat16)],
)
def test_products_have_the_precision_and_sums_stay_in_float32(precision, dtype):
    x = torch.ones(2, 2)
    with arithmetic(precision, CPU):
        assert (x @ x).dtype == dtype
        assert torch.nn.functional.layer_norm(x, (2,)).dtype == torch.float32
        assert (x + x).dtype == torch.float32
    assert (x @ x).dtype == torch.float32


def test_tensorfloat32_is_on_where_it_is_asked_for(flags):
    with arithmetic("tensorfloat32", CPU):
        assert tensorfloat32() == (True, True)
    assert tensorfloat32() == flags


def test_float32_is_float32_whatever_the_caller_has_set(flags):
    with arithmetic("float32", CPU):
        assert tensorfloat32() == (False, False)
    assert tensorfloat32() == flags


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


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_what_compilers_ask_about_precision_has_an_answer_inside(precision):
    # Inductor reads the older record in mode "max-autotune"; torch raises where the two records disagree.
    with arithmetic(precision, CPU):
        assert torch.get_float32_matmul_precision() == ("highest" if precision == "float32" else "high")
        assert torch.backends.cudnn.allow_tf32 == (precision != "float32")


@pytest.mark.parametrize("precision", ["float32", "tensorfloat32", "bfloat16"])
def test_an_error_inside_leaves_the_callers_settings_as_they_were(flags, precision):
    with pytest.raises(KeyError), arithmetic(precision, CPU):
        raise KeyError
    assert tensorfloat32() == flags
    assert not torch.is_autocast_enabled("cpu")


def cudnn_settings():
    return torch.get_deterministic_debug_mode(), torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("device", "wanted"), [(GPU, False), (CPU, True)])
def test_algorithms_are_chosen_for_speed_unless_a_gpu_is_to_be_deterministic(device, wanted):
    before = cudnn_settings()
    with deterministic_algorithms(wanted, device):
        assert cudnn_settings() == before


def test_deterministic_algorithms_are_asked_for_inside_alone(monkeypatch):
    before = cudnn_settings()
    with contextlib.suppress(KeyError), deterministic_algorithms(True, GPU):
        assert cudnn_settings() == (2, True, False)
        raise KeyError
    assert cudnn_settings() == before


@pytest.mark.parametrize("fails", [False, True])
def test_weights_could_be_trained_while_something_is_drawn_and_are_then_as_before(fails):
    network = torch.nn.Linear(2, 2)
    network.bias.requires_grad_(False)
    with contextlib.suppress(KeyError), drawing(network, "bfloat16", CPU):
        assert network.weight.requires_grad and network.bias.requires_grad
        assert not network(torch.ones(1, 2)).requires_grad
        if fails:
            raise KeyError
    assert network.weight.requires_grad and not network.bias.requires_grad
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


class Casts(TorchDispatchMode):
    """Counts the conversions of tensors of one shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].shape == self.shape:
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_weights_are_cast_once_for_all_that_is_drawn():
    network = torch.nn.Linear(3, 5).requires_grad_(False)
    drawn = {}
    for name, context in (("each time", arithmetic("bfloat16", CPU)), ("once", drawing(network, "bfloat16", CPU))):
        with context, Casts(network.weight.shape) as casts:
            drawn[name] = [network(torch.full((2, 3), float(i))) for i in range(4)]
        assert casts.count == {"each time": 4, "once": 1}[name]
    for one, other in zip(*drawn.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("compilation", ["off", "auto"])
def test_on_a_cpu_nothing_is_compiled_unless_asked_for(compilations, compilation):
    network = torch.nn.Linear(2, 2)
    assert compiled(network, compilation, CPU) is network
    assert compilations == []


@pytest.mark.parametrize(
    ("triton", "compiler", "modes"), [(False, "/usr/bin/cc", []), (True, None, []), (True, "/usr/bin/cc", ["default"])]
)
def test_auto_compiles_for_gpus_where_triton_and_a_compiler_are(monkeypatch, compilations, triton, compiler, modes):
    monkeypatch.setattr("ddpm.devices.has_triton", lambda: triton)
    monkeypatch.setattr("shutil.which", lambda _: compiler)
    network = torch.nn.Linear(2, 2)
    assert (compiled(network, "auto", GPU) is network) == (not modes)
    assert compilations == modes


@pytest.mark.parametrize("device", [CPU, GPU])
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune"])
def test_a_named_compilation_is_the_mode_of_torch_compile(compilations, mode, device):
    network = torch.nn.Linear(2, 2)
    assert compiled(network, mode, device) is not network
    assert compilations == [mode]


@pytest.mark.usefixtures("without_shape_checks")
def test_an_unknown_compilation_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown compilation 'on'; choose one of auto, off, default, reduce-overhead"):
        compiled(torch.nn.Linear(2, 2), "on", CPU)


def attempt_up_to(limit, tried):
    def attempt(size):
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError

    return attempt


@pytest.mark.parametrize(
    ("largest", "limit", "sizes"),
    [(16, 99, [16]), (16, 16, [16]), (16, 15, [16, 8]), (16, 5, [16, 8, 4]), (7, 3, [7, 4, 2]), (3, 1, [3, 2, 1])],
)
def test_a_batch_is_halved_until_it_fits(largest, limit, sizes):
    tried = []
    assert largest_batch_size(attempt_up_to(limit, tried), largest) == sizes[-1]
    assert tried == sizes


def test_where_a_single_image_is_too_much_the_error_is_passed_on():
    tried = []
    with pytest.raises(torch.OutOfMemoryError):
        largest_batch_size(attempt_up_to(0, tried), 4)
    assert tried == [4, 2, 1]


def test_other_errors_of_an_attempt_are_passed_on_at_once():
    tried = []

    def attempt(size):
        tried.append(size)
        raise RuntimeError("not of memory")

    with pytest.raises(RuntimeError, match="not of memory"):
        largest_batch_size(attempt, 4)
    assert tried == [4]


def unet_without_checks(monkeypatch):
    """The module of the network as it runs outside tests: the checks of shapes are none that can be compiled."""
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
