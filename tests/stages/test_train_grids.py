"""The grids of samples that a training draws while it goes on."""

import pytest
import torch

import stages.train as module
from contract.paths import PREVIEWS


@pytest.fixture
def place(folder, dataset, signal_handlers):
    """A folder with the prepared dataset."""
    dataset()
    return folder


def test_averaged_weights_could_be_trained_only_while_a_grid_is_drawn(place, make_params):
    experiment, flags = module.prepare(make_params({"train.precision": "bfloat16"}).train), []
    averaged = experiment.state.ema.module
    averaged.register_forward_pre_hook(lambda unet, _: flags.append([p.requires_grad for p in unet.parameters()]))
    module.drawn_grid(experiment)
    assert flags and all(map(all, flags)), "autocast keeps the casts of trainable weights alone"
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in averaged.parameters())


def test_previews_lie_where_the_experiment_says(place, make_params, notes):
    experiment = module.prepare(make_params().train)
    experiment.previews = place / "elsewhere"
    module.learn(experiment, notes)
    names = [f"step_00000000{step}.png" for step in (0, 4, 6)]
    assert sorted(path.name for path in experiment.previews.iterdir()) == names and not PREVIEWS.exists()


def test_the_grid_of_a_step_comes_from_the_averaged_weights_and_the_same_noise(place, make_params):
    experiment = module.prepare(make_params().train)
    first = module.drawn_grid(experiment)
    torch.rand(5)
    assert (module.drawn_grid(experiment) == first).all()
    with torch.no_grad():
        for parameter in experiment.state.model.parameters():
            parameter.add_(1.0)
    assert (module.drawn_grid(experiment) == first).all()
    with torch.no_grad():
        for parameter in experiment.state.ema.module.parameters():
            parameter.add_(0.3)
    assert (module.drawn_grid(experiment) != first).any()
