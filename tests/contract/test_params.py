"""Parameters: what is accepted, and the one clear error of what is not."""

from functools import reduce
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from contract.nesting import flatten
from contract.params import ParamsError, compose, read_params
from contract.paths import list_profiles
from contract.sections import as_plain

PROJECT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("profile", list_profiles(PROJECT / "profiles"))
def test_the_saved_experiments_are_valid(profile):
    assert compose(profile, {}, PROJECT / "params.yaml").profile == profile


def test_the_experiment_in_force_started_from_a_saved_one():
    assert read_params(PROJECT / "params.yaml").profile in list_profiles(PROJECT / "profiles")


CLASSES = {"train.class_conditional": True}
LINEAR = {"train.diffusion.schedule": "linear"}


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        # unknown
        ({"train.number_of_steps": 5}, "train.number_of_steps", ["not a parameter", "did you mean train.num_steps"]),
        ({"colour": "red"}, "colour", ["not a parameter"]),
        # of another type
        ({"train.num_steps": 6.0}, "train.num_steps", ["valid integer", "got 6.0"]),
        ({"train.num_steps": True}, "train.num_steps", ["valid integer", "got True"]),
        ({"train.num_steps": None}, "train.num_steps", ["valid integer", "got None"]),
        ({"train.random_flips": 1}, "train.random_flips", ["valid boolean", "got 1"]),
        ({"train.learning_rate": "fast"}, "train.learning_rate", ["valid number", "got 'fast'"]),
        ({"train.unet.widths": 8}, "train.unet.widths", ["valid array", "got 8"]),
        ({"sample": 3}, "sample", ["an object", "got 3"]),
        # out of bounds
        ({"train.learning_rate": 0.0}, "train.learning_rate", ["greater than 0", "got 0.0"]),
        ({"reference.num_processes": 1025}, "reference.num_processes", ["less than or equal to 1024"]),
        ({"train.extra_ema_decays": [0.9, 1.0]}, "train.extra_ema_decays.1", ["less than 1", "got 1.0"]),
        ({"train.seed": -1}, "train.seed", ["greater than or equal to 0", "got -1"]),
        ({"train.seed": 2**63}, "train.seed", [f"less than or equal to {2**63 - 1}"]),
        ({"preprocess.valid_fraction": 0.5}, "preprocess.valid_fraction", ["less than 0.5"]),
        ({"train.unet.widths": [8, 0]}, "train.unet.widths.1", ["greater than or equal to 1", "got 0"]),
        # none of the allowed values
        ({"download.dataset": "roses"}, "download.dataset", ["'flowers102'", "got 'roses'"]),
        ({"sample.sampler": "dpm_solver"}, "sample.sampler", ["'ddim'", "got 'dpm_solver'"]),
        ({"sample.weights": "averaged_1"}, "sample.weights", ["pattern", "got 'averaged_1'"]),
        ({"train.splits": ["train", "all"]}, "train.splits.1", ["'train', 'valid' or 'test'", "got 'all'"]),
        ({"register.model_name": "a model"}, "register.model_name", ["pattern", "got 'a model'"]),
        # combinations that cannot work
        ({"download.dataset": "folder"}, "download", ["folder needs source"]),
        ({"download.source": "here"}, "download", ["source must be null", "got 'here'"]),
        ({"download.archive_md5": "0" * 32}, "download", ["archive_md5", "set it to null"]),
        ({"train.unet.norm_groups": 3}, "train.unet", ["norm_groups=3 must divide", "width 8"]),
        (
            LINEAR | {"train.diffusion.beta_end": 0.5, "train.diffusion.num_timesteps": 10_000},
            "train.diffusion",
            ["leave 0.0e+00 of the image", "lower beta_end or num_timesteps"],
        ),
        (LINEAR | {"train.diffusion.beta_start": 1e-17}, "train.diffusion", ["beta_start must be at least 2.2e-16"]),
        ({"train.warmup_steps": 7}, "train", ["warmup_steps=7 must not exceed num_steps=6"]),
        ({"train.num_processes": 3}, "train", ["batch_size=4 must be a multiple", "= 3"]),
        (
            {"train.num_processes": 2, "train.accumulation_steps": 4},
            "train",
            ["batch_size=4 must be a multiple", "= 8"],
        ),
        ({"train.grid_sampling_steps": 21}, "train", ["grid_sampling_steps=21 must not exceed num_timesteps=20"]),
        ({"sample.num_grid_images": 13}, "sample", ["num_grid_images=13 must not exceed num_images=12"]),
        (
            {"sample.num_interpolation_images": 2},
            "sample",
            ["num_interpolation_images must be 0 or at least 3", "got 2"],
        ),
        ({"sample.interpolation_ends": [4, 4]}, "sample", ["interpolation_ends must be two different", "got [4, 4]"]),
        ({"sample.num_frames": 7}, "sample", ["num_frames=7 must not exceed num_sampling_steps=6"]),
        (CLASSES | {"sample.classes": [1.0]}, "sample.classes.0", ["name or a whole number, got 1.0", "quotes"]),
        (CLASSES | {"sample.classes": [4, True]}, "sample.classes.1", ["name or a whole number, got True"]),
        (CLASSES | {"sample.classes": []}, "sample.classes", ["at least 1 item", "got []"]),
        ({"sample.classes": ["rose"]}, "sample.classes", ["must be null", "got ['rose']"]),
        (CLASSES | {"sample.classes": ["7 petal"]}, "sample.classes", ["unknown class '7 petal'", "7 petals (7)"]),
        (
            CLASSES | {"sample.classes": ["sunflour"], "download.dataset": "flowers102"},
            "sample.classes",
            ["unknown class 'sunflour'", "sunflower (54)"],
        ),
        ({"sample.guidance_scale": 2.0}, "sample.guidance_scale", ["must be 1", "got 2.0"]),
        (
            CLASSES | {"sample.guidance_scale": 0.0, "train.label_dropout": 0.0},
            "sample.guidance_scale=0.0",
            ["needs train.label_dropout above 0"],
        ),
        ({"sample.num_images": 9}, "sample.num_images=9", ["at least 10, since evaluate.enabled"]),
        (
            {"preprocess.image_size": 1024, "sample.num_images": 300, "sample.num_grid_images": 226},
            "sample.num_grid_images=226",
            ["not exceed 225", "WebP", "preprocess.image_size=1024"],
        ),
        ({"preprocess.image_size": 17}, "preprocess.image_size=17", ["multiple of 2", "2 levels"]),
        ({"sample.num_sampling_steps": 21}, "sample.num_sampling_steps=21", ["train.diffusion.num_timesteps=20"]),
        ({"sample.weights": "best"}, "sample.weights", ["one of averaged, raw, since", "evaluate_every is null"]),
        (
            {"sample.weights": "averaged_0.5", "train.extra_ema_decays": [0.99, 0.9999]},
            "sample.weights",
            ["one of averaged, raw, averaged_0.99, averaged_0.9999,"],
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_refusal_names_the_parameter_the_value_and_what_is_allowed(written, changes, place, words):
    [problem] = refusal(written(changes))
    assert problem.startswith(place) and all(word in problem for word in words)


@pytest.mark.parametrize("dataset", ["flowers102", "folder", "synthetic_flowers"])
@pytest.mark.parametrize(
    "address",
    [
        "http://user:secret@host/102", "HTTPS://secret@host", "ftp://user:se/secret@host", " http://user:secret@host/",
        "http:/user:secret@host", "//user:secret@host", "https://host/102?token=secret", "https://host/102#secret",
    ],
)  # fmt: skip
def test_a_secret_in_an_address_is_refused_and_not_repeated(written, dataset, address):
    [problem] = refusal(written({"download.dataset": dataset, "download.source": address}))
    assert problem.startswith("download: source must be ") and "~/.netrc" in problem and "secret" not in problem


@pytest.mark.parametrize("name", ["download", "profile", "train.seed", "sample.weights"])
@pytest.mark.parametrize("address", ["http://user:secret@host/a@b", "https://user:se/secret@host", "ftp://secret@host"])
def test_a_secret_elsewhere_is_not_repeated_either(written, name, address):
    [problem] = refusal(written({name: address}))
    assert problem.startswith(f"{name}: ") and "://…@host" in problem and "secret" not in problem


@pytest.mark.parametrize(
    "text", ["models:/flowers@champion", "/data/me@home: http://host/x", "sqlite:////me@home/x.db"]
)
def test_an_at_sign_is_no_secret(text):
    assert str(ParamsError(text)) == text


@pytest.mark.parametrize("name", ["train.loss", "train.unet.dropout", "sample.eta", "register"])
def test_a_missing_parameter_is_named_also_where_the_library_has_a_default(written, document, name):
    path, incomplete = written({}), document()
    *sections, leaf = name.split(".")
    del reduce(dict.__getitem__, sections, incomplete)[leaf]
    YAML(typ="safe").dump(incomplete, path)
    assert refusal(path) == [f"{name} is missing"]


def test_all_problems_are_listed_at_once(written, document):
    problems = refusal(written({"train.num_steps": 0, "sample.eta": 2.0, "train.colour": "red"}))
    assert sorted(problem.split()[0] for problem in problems) == ["sample.eta:", "train.colour", "train.num_steps:"]


@pytest.mark.parametrize(
    "changes",
    [
        {"train.gradient_clip": None},
        {"train.min_snr_gamma": None},
        {"sample.batch_size": None},
        {"train.keep_checkpoints_every": None},
        {"sample.eta": 1},
        {"train.num_processes": 2, "train.accumulation_steps": 2},
        {"train.extra_ema_decays": [0.0, 0.9999], "sample.weights": "averaged_0.9999"},
        {"sample.weights": "best", "train.evaluate_every": 2},
        {"train.warmup_steps": 6},
        {"download.dataset": "folder", "download.source": "x"},
        {"download.dataset": "folder", "download.source": "/x/a@b/Batch #2?"},
        {"download.dataset": "flowers102", "download.archive_md5": "0" * 32},
        CLASSES | {"download.dataset": "flowers102", "sample.classes": ["rose", 54], "sample.guidance_scale": 2},
        CLASSES | {"train.label_dropout": 0.0, "sample.guidance_scale": 1},
        {"preprocess.image_size": 1024, "sample.num_images": 300, "sample.num_grid_images": 225},
        {"sample.num_interpolation_images": 3},
        {"train.seed": 2**63 - 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_ends_of_what_is_allowed_are_accepted(written, document, changes):
    params = read_params(written(changes))
    assert as_plain(params) == document(changes)


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
        (b"train: [1", "is not YAML: line 1, column 10: "),
        (b"profile: a\nprofile: b", 'is not YAML: line 2, column 1: found duplicate key "profile"'),
        (b"train:\n\tseed: 1", r"is not YAML: line 2, column 1: found character '\\t'"),
        (b"profile: a\n---\nprofile: b", "is not YAML: line 2, column 1: but found another document"),
        (b"profile: a\0", "is not YAML: unacceptable character #x0000"),
        (b"profile: 2024-13-45", "is not YAML: month must be in"),
        (b"profile: " + 5_000 * b"1", "is not YAML: .*5000 digits"),
        (b"profile: " + 600 * b"[", "is not YAML: maximum recursion"),
        (b"profile: a\n# caf\xe9", "is not UTF-8: line 2 holds the byte 0xe9; save it as UTF-8"),
        ("profile: a".encode("utf-16"), "is not UTF-8: line 1 holds the byte 0xff"),
        (b"{[1]: 2}", "cannot be used: keys must be str"),
        (b"- a\n- b", "must hold sections by name, got "),
        (b"", "must hold sections by name, got an empty file; `git checkout"),
        (None, "is missing; `git checkout"),
        (Path(), "cannot be read: Is a directory"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_file_that_holds_no_parameters_is_one_line(folder, content, message):
    path = Path("params.yaml")
    if content == Path():
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ParamsError, match=f"params.yaml {message}") as caught:
        read_params()
    assert len(str(caught.value).splitlines()) == 1


def test_a_profile_that_cannot_be_read_is_one_line(folder):
    Path("profiles").mkdir()
    Path("profiles/mine.yaml").write_bytes(b"train:\n  # caf\xe9")
    with pytest.raises(ParamsError, match=r"^profiles/mine.yaml is not UTF-8: line 2 holds the byte 0xe9"):
        compose("mine", {})


@pytest.mark.parametrize("change", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b"\n", b"\r\n")])
def test_what_editors_of_other_systems_write_is_read(written, document, change):
    path = written({})
    path.write_bytes(change(path.read_bytes()))
    assert as_plain(read_params(path)) == document()


def test_what_dvc_records_of_a_stage_is_what_it_reads(make_params):
    params = make_params()
    reference = flatten({"reference": params.section("reference")})
    assert params.read_by("sample") == flatten({"sample": params.section("sample")})
    assert params.read_by("evaluate") == flatten({"evaluate": params.section("evaluate")}) | reference
    assert params.read_by("reference") == reference | {"evaluate.enabled": True}
