"""One optimizer step that runs on the device alone, so that it can be recorded once and replayed."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddpm.config import TrainingConfig
from ddpm.devices import autocast, compile_network, resolve_precision
from ddpm.diffusion import GaussianDiffusion
from ddpm.distributed import average_, world_size
from ddpm.guidance import guided
from ddpm.shapes import Float, Int64
from ddpm.training_state import TrainingState

NUM_QUARTILES = 4
"""Number of parts of 0 … T-1 whose losses are reported separately."""


@dataclass(frozen=True)
class Batch:
    """The inputs of one process in one step."""

    x_0: Float[Tensor, "batch channels height width"]
    t: Int64[Tensor, " batch"]
    eps: Float[Tensor, "batch channels height width"]
    labels: Int64[Tensor, " batch"] | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the fields that are not None, in the order that `Batch(*tensors)` takes them."""
        return tuple(each for each in (self.x_0, self.t, self.eps, self.labels) if each is not None)

    def split(self, num_parts: int) -> Iterator["Batch"]:
        """Yield `num_parts` equal parts."""
        size = len(self.t) // num_parts
        for start in range(0, len(self.t), size):
            part = slice(start, start + size)
            labels = None if self.labels is None else self.labels[part]
            yield Batch(self.x_0[part], self.t[part], self.eps[part], labels)


class TrainingStep:
    """The device's work in a step of Algorithm 1 (Ho et al. 2020), as a function of the batch.

    It computes losses and gradients, clips the gradient by its norm, and moves the weights (Adam) and their averages.
    All that changes from step to step, the batch and the learning rate, is in tensors. An average that warms up is
    moved by `finish`, because its decay is a number. Nothing here waits for the device.

    Args:
        state: changed in place.
        diffusion: the forward process, on `device`.
        config: the settings of the training.
        device: device of the model.
    """

    def __init__(
        self, state: TrainingState, diffusion: GaussianDiffusion, config: TrainingConfig, device: torch.device
    ) -> None:
        self._state, self._diffusion, self._config = state, diffusion, config
        self._parameters = list(state.model.parameters())
        model = state.model
        model.gradient_checkpointing = config.gradient_checkpointing  # type: ignore[assignment]
        self._half = HalfWeights(model) if may_halve(config, device) else None
        self._module = model if self._half is None else self._half.network
        self._network = _exchange_gradients(compile_network(self._module, config.compilation, device), device)

    def __call__(self, *batch: Tensor) -> Float[Tensor, " report"]:
        """Take the step, except for the work of `finish`.

        Args:
            batch: see `Batch.tensors`.

        Returns:
            The weighted mean loss; for each quartile of t the sum of the images' losses, then the number of images; the
            gradient's norm before clipping.
        """
        self._module.train()
        for module in (self._state.model, self._module):
            module.zero_grad(set_to_none=True)
        report = average_(self._backward(Batch(*batch)))
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        gradient_norm = nn.utils.get_total_norm(gradients)
        if self._config.gradient_clip is not None:
            nn.utils.clip_grads_with_norm_(self._parameters, self._config.gradient_clip, gradient_norm)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*capturable=True", UserWarning)  # of steps before the recording
            self._state.optimizer.step()
        for ema in self._state.emas:
            if not ema.warmup:
                ema.move(self._state.model)
        return torch.cat([report, gradient_norm[None]])

    def finish(self) -> None:
        """Do the work that depends on Python numbers, which a recorded step would repeat unchanged."""
        for ema in self._state.emas:
            if ema.warmup:
                ema.update(self._state.model)
            else:
                ema.num_updates += 1

    def _backward(self, batch: Batch) -> Float[Tensor, " losses"]:
        """Compute the gradient of the batch into the weights, and return the report on its losses."""
        if self._half is not None:
            self._half.refresh()
        parts = list(batch.split(self._config.accumulation_steps))
        reports = []
        for number, part in enumerate(parts, start=1):
            is_last = number == len(parts)
            with _without_exchange(self._network) if not is_last else nullcontext():
                loss, losses = self._losses(part, len(parts))
                loss.backward()  # type: ignore[no-untyped-call]
            if self._half is not None:
                self._half.hand_over_gradients()
            reports.append(_report(loss.detach(), losses.detach(), part.t, self._diffusion.num_timesteps))
        return torch.stack(reports).sum(dim=0)

    def _losses(self, part: Batch, num_parts: int) -> tuple[Float[Tensor, ""], Float[Tensor, " batch"]]:
        """Return the part's share of the weighted mean loss, and the unweighted losses of its images."""
        config, diffusion = self._config, self._diffusion
        with autocast(config.precision, part.x_0.device):
            model = self._network if part.labels is None else guided(self._network, part.labels)
            losses = diffusion.losses(model, part.x_0, part.t, part.eps, config.loss)
            weighted = losses
            if config.min_snr_gamma is not None:
                weighted = losses * diffusion.min_snr_weights(part.t, config.min_snr_gamma)
            return weighted.mean() / num_parts, losses


def may_halve(config: TrainingConfig, device: torch.device) -> bool:
    """Return whether to cast all weights at once: on one GPU, in bfloat16.

    On a CPU there are no launches to save, and several processes exchange the gradients of the model itself.
    """
    return device.type == "cuda" and resolve_precision(config.precision, device) == "bfloat16" and world_size() == 1


class HalfWeights:
    """A twin of a network whose products read bfloat16 copies of the weights, cast by one kernel for all of them.

    Autocast casts each weight by a kernel of its own, and each gradient back by another: 270 launches a step of the
    published network. Products get the same numbers as under autocast. Upsampling gets slightly different ones, because
    autocast casts its weights after they are summed. Norms and embeddings stay in float32, shared with the network, and
    so do buffers, whatever their type.

    Attributes:
        network: the twin; `hand_over_gradients` adds its gradients to those of the network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.network = copy.deepcopy(model)
        halves: dict[nn.Parameter, nn.Parameter] = {}  # one for a weight that two layers share
        for layer, twin in zip(model.modules(), self.network.modules(), strict=True):
            for name, weight in layer.named_parameters(recurse=False):
                if isinstance(layer, nn.Conv2d | nn.Linear) and weight not in halves:
                    halves[weight] = nn.Parameter(weight.detach().to(torch.bfloat16), weight.requires_grad)
                setattr(twin, name, halves.get(weight, weight))
            for name, buffer in layer.named_buffers(recurse=False):
                setattr(twin, name, buffer)
        self._pairs = list(halves.items())

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the weights again, after they have changed."""
        weights, halves = zip(*self._pairs, strict=True)
        torch._foreach_copy_(halves, weights)

    @torch.no_grad()
    def hand_over_gradients(self) -> None:
        """Add the twin's gradients to those of the network, in float32, and clear them."""
        received = [(weight, half.grad) for weight, half in self._pairs if half.grad is not None]
        are_first = all(weight.grad is None for weight, _ in received)
        if are_first:
            for weight, _ in received:
                weight.grad = torch.empty_like(weight)
        gradients = [weight.grad for weight, _ in received if weight.grad is not None]
        halves = [gradient for _, gradient in received]
        if are_first:
            torch._foreach_copy_(gradients, halves)
        else:
            torch._foreach_add_(gradients, halves)
        for _, half in self._pairs:
            half.grad = None


def _exchange_gradients(network: nn.Module, device: torch.device) -> nn.Module:
    """Return the network, wrapped to average its gradients over the processes if there are several."""
    if world_size() == 1:
        return network
    with warnings.catch_warnings():
        # Older releases do not know its successor, forward_sync_buffers.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            network,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # constants, or running statistics, of which the first process saves its own
            # The buckets' views take the weights' own order of memory, which the fused optimizer relies on.
            gradient_as_bucket_view=True,
        )


def _report(loss: Tensor, losses: Tensor, t: Tensor, num_timesteps: int) -> Tensor:
    quartile = torch.arange(NUM_QUARTILES, device=t.device)[:, None] == t * NUM_QUARTILES // num_timesteps
    sums = torch.where(quartile, losses, 0.0).sum(dim=1)
    return torch.cat([loss[None], sums, quartile.sum(dim=1)])


def _without_exchange(network: nn.Module) -> AbstractContextManager[None]:
    """Return a context without exchange of gradients; they are exchanged once per step, after the last part."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()
