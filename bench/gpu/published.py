"""Train the published setting completely and draw images with it."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.gpu.report import SAMPLES
from bench.gpu.session import Session
from bench.gpu.timing import Stopwatch
from ddpm import ImageNoise, UNet, sample
from ddpm.config import SamplerName
from ddpm.devices import compile_network, drawing
from ddpm.files import atomic_path
from ddpm.images import grid, save_png, to_model_range, to_pixels
from ddpm.training import StepEvent, train
from ddpm.training_state import TrainingState
from ddpm.training_step import NUM_QUARTILES

AVERAGED = "averaged.safetensors"
_SECONDS_FOR_SAMPLES = 75.0
"""Minimum time that the training leaves for drawing."""
_CALLS_WORTH_COMPILING = 100
_SECONDS_TO_COMPILE = 110.0
"""Time that must be left for a compilation to pay off in drawing."""
_ENLARGED = 2


def train_published(session: Session) -> None:
    """Train to the last step, or as far as time allows; write losses.csv, and keep the averaged weights."""
    if (earlier := session.keep / AVERAGED).exists():  # its weights would pass for those of this call
        earlier.rename(session.keep / f"earlier_{AVERAGED}")
    config = session.config(session.mode)
    state = session.start(config)
    reserved = _SECONDS_FOR_SAMPLES if session.device.type == "cuda" else 0.0
    if session.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(session.device)
    losses = LossTable(session)
    watch, started, timed_from = Stopwatch(session.device), time.monotonic(), 0
    for event in train(state, session.images(session.size.batch_size), session.diffusion, config):
        losses.add(event)
        if event.step == 5:  # compiled and recorded by now
            timed_from = event.step
            watch.start()
        if event.step % session.size.log_every == 0:
            state.check_finite(config)
            losses.write()
            if session.deadline.left() < reserved:
                session.report.say(f"stopped at step {event.step}: the time is needed for drawing")
                break
    watch.stop()
    seconds = watch.seconds()
    state.check_finite(config)
    losses.write()
    save_averaged(session, state)
    num_images = (state.step - timed_from) * session.size.batch_size
    result = {
        "steps": state.step,
        "of": config.num_steps,
        "compilation": session.mode,
        "seconds_by_device_events": round(seconds, 3),
        "seconds_in_all": round(time.monotonic() - started, 2),
        "images_per_second": round(num_images / seconds, 1),
        "seconds_an_epoch_of_31_steps": round(31 * session.size.batch_size * seconds / num_images, 4),
        "last_loss": losses.last,
    }
    if session.device.type == "cuda":
        result["peak_gib"] = round(torch.cuda.max_memory_allocated(session.device) / 2**30, 2)
    session.report.add("published", result)
    session.report.say("\n".join(f"{name}: {value}" for name, value in result.items()))


class LossTable:
    """Writer of losses.csv: mean losses since the last row, summed on the device."""

    def __init__(self, session: Session) -> None:
        self._path = session.report.folder / "losses.csv"
        self._sums = torch.zeros(2 + 2 * NUM_QUARTILES, device=session.device)
        self._rows: list[list[float]] = []
        self._num_steps = 0
        self._event: StepEvent | None = None
        self.last = float("nan")
        """mean loss of the last row"""

    def add(self, event: StepEvent) -> None:
        """Add a step without waiting for it."""
        parts = (event.loss[None], event.gradient_norm[None], event.quartile_loss_sums, event.quartile_counts)
        self._sums += torch.cat(parts)
        self._num_steps += 1
        self._event = event

    def write(self) -> None:
        """Write a row, unless no step came since the last one."""
        if self._event is None or not self._num_steps:
            return
        loss, norm, *quartiles = self._sums.tolist()
        sums, counts = quartiles[:NUM_QUARTILES], quartiles[NUM_QUARTILES:]
        means = [one / count if count else float("nan") for one, count in zip(sums, counts, strict=True)]
        self.last = loss / self._num_steps
        self._rows.append([self._event.step, self._event.num_images_seen, self.last, norm / self._num_steps, *means])
        self._sums.zero_()
        self._num_steps = 0
        names = [f"loss_t_quartile_{number}" for number in range(1, NUM_QUARTILES + 1)]
        table = pd.DataFrame(self._rows, columns=["step", "num_images_seen", "loss", "gradient_norm", *names])
        with atomic_path(self._path) as temporary:
            table.astype({"step": int, "num_images_seen": int}).to_csv(temporary, index=False, lineterminator="\n")


def save_averaged(session: Session, state: TrainingState) -> None:
    """Keep the averaged weights for drawing and for later calls."""
    session.keep.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu().contiguous() for name, tensor in state.ema.module.state_dict().items()}
    setting = {
        "image_size": session.size.image_size,
        "unet": dataclasses.asdict(session.size.unet),
        "num_timesteps": session.size.num_timesteps,
        "step": state.step,
    }
    with atomic_path(session.keep / AVERAGED) as temporary:
        save_file(tensors, temporary, {"setting": json.dumps(setting)})


def measure_validation_loss(session: Session) -> None:
    """Note the mean loss of the averaged weights on the validation images, with one fixed t and eps for each."""
    generator = torch.Generator().manual_seed(0)
    network, losses = load_averaged(session), []
    with drawing(network, "auto", session.device):
        for pixels in torch.split(session.valid_images, session.size.sample_batch):
            x_0 = to_model_range(pixels).to(session.device, memory_format=torch.channels_last)
            t = torch.randint(session.size.num_timesteps, (len(x_0),), generator=generator).to(session.device)
            eps = torch.randn(x_0.shape, generator=generator).to(session.device)
            losses.append(session.diffusion.losses(network, x_0, t, eps).cpu())
    loss = round(float(torch.cat(losses).mean()), 5)
    session.report.add("loss on valid", loss)
    session.report.say(f"loss of the averaged weights on the validation images: {loss}")


def load_averaged(session: Session) -> UNet:
    """Return the network with the weights that the training kept."""
    unet = UNet(session.size.unet).to(device=session.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    unet.load_state_dict(load_file(session.keep / AVERAGED))
    return unet.eval()  # type: ignore[no-any-return]


def draw_few_calls(session: Session) -> None:
    """Draw the samples by DPM-Solver++ with few calls."""
    draw_samples(session, "dpm_solver++", session.size.few_calls)


def draw_all_calls(session: Session) -> None:
    """Draw the samples by DDPM with one call per time step."""
    draw_samples(session, "ddpm", session.size.num_timesteps)


def draw_samples(session: Session, sampler: SamplerName, num_calls: int) -> None:
    """Draw in parts, write each before the next begins, and show the first images in grids.png."""
    size, file_name = session.size, SAMPLES[sampler]
    unet = load_averaged(session)
    compiles = num_calls > _CALLS_WORTH_COMPILING and session.deadline.left() > _SECONDS_TO_COMPILE
    network = compile_network(unet, session.mode if compiles else "off", session.device)
    parts: list[Tensor] = []
    seconds: list[float] = []
    for start in range(0, size.num_samples, size.sample_batch):
        if parts and session.deadline.left() < 1.2 * seconds[-1]:
            session.report.say(f"{file_name}: no time is left for more than {start} images")
            break
        began = time.monotonic()
        with drawing(unet, "auto", session.device):
            parts.append(draw_batch(session, network, sampler, num_calls, start))
        seconds.append(time.monotonic() - began)
        images = torch.cat(parts)[: size.num_samples]
        with atomic_path(session.report.folder / file_name) as temporary:
            np.savez_compressed(temporary, images=images.permute(0, 2, 3, 1).numpy())
    steady = seconds[1:] or seconds  # the first one compiles
    result = {
        "sampler": sampler,
        "calls": num_calls,
        "images": len(images),
        "seconds_a_batch": [round(each, 3) for each in seconds],
        "images_per_second": round(size.sample_batch * len(steady) / sum(steady), 2),
    }
    session.report.add(file_name, result)
    session.report.say(f"{file_name}: {result}")
    write_grids(session)


def draw_batch(session: Session, network: torch.nn.Module, sampler: SamplerName, num_calls: int, start: int) -> Tensor:
    """Return images `start` … of a set, as bytes on the CPU."""
    shape = (session.size.unet.image_channels, session.size.image_size, session.size.image_size)
    numbers = range(start, start + session.size.sample_batch)
    noise = ImageNoise(0, numbers, shape, session.device)
    return to_pixels(sample(sampler, network, session.diffusion, noise, num_calls)).cpu()


def write_grids(session: Session) -> None:
    """Write the first images of each set into grids.png, side by side, without selection."""
    grids = []
    for path in filter(Path.exists, (session.report.folder / name for name in SAMPLES.values())):
        with np.load(path) as arrays:
            images = torch.from_numpy(arrays["images"][: session.size.num_grid_images]).permute(0, 3, 1, 2)
        grids.append(np.pad(grid(images), ((0, 0), (0, 8), (0, 0)), constant_values=255))
    height = max(map(len, grids))
    padded = [np.pad(each, ((0, height - len(each)), (0, 0), (0, 0)), constant_values=255) for each in grids]
    picture = np.concatenate(padded, axis=1)
    with atomic_path(session.report.folder / "grids.png") as temporary:
        save_png(picture, temporary, _ENLARGED)
