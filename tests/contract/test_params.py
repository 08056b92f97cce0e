"""params.yaml: what is accepted, and the one clear error of what is not."""

from pathlib import Path

import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from contract.nesting import flatten
from contract.params import Params, ParamsError, activate, list_profiles, read_params

PROJECT = Path(__file__).parents[2]
PROFILES = sorted((PROJECT / "profiles").glob("*.yaml"))


@pytest.fixture
def written(folder, document):
    """Writes the small experiment with changes as params.yaml and gives its path."""

    def write(changes):
        path = folder / "params.yaml"
        YAML(typ="safe").dump(document(changes), path)
        return path

    return write


def refusal(path):
    with pytest.raises(ParamsError) as caught:
        read_params(path)
    first, *problems = str(caught.value).splitlines()
    assert first == f"{path} cannot be used:"
    return [problem.strip() for problem in problems]


@pytest.mark.parametrize("path", [PROJECT / "params.yaml", *PROFILES], ids=lambda path: path.stem)
def test_the_projects_own_experiments_are_valid(path):
    params = read_params(path)
    assert path.stem in (params.profile, "params")


def test_the_profiles_are_listed_by_name(folder):
    assert "quickstart" in list_profiles(PROJECT / "profiles")
    Path("profiles").mkdir()
    for name in ("roses.yaml", "lilies.yaml", "notes.txt"):
        Path("profiles", name).write_text("")
    assert list_profiles() == ["lilies", "roses"]


def test_the_experiment_in_force_started_from_a_profile_that_exists():
    assert read_params(PROJECT / "params.yaml").profile in list_profiles(PROJECT / "profiles")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        # unknown
        ({"train.number_of_steps": 5}, "train.number_of_steps is not a parameter"),
        ({"train.unet.width": 5}, "train.unet.width is not a parameter"),
        ({"colour": "red"}, "colour is not a parameter"),
        # of another type
        ({"train.num_steps": 6.0}, "train.num_steps: Input should be a valid integer, got 6.0"),
        ({"train.num_steps": "6"}, "train.num_steps: Input should be a valid integer, got '6'"),
        ({"train.num_steps": True}, "train.num_steps: Input should be a valid integer, got True"),
        ({"train.random_flips": 1}, "train.random_flips: Input should be a valid boolean, got 1"),
        ({"train.learning_rate": "fast"}, "train.learning_rate: Input should be a valid number, got 'fast'"),
        ({"train.unet.widths": 8}, "train.unet.widths: Input should be a valid array, got 8"),
        ({"train.num_steps": None}, "train.num_steps: Input should be a valid integer, got None"),
        ({"sample": 3}, "sample: Input should be an object, got 3"),
        # out of bounds
        ({"train.batch_size": 0}, "train.batch_size: Input should be greater than or equal to 1, got 0"),
        ({"train.learning_rate": 0.0}, "train.learning_rate: Input should be greater than 0, got 0.0"),
        (
            {"train.accumulation_steps": 0},
            "train.accumulation_steps: Input should be greater than or equal to 1, got 0",
        ),
        ({"train.num_processes": 0}, "train.num_processes: Input should be greater than or equal to 1, got 0"),
        ({"sample.num_processes": 0}, "sample.num_processes: Input should be greater than or equal to 1, got 0"),
        (
            {"reference.num_processes": 1025},
            "reference.num_processes: Input should be less than or equal to 1024, got 1025",
        ),
        ({"train.min_snr_gamma": 0.0}, "train.min_snr_gamma: Input should be greater than 0, got 0.0"),
        ({"train.extra_ema_decays": [0.9, 1.0]}, "train.extra_ema_decays.1: Input should be less than 1, got 1.0"),
        (
            {"train.keep_checkpoints_every": 0},
            "train.keep_checkpoints_every: Input should be greater than or equal to 1, got 0",
        ),
        ({"sample.batch_size": 0}, "sample.batch_size: Input should be greater than or equal to 1, got 0"),
        ({"train.seed": -1}, "train.seed: Input should be greater than or equal to 0, got -1"),
        ({"train.seed": 2**63}, f"train.seed: Input should be less than {2**63}, got {2**63}"),
        ({"preprocess.valid_fraction": 0.5}, "preprocess.valid_fraction: Input should be less than 0.5, got 0.5"),
        (
            {"train.unet.widths": [8, 0]},
            "train.unet.widths.1: Input should be greater than or equal to 1, got 0",
        ),
        # none of the allowed values
        (
            {"download.dataset": "roses"},
            "download.dataset: Input should be 'synthetic_flowers', 'flowers102' or 'folder', got 'roses'",
        ),
        (
            {"sample.compilation": "fast"},
            "sample.compilation: Input should be 'auto', 'off', 'default', 'reduce-overhead' or 'max-autotune', "
            "got 'fast'",
        ),
        (
            {"sample.sampler": "dpm_solver"},
            "sample.sampler: Input should be 'ddpm', 'ddim' or 'dpm_solver++', got 'dpm_solver'",
        ),
        (
            {"sample.weights": "averaged_1"},
            r"sample.weights: String should match pattern '^(averaged|raw|best|averaged_0\.\d+)$', got 'averaged_1'",
        ),
        ({"train.splits": ["train", "all"]}, "train.splits.1: Input should be 'train', 'valid' or 'test', got 'all'"),
        (
            {"register.model_name": "a model"},
            "register.model_name: String should match pattern '^[A-Za-z0-9_-]{1,100}$', got 'a model'",
        ),
        # combinations that cannot work
        (
            {"download.dataset": "folder"},
            "download: dataset: folder needs source, the path of a directory of images",
        ),
        (
            {"download.source": "here"},
            "download: dataset: synthetic_flowers is drawn here, so source must be null, got 'here'",
        ),
        (
            {"download.archive_md5": "0" * 32},
            "download: archive_md5 belongs to dataset: flowers102; set it to null",
        ),
        ({"train.unet.attention": [True]}, "train.unet: attention needs one entry a level: 2, got 1"),
        ({"train.unet.norm_groups": 3}, "train.unet: norm_groups=3 must divide every width, got width 8"),
        (
            {"train.diffusion.beta_start": 0.5},
            "train.diffusion: beta_start=0.5 must not exceed beta_end=0.02",
        ),
        (
            {
                "train.diffusion.schedule": "linear",
                "train.diffusion.beta_end": 0.5,
                "train.diffusion.num_timesteps": 10_000,
            },
            "train.diffusion: beta_start=0.0001, beta_end=0.5 and num_timesteps=10000 leave 0.0e+00 of the image at "
            "the last time step (alphas_cumprod), which must be at least 2.2e-308; lower beta_end or num_timesteps",
        ),
        (
            {"train.diffusion.schedule": "linear", "train.diffusion.beta_start": 1e-17},
            "train.diffusion: beta_start must be at least 2.2e-16, got 1e-17",
        ),
        ({"train.warmup_steps": 7}, "train: warmup_steps=7 must not exceed num_steps=6"),
        (
            {"train.num_processes": 3},
            "train: batch_size=4 must be a multiple of num_processes * accumulation_steps = 3",
        ),
        (
            {"train.num_processes": 2, "train.accumulation_steps": 4},
            "train: batch_size=4 must be a multiple of num_processes * accumulation_steps = 8",
        ),
        (
            {"train.extra_ema_decays": [0.9]},
            "train: extra_ema_decays must differ from each other and from ema_decay, got [0.9, 0.9]",
        ),
        (
            {"train.compilation": "reduce-overhead", "train.accumulation_steps": 2},
            "train: compilation=reduce-overhead needs accumulation_steps=1, got 2: its CUDA graphs take each other's "
            "memory",
        ),
        ({"train.grid_sampling_steps": 21}, "train: grid_sampling_steps=21 must not exceed num_timesteps=20"),
        ({"sample.num_grid_images": 13}, "sample: num_grid_images=13 must not exceed num_images=12"),
        (
            {"sample.num_interpolation_images": 2},
            "sample: num_interpolation_images must be 0, or at least 3, since two are the ends, got 2",
        ),
        ({"sample.interpolation_ends": [4, 4]}, "sample: interpolation_ends must be two images, got [4, 4]"),
        (
            {"sample.classes": ["rose"]},
            "sample.classes must be null, since train.class_conditional is false, got ['rose']; set "
            "train.class_conditional to true to train a model that can be asked for classes",
        ),
        (
            {"sample.classes": ["7 petal"], "train.class_conditional": True},
            "sample.classes: unknown class '7 petal'; did you mean 7 petals (7) or 8 petals (8) or 6 petals (6)?",
        ),
        (
            {"sample.classes": ["sunflour"], "train.class_conditional": True, "download.dataset": "flowers102"},
            "sample.classes: unknown class 'sunflour'; did you mean sunflower (54)?",
        ),
        (
            {"sample.guidance_scale": 2.0},
            "sample.guidance_scale must be 1, since train.class_conditional is false, got 2.0",
        ),
        (
            {"sample.guidance_scale": 0.0, "train.class_conditional": True, "train.label_dropout": 0.0},
            "sample.guidance_scale=0.0 needs train.label_dropout above 0: without it no image is learnt without its "
            "class",
        ),
        (
            {"sample.num_images": 9, "sample.num_grid_images": 4},
            "sample.num_images=9 must be at least 10, since evaluate.enabled is true",
        ),
        ({"sample.num_frames": 7}, "sample: num_frames=7 must not exceed num_sampling_steps=6"),
        (
            {"preprocess.image_size": 17},
            "preprocess.image_size=17 must be a multiple of 2, since train.unet.widths has 2 levels",
        ),
        (
            {"sample.num_sampling_steps": 21},
            "sample.num_sampling_steps=21 must not exceed train.diffusion.num_timesteps=20",
        ),
        (
            {"sample.weights": "averaged_0.5"},
            "sample.weights must be one of averaged, raw, since train.extra_ema_decays is [] and "
            "train.evaluate_every is null, got 'averaged_0.5'",
        ),
        (
            {"sample.weights": "averaged_0.5", "train.extra_ema_decays": [0.99, 0.9999]},
            "sample.weights must be one of averaged, raw, averaged_0.99, averaged_0.9999, since "
            "train.extra_ema_decays is [0.99, 0.9999] and train.evaluate_every is null, got 'averaged_0.5'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_refusal_names_the_parameter_what_was_got_and_what_is_allowed(written, changes, problem):
    assert refusal(written(changes)) == [problem]


def test_every_validator_has_a_case_above():
    # A new combination that is refused needs its message in the list.
    covered = {"_source_fits_dataset", "_dimensions_fit", "_betas_rise", "_steps_fit", "_counts_fit"}
    covered |= {"_signal_and_noise_remain", "_stages_fit", "_classes_fit"}
    assert {name for section in sections() for name in section.__pydantic_decorators__.model_validators} == covered


def test_a_missing_parameter_is_named(written, document):
    path = written({})
    incomplete = document()
    del incomplete["train"]["loss"]
    YAML(typ="safe").dump(incomplete, path)
    assert refusal(path) == ["train.loss is missing"]


def test_all_problems_are_told_at_once(written):
    problems = refusal(written({"train.num_steps": 0, "sample.eta": 2.0}))
    assert [problem.split(":")[0] for problem in problems] == ["train.num_steps", "sample.eta"]


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"train.gradient_clip": None}, lambda params: params.train.gradient_clip is None),
        ({"sample.eta": 1}, lambda params: params.sample.eta == 1.0),
        ({"train.min_snr_gamma": None}, lambda params: params.train.min_snr_gamma is None),
        ({"sample.batch_size": None}, lambda params: params.sample.batch_size is None),
        ({"train.keep_checkpoints_every": None}, lambda params: params.train.keep_checkpoints_every is None),
        (
            {"train.num_processes": 2, "train.accumulation_steps": 2},
            lambda params: params.train.batch_size == params.train.num_processes * params.train.accumulation_steps,
        ),
        (
            {"train.extra_ema_decays": [0.0, 0.9999], "sample.weights": "averaged_0.9999"},
            lambda params: params.train.extra_ema_decays == (0.0, 0.9999),
        ),
        ({"train.warmup_steps": 6}, lambda params: params.train.warmup_steps == params.train.num_steps),
        ({"download.dataset": "folder", "download.source": "x"}, lambda params: params.download.source == "x"),
        (
            {"download.dataset": "flowers102", "download.archive_md5": "0" * 32},
            lambda params: params.download.archive_md5 == "0" * 32,
        ),
        (
            {
                "download.dataset": "flowers102",
                "train.class_conditional": True,
                "sample.classes": ["rose", 54],
                "sample.guidance_scale": 2,
            },
            lambda params: params.sample.classes == ("rose", 54),
        ),
        (
            {"train.class_conditional": True, "train.label_dropout": 0.0, "sample.guidance_scale": 1},
            lambda params: params.sample.classes is None,
        ),
        ({"sample.num_interpolation_images": 3}, lambda params: params.sample.interpolation_ends == (0, 1)),
        ({"train.seed": 2**63 - 1}, lambda params: params.train.seed == 2**63 - 1),
    ],
)
def test_the_ends_of_what_is_allowed_are_accepted(written, changes, accepted):
    assert accepted(read_params(written(changes)))


@pytest.mark.parametrize(("word", "number"), [("1e-3", 0.001), ("1E-3", 0.001), ("2e-4", 0.0002), ("1", 1.0)])
def test_a_number_may_be_written_with_an_exponent(written, word, number):
    path = written({"train.learning_rate": 0.25})
    path.write_text(path.read_text().replace("learning_rate: 0.25", f"learning_rate: {word}"))
    assert read_params(path).train.learning_rate == number


def test_what_yaml_takes_for_a_date_is_a_name_here(written):
    path = written({"download.dataset": "folder", "download.source": "placeholder"})
    path.write_text(path.read_text().replace("source: placeholder", "source: 2024-01-01"))
    assert read_params(path).download.source == "2024-01-01"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("train: [1", "is not YAML"),
        ("profile: a\nprofile: b", 'duplicate key "profile"'),
        ("- a\n- b", "must hold sections of parameters, got CommentedSeq"),
        ("", "must hold sections of parameters, got NoneType"),
    ],
)
def test_what_is_no_table_of_sections_is_refused(folder, content, message):
    Path("params.yaml").write_text(content)
    with pytest.raises(ParamsError, match=message):
        read_params()


def test_a_missing_file_says_how_to_bring_it_back(folder):
    with pytest.raises(ParamsError, match=r"params\.yaml is missing; `git checkout params\.yaml` brings it back"):
        read_params()


def test_parameters_cannot_be_changed(make_params):
    with pytest.raises(ValueError, match="frozen"):
        make_params().train.num_steps = 7


def test_a_section_is_what_the_file_holds(make_params, document):
    for name in ("download", "preprocess", "reference", "train", "sample", "evaluate", "register"):
        assert make_params().section(name) == document()[name]


def test_the_best_weights_can_be_drawn_with_where_a_training_finds_them(make_params):
    wanted = make_params({"sample.weights": "best", "train.evaluate_every": 2})
    assert (wanted.sample.weights, wanted.train.evaluate_every) == ("best", 2)
    with pytest.raises(
        ValueError, match=r"sample\.weights must be one of averaged, raw, since .*evaluate_every is null"
    ):
        make_params({"sample.weights": "best"})


def test_what_dvc_records_of_a_stage_is_what_it_reads(make_params):
    params = make_params()
    assert params.read_by("sample") == flatten({"sample": params.section("sample")})
    assert params.read_by("evaluate") == flatten({name: params.section(name) for name in ("reference", "evaluate")})
    assert params.read_by("reference") == flatten({"reference": params.section("reference")}) | {
        "evaluate.enabled": True
    }


def test_every_parameter_has_a_description():
    bare = [f"{section.__name__}.{name}" for section, name, field in leaves() if not field.description]
    assert bare == []


def test_no_parameter_has_a_default():
    # DVC compares what stands in the file: a default would change results behind its back.
    assert [f"{section.__name__}.{name}" for section, name, field in leaves() if not field.is_required()] == []


def test_an_unknown_profile_is_refused_with_the_known_ones(folder, written):
    path = written({})
    before = path.read_bytes()
    with pytest.raises(ParamsError, match="unknown profile 'tulips'; choose one of: none"):
        activate("tulips", {})
    Path("profiles").mkdir()
    for name in ("roses", "lilies"):
        Path("profiles", f"{name}.yaml").write_text("")
    with pytest.raises(ParamsError, match="unknown profile 'tulips'; choose one of: lilies, roses"):
        activate("tulips", {})
    assert path.read_bytes() == before
    assert sorted(found.name for found in folder.iterdir()) == ["params.yaml", "profiles"]


def sections(model=Params):
    """`model` and the sections in it."""
    inner = [field.annotation for field in model.model_fields.values() if is_section(field)]
    return [model, *(section for child in inner for section in sections(child))]


def leaves():
    return [
        (section, name, field)
        for section in sections()
        for name, field in section.model_fields.items()
        if not is_section(field)
    ]


def is_section(field):
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
