"""The Gaussian diffusion of Ho et al. 2020: forward process q, reverse process p, and the loss between them.

Tables are float64, because alphas_cumprod multiplies a thousand factors close to one; coefficients read from them take
the dtype of the images. t runs 0 … T-1 (see `ddpm.schedules`). In training each image has its own t. In sampling all
have the same t, an int: the coefficients are then Python floats, and a GPU gathers nothing.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpm.checks import describe, require_images, require_indices, require_prediction
from ddpm.config import DiffusionConfig, LossName, Prediction
from ddpm.schedules import make_betas
from ddpm.shapes import Float, Int64

Table = Literal["betas", "alphas", "alphas_cumprod", "alphas_cumprod_prev", "posterior_variance"]
Images = Float[Tensor, "batch channels height width"]
Timesteps = Int64[Tensor, " batch"]
Numbers = Float[Tensor, " batch"] | float
"""One number per image, or one for all."""


@runtime_checkable
class NoiseModel(Protocol):
    """A network that predicts eps, v or x_0 from (x_t, t)."""

    def __call__(self, x_t: Tensor, t: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class Denoised:
    """The network's split of x_t into image and noise; together they satisfy Eq. 4."""

    x_0_pred: Tensor
    eps_pred: Tensor


@dataclass(frozen=True)
class ReverseStep:
    """The Gaussian p(x_{t-1} | x_t) and what it was made from."""

    mean: Tensor
    variance: Tensor | float
    """shape (batch, 1, 1, 1), or one number for all images"""
    x_0_pred: Tensor


class GaussianDiffusion:
    """The tables of one noise schedule, and the distributions that they define.

    Args:
        betas: variances of the forward process, one per time step, in (0, 1). The resulting alphas_cumprod must lie in
            (0, 1), too: the formulas divide by it and by 1 - alphas_cumprod.
        prediction: what the network predicts: "eps" (published); "x_0" (Ho et al. 2020, section 3.2); or "v" =
            sqrt(alphas_cumprod_t) eps - sqrt(1 - alphas_cumprod_t) x_0 (Salimans & Ho 2022, section 4), which stays
            well-conditioned at high and at low noise.

    Raises:
        ValueError: `betas` is not a vector of numbers in (0, 1), their alphas_cumprod is rounded to 0 or 1, or the
            prediction is unknown.
    """

    def __init__(self, betas: Float[Tensor, " num_timesteps"], prediction: Prediction = "eps") -> None:
        if prediction not in get_args(Prediction):
            raise ValueError(f"unknown prediction {prediction!r}; choose one of {', '.join(get_args(Prediction))}")
        self.prediction = prediction
        is_vector = isinstance(betas, Tensor) and betas.ndim == 1 and betas.numel() > 0
        if not is_vector or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(f"betas must be a vector of numbers in (0, 1), got {describe(betas)}")
        betas = betas.to(torch.float64)
        self.betas = betas
        self.alphas = 1.0 - betas
        self.alphas_cumprod = torch.cumprod(self.alphas, dim=0)
        _require_signal_and_noise(self.alphas_cumprod)
        self.alphas_cumprod_prev = torch.cat([torch.ones_like(betas[:1]), self.alphas_cumprod[:-1]])
        # Eq. 7. Zero at t = 0, where x_0 is known.
        self.posterior_variance = betas * (1.0 - self.alphas_cumprod_prev) / (1.0 - self.alphas_cumprod)

    @property
    def num_timesteps(self) -> int:
        """The number of time steps, T."""
        return self.betas.numel()

    def to(self, device: torch.device | str) -> "GaussianDiffusion":
        """Return the same diffusion with its tables on `device`, so that reading them costs no transfer."""
        return GaussianDiffusion(self.betas.to(device), self.prediction)

    def q_sample(self, x_0: Images, t: Timesteps, eps: Images) -> Images:
        """Draw x_t ~ q(x_t | x_0) from the given standard normal `eps`.

        Ho et al. 2020, Eq. 4: x_t = sqrt(alphas_cumprod_t) x_0 + sqrt(1 - alphas_cumprod_t) eps.

        Args:
            x_0: data in [-1, 1].
            t: time steps in 0 … T-1.
            eps: standard normal noise.

        Raises:
            ValueError: these are no images in the model's range, or not as many time steps and noises.
        """
        require_images(x_0, "x_0")
        require_indices(t, "t")
        if eps.shape != x_0.shape or len(t) != len(x_0):
            raise ValueError(
                "t needs one time step and eps the noise for each image, got "
                f"{len(t)} time steps, noise of shape {tuple(eps.shape)} and images of shape {tuple(x_0.shape)}"
            )
        alphas_cumprod = self.alphas_cumprod[t]
        return gathered(alphas_cumprod.sqrt(), x_0) * x_0 + gathered((1.0 - alphas_cumprod).sqrt(), x_0) * eps

    def q_posterior(
        self, x_0: Images, x_t: Images, t: Timesteps | int
    ) -> tuple[Images, Float[Tensor, "batch 1 1 1"] | float]:
        """Return mean and variance of q(x_{t-1} | x_t, x_0).

        Ho et al. 2020, Eq. 6 and 7: the mean is sqrt(alphas_cumprod_{t-1}) beta_t / (1 - alphas_cumprod_t) x_0 +
        sqrt(alpha_t) (1 - alphas_cumprod_{t-1}) / (1 - alphas_cumprod_t) x_t, the variance posterior_variance_t.

        Args:
            x_0: data in [-1, 1].
            x_t: the noisy image at step t.
            t: time steps in 0 … T-1, or one for all images.
        """
        betas, alphas = self._at(t, "betas"), self._at(t, "alphas")
        cumprod, cumprod_prev = self._at(t, "alphas_cumprod"), self._at(t, "alphas_cumprod_prev")
        coefficient_x_0 = _sqrt(cumprod_prev) * betas / (1.0 - cumprod)
        coefficient_x_t = _sqrt(alphas) * (1.0 - cumprod_prev) / (1.0 - cumprod)
        mean = gathered(coefficient_x_0, x_0) * x_0 + gathered(coefficient_x_t, x_t) * x_t
        return mean, gathered(self._at(t, "posterior_variance"), x_t)

    def predict_x_0(self, x_t: Images, t: Timesteps | int, eps: Images) -> Images:
        """Return the x_0 that x_t and eps imply: Eq. 4 solved for x_0."""
        cumprod = self._at(t, "alphas_cumprod")
        return (x_t - gathered(_sqrt(1.0 - cumprod), x_t) * eps) / gathered(_sqrt(cumprod), x_t)

    def predict_eps(self, x_t: Images, t: Timesteps | int, x_0: Images) -> Images:
        """Return the eps that x_t and x_0 imply: Eq. 4 solved for eps."""
        cumprod = self._at(t, "alphas_cumprod")
        return (x_t - gathered(_sqrt(cumprod), x_t) * x_0) / gathered(_sqrt(1.0 - cumprod), x_t)

    def v_target(self, x_0: Images, t: Timesteps, eps: Images) -> Images:
        """Return v = sqrt(alphas_cumprod_t) eps - sqrt(1 - alphas_cumprod_t) x_0 (Salimans & Ho 2022, section 4)."""
        cumprod = self.alphas_cumprod[t]
        return gathered(cumprod.sqrt(), eps) * eps - gathered((1.0 - cumprod).sqrt(), x_0) * x_0

    def target(self, x_0: Images, t: Timesteps, eps: Images) -> Images:
        """Return the tensor that the network should predict: eps, v or x_0, as `prediction` says."""
        if self.prediction == "v":
            return self.v_target(x_0, t, eps)
        return x_0 if self.prediction == "x_0" else eps

    def recover_x_0(self, output: Images, x_t: Images, t: Timesteps | int, clip_x_0: bool = True) -> Images:
        """Return the x_0 that the output of the network implies.

        Args:
            output: the network's prediction from (x_t, t).
            x_t: the noisy image at step t.
            t: time steps in 0 … T-1, or one for all images.
            clip_x_0: keep x_0 in [-1, 1].
        """
        # Autocast leaves the output in bfloat16. The coefficients of an x_0 of that dtype would be rounded to it, too.
        x_0 = output = output.to(x_t.dtype)
        if self.prediction == "v":
            cumprod = self._at(t, "alphas_cumprod")
            x_0 = gathered(_sqrt(cumprod), x_t) * x_t - gathered(_sqrt(1.0 - cumprod), x_t) * output
        elif self.prediction == "eps":
            x_0 = self.predict_x_0(x_t, t, output)
        return x_0.clamp(-1.0, 1.0) if clip_x_0 else x_0

    def denoise(self, output: Images, x_t: Images, t: Timesteps | int, clip_x_0: bool = True) -> Denoised:
        """Split x_t into image and noise by the output of the network; see `recover_x_0`.

        If x_0_pred is clipped, eps_pred is computed from the clipped one.
        """
        x_0_pred = self.recover_x_0(output, x_t, t, clip_x_0)
        if clip_x_0 or self.prediction == "x_0":
            eps_pred = self.predict_eps(x_t, t, x_0_pred)
        elif self.prediction == "v":
            cumprod = self._at(t, "alphas_cumprod")
            eps_pred = gathered(_sqrt(1.0 - cumprod), x_t) * x_t + gathered(_sqrt(cumprod), x_t) * output.to(x_t.dtype)
        else:
            eps_pred = output.to(x_t.dtype)
        return Denoised(x_0_pred, eps_pred)

    def p_mean_variance(self, output: Images, x_t: Images, t: Timesteps | int, clip_x_0: bool = True) -> ReverseStep:
        """Return the Gaussian p(x_{t-1} | x_t): the posterior q at the x_0 that the network implies.

        Ho et al. 2020, Eq. 11, with sigma_t^2 = posterior_variance_t. x_0_pred is clipped before the mean is computed,
        so that one bad prediction cannot leave the range of the data.

        Args:
            output: the network's prediction from (x_t, t).
            x_t: the noisy image at step t.
            t: time steps in 0 … T-1, or one for all images.
            clip_x_0: keep x_0_pred in [-1, 1].
        """
        x_0_pred = self.recover_x_0(output, x_t, t, clip_x_0)
        mean, variance = self.q_posterior(x_0_pred, x_t, t)
        return ReverseStep(mean, variance, x_0_pred)

    def losses(
        self, model: NoiseModel, x_0: Images, t: Timesteps, eps: Images, loss: LossName = "mse"
    ) -> Float[Tensor, " batch"]:
        """Return the simplified training objective, one number per image.

        Ho et al. 2020, Eq. 14: || eps - model(x_t, t) ||^2, as a mean over the pixels; if v or x_0 is predicted, it
        takes the place of eps.

        Args:
            model: predicts eps, v or x_0, as `prediction` says, from (x_t, t).
            x_0: data in [-1, 1].
            t: time steps in 0 … T-1.
            eps: standard normal noise.
            loss: "mse" (published), "l1", or "huber" (quadratic below an error of 1, linear above).

        Raises:
            ValueError: the loss is unknown, `q_sample` refuses the arguments, or the model gives something else than an
                image for each image.
        """
        output = model(self.q_sample(x_0, t, eps), t)
        require_prediction(output, x_0)
        return pixel_losses(output.float(), self.target(x_0, t, eps), loss).flatten(1).mean(dim=1)

    def min_snr_weights(self, t: Timesteps, gamma: float) -> Float[Tensor, " batch"]:
        """Return weights for the losses that keep easy time steps from dominating.

        Hang et al. 2023, section 3.4: min(SNR_t, gamma) on the error of x_0, with SNR_t = alphas_cumprod_t /
        (1 - alphas_cumprod_t); divided by SNR_t if eps is predicted, by SNR_t + 1 if v is.

        Args:
            t: time steps in 0 … T-1.
            gamma: above 0; published: 5.
        """
        cumprod = self.alphas_cumprod[t]
        snr = cumprod / (1.0 - cumprod)
        weights = snr.clamp(max=gamma)
        if self.prediction == "eps":
            weights = weights / snr
        elif self.prediction == "v":
            weights = weights / (snr + 1.0)
        return weights.float()

    def _at(self, t: Timesteps | int, table: Table) -> Numbers:
        return self._floats[table][t] if isinstance(t, int) else getattr(self, table)[t]

    @cached_property
    def _floats(self) -> dict[Table, list[float]]:
        """The tables as Python floats, read from the device once for all steps."""
        return {table: getattr(self, table).tolist() for table in get_args(Table)}


def _require_signal_and_noise(alphas_cumprod: Float[Tensor, " num_timesteps"]) -> None:
    first, last = float(alphas_cumprod[0]), float(alphas_cumprod[-1])
    if first == 1.0:
        raise ValueError("betas must leave alphas_cumprod in (0, 1), got 1 at t = 0: this beta is too low for float64")
    if last == 0.0:
        t = int((alphas_cumprod == 0.0).nonzero()[0])
        raise ValueError(f"betas must leave alphas_cumprod in (0, 1), got 0 from t = {t} on: take fewer or lower betas")


def build_diffusion(config: DiffusionConfig) -> GaussianDiffusion:
    """Return the diffusion that a configuration describes."""
    betas = make_betas(config.schedule, config.num_timesteps, config.beta_start, config.beta_end)
    return GaussianDiffusion(betas, config.prediction)


def pixel_losses(prediction: Images, target: Images, loss: LossName) -> Images:
    """Return the elementwise distance called `loss`: "mse", "l1" or "huber".

    Raises:
        ValueError: the loss is unknown.
    """
    if loss == "mse":
        return F.mse_loss(prediction, target, reduction="none")
    if loss == "l1":
        return F.l1_loss(prediction, target, reduction="none")
    if loss == "huber":
        return F.huber_loss(prediction, target, reduction="none", delta=1.0)
    raise ValueError(f"unknown loss {loss!r}; choose one of {', '.join(get_args(LossName))}")


def gathered(values: Numbers, like: Tensor) -> Float[Tensor, "batch 1 1 1"] | float:
    """Return one number per image, shaped to multiply `like` and in its dtype; return a float as it is."""
    return values if isinstance(values, float) else values.to(like.dtype).reshape(-1, 1, 1, 1)


def _sqrt(values: Numbers) -> Numbers:
    return math.sqrt(values) if isinstance(values, float) else values.sqrt()
