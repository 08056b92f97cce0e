"""Single layers of the network, in PyTorch's form and in forms arranged for a GPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.gpu.inspect_machine import attention_shapes
from bench.gpu.session import Session
from bench.gpu.speed import attend_by_torch
from bench.gpu.timing import Step, time_in_turn
from ddpm.devices import autocast, compile_network, resolve_precision
from ddpm.operations import (
    apply_joined,
    attend_by_products,
    convolve_after_doubling,
    convolve_before_doubling,
    normalize_channels_last,
)
from ddpm.recording import RecordedFunction

_PADDED_CHANNELS = 8
_SECONDS_A_LAYER = 15.0
"""Time that compiling and timing all forms of a layer takes."""

Layer = Callable[[Tensor, Any], Tensor]
"""A form of a layer: a function of its input and of the module that holds its weights."""


@dataclass(frozen=True)
class Variants:
    """One layer, with an input of its size and its forms."""

    module: nn.Module
    x: Tensor
    forms: dict[str, Layer]


def time_layers(session: Session) -> None:
    """Time each layer, forward and backward, in all its forms: compiled and recorded, so that launches do not count."""
    rows: dict[str, dict[str, float]] = {}
    for name, variants in layers_of(session).items():
        if session.device.type == "cuda" and session.deadline.left() < _SECONDS_A_LAYER:
            session.report.say(f"left out, for want of time: {name}")
            continue
        steps = {}
        for form, layer in variants.forms.items():
            try:
                step = _forward_and_backward(session, variants, layer)
                for _ in range(5):
                    step()
                if isinstance(step, RecordedFunction) and not step.is_recorded:
                    raise RuntimeError("it cannot be recorded")
            except RuntimeError as error:
                session.report.say(f"left out: {name}, {form} ({error})")
                continue
            steps[form] = step
        seconds = time_in_turn(steps, session.size.steps_a_turn, session.size.num_rounds, session.device)
        rows[name] = {form: round(1e6 * value, 1) for form, value in seconds.items()}
        session.report.add("layers, microseconds forward and backward", rows)
        session.report.say(f"{name}: {rows[name]} µs")


def layers_of(session: Session) -> dict[str, Variants]:
    """Return the layers that have more than one form, at the published batch size."""
    unet, pixels = session.size.unet, session.size.image_size
    found = {}
    for level, width in enumerate(unet.widths):
        side = pixels >> level
        x = _features(session, width, side)
        found[f"norm and SiLU, {width} channels at {side}×{side}"] = Variants(
            nn.GroupNorm(unet.norm_groups, width).to(session.device),
            x,
            {"torch": _norm_by_torch, "channels last": _norm_channels_last},
        )
        if level:
            conv = nn.Conv2d(width, width, 3, padding=1).to(session.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            found[f"upsampling, {width} channels from {side}×{side}"] = Variants(
                conv, x, {"doubled first": convolve_after_doubling, "doubled last": convolve_before_doubling}
            )
    for channels, num_pixels in attention_shapes(session):
        x = torch.randn(session.size.batch_size, num_pixels, channels, device=session.device)
        projections = nn.ModuleList([nn.Linear(channels, channels) for _ in range(3)]).to(session.device)
        found[f"attention, {channels} channels of {num_pixels} pixels"] = Variants(
            projections,
            x,
            {"torch": _attention_by_torch, "joined": _attention_joined, "joined, by products": _attention_by_products},
        )
    first = nn.Conv2d(unet.image_channels, unet.widths[0], 3, padding=1)
    found["first convolution"] = Variants(
        first.to(session.device, memory_format=torch.channels_last),  # type: ignore[call-overload]
        _features(session, unet.image_channels, pixels),
        {"three channels": lambda x, conv: conv(x), f"padded to {_PADDED_CHANNELS}": _convolve_padded},
    )
    return found


def _features(session: Session, channels: int, side: int) -> Tensor:
    x = torch.randn(session.size.batch_size, channels, side, side, device=session.device)
    return x.contiguous(memory_format=torch.channels_last)


def _norm_by_torch(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    return F.silu(norm(x))


def _norm_channels_last(x: Tensor, norm: nn.GroupNorm) -> Tensor:
    return F.silu(normalize_channels_last(x, norm))


def _attention_by_torch(x: Tensor, projections: nn.ModuleList) -> Tensor:
    return attend_by_torch(*(layer(x) for layer in projections))


def _attention_joined(x: Tensor, projections: nn.ModuleList) -> Tensor:
    return attend_by_torch(*apply_joined(x, list(projections)))  # type: ignore[arg-type]


def _attention_by_products(x: Tensor, projections: nn.ModuleList) -> Tensor:
    return attend_by_products(*apply_joined(x, list(projections)))  # type: ignore[arg-type]


def _convolve_padded(x: Tensor, conv: nn.Conv2d) -> Tensor:
    padding = (0, 0, 0, 0, 0, _PADDED_CHANNELS - x.shape[1])
    return F.conv2d(F.pad(x, padding), F.pad(conv.weight, padding), conv.bias, padding=1)


class _Form(nn.Module):
    """A layer in one of its forms, as a module that can be compiled."""

    def __init__(self, layer: Layer, module: nn.Module) -> None:
        super().__init__()
        self._layer, self.module = layer, module

    def forward(self, x: Tensor) -> Tensor:
        return self._layer(x, self.module)


def _forward_and_backward(session: Session, variants: Variants, layer: Layer) -> Step:
    network = compile_network(_Form(layer, variants.module), "auto", session.device)
    x = variants.x.to(torch.bfloat16) if resolve_precision("auto", session.device) == "bfloat16" else variants.x.clone()
    inputs = [x.requires_grad_(True), *variants.module.parameters()]

    def work() -> Tensor:
        with autocast("auto", session.device):
            out = network(x)
        return torch.autograd.grad(out, inputs, torch.ones_like(out))[0].flatten()[:1]

    return RecordedFunction(work, session.device) if session.device.type == "cuda" else work
