"""What differs from an experiment: merged over the file, written back whole or not at all."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from contract.assignments import parse_overrides
from contract.params import Params, ParamsError, activate, read_params
from contract.sections import TrainParams
from flows.forms import EvaluationOverrides, Overrides

PROJECT = Path(__file__).parents[2]
QUICKSTART = (PROJECT / "profiles" / "quickstart.yaml").read_text()
# The profile's values may change, what the tests below say of these may not.
for line in (
    "num_steps: 600", "warmup_steps: 60", "gradient_clip: 1.0", "random_flips: true", "eta: 0.0", "enabled: true",
    "widths: [32, 64, 128]",
):  # fmt: skip
    QUICKSTART = re.sub(rf"(?m)^( +){line.split(':')[0]}: .*$", rf"\1{line}", QUICKSTART)


@pytest.fixture
def params_file(folder):
    """The quickstart profile in force, in a folder that also holds it as a profile."""
    Path("profiles").mkdir()
    Path("profiles/quickstart.yaml").write_text(QUICKSTART)
    Path("params.yaml").write_text(QUICKSTART)
    return Path("params.yaml")


def changed_lines(path):
    before, after = QUICKSTART.splitlines(), path.read_text().splitlines()
    assert len(before) == len(after)
    return [line.strip() for old, line in zip(before, after, strict=True) if old != line]


def written_at(path):
    return (path.stat().st_mtime_ns, path.stat().st_ino)


def test_overrides_change_their_lines_and_no_other(params_file):
    params = activate(None, {"train": {"num_steps": 700, "gradient_clip": None}, "register": {"enabled": False}})
    # Comments, nulls and the layout of the rest stay.
    assert changed_lines(params_file) == ["num_steps: 700", "gradient_clip: null", "enabled: false"]
    assert params == read_params() and params.train.num_steps == 700 and params.train.gradient_clip is None


def test_comments_in_the_middle_stay(params_file):
    with_comments = QUICKSTART.replace("train:\n", "train:  # for Ada\n  # as in the paper\n")
    params_file.write_text(with_comments)
    activate(None, {"train": {"random_flips": False}})
    assert params_file.read_text() == with_comments.replace("random_flips: true", "random_flips: false")


def test_overrides_are_merged_over_a_profile(params_file):
    activate(None, {"train": {"num_steps": 700}})
    params = activate("quickstart", {"sample": {"seed": 9}})
    assert changed_lines(params_file) == ["seed: 9"]
    assert params.train.num_steps == read_params(Path("profiles/quickstart.yaml")).train.num_steps


def test_a_profile_is_put_in_force_where_there_is_no_file_yet(params_file):
    params_file.unlink()
    activate("quickstart", {})
    assert params_file.read_text() == QUICKSTART


def test_lists_are_replaced_as_a_whole(params_file):
    widths, attention = [8, 16], [False, True]
    activate(None, {"train": {"unet": {"widths": widths, "attention": attention}}})
    assert read_params().train.unet.widths == (8, 16)
    # The same from a form, which holds tuples.
    params_file.write_text(QUICKSTART)
    form = Overrides(train={"unet": {"widths": widths, "attention": attention}})
    activate(None, form.model_dump(by_alias=True, exclude_unset=True))
    assert read_params().train.unet.widths == (8, 16)


@pytest.mark.parametrize(
    "overrides",
    [
        {"train": {"num_steps": 0}},
        {"train": {"warmup_steps": 602}},
        {"train": {"number_of_steps": 5}},
        {"train": None},
        {"train": 3},
        {"train": {"unet": {"attention": [True]}}},
        {"roses": {"red": True}},
    ],
)
@pytest.mark.parametrize("profile", [None, "quickstart"])
def test_after_a_refusal_the_file_is_as_it_was(params_file, overrides, profile):
    params_file.write_text(QUICKSTART.replace("num_steps: 600", "num_steps: 601"))
    before, at = params_file.read_bytes(), written_at(params_file)
    with pytest.raises(ParamsError):
        activate(profile, overrides)
    assert params_file.read_bytes() == before and written_at(params_file) == at
    assert sorted(found.name for found in Path().iterdir()) == ["params.yaml", "profiles"]


@pytest.mark.parametrize(
    ("profile", "overrides"),
    [(None, {}), ("quickstart", {}), (None, {"train": {"num_steps": 600}}), ("quickstart", {"sample": {"eta": 0.0}})],
)
def test_nothing_is_written_where_nothing_changes(params_file, profile, overrides):
    before = written_at(params_file)
    activate(profile, overrides)
    assert written_at(params_file) == before


def test_what_would_be_in_force_can_be_seen_without_writing(params_file):
    before = written_at(params_file)
    assert compose("quickstart", {"train": {"num_steps": 700}}).train.num_steps == 700
    with pytest.raises(ParamsError, match="num_step is not a parameter"):
        compose(None, {"train": {"num_step": 700}})
    assert written_at(params_file) == before


def test_a_layout_of_ones_own_is_left_alone_until_something_changes(params_file):
    by_hand = QUICKSTART.replace("widths: [32, 64, 128]", "widths: [32,64,\n             128]")
    params_file.write_text(by_hand)
    before = written_at(params_file)
    activate(None, {})
    activate(None, {"train": {"num_steps": 600}})
    assert params_file.read_text() == by_hand and written_at(params_file) == before
    activate(None, {"train": {"num_steps": 700}})
    assert "num_steps: 700" in params_file.read_text()


def test_the_file_is_replaced_whole(params_file, monkeypatch):
    # Whoever reads it meanwhile sees the old experiment or the new one.
    def torn_off(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", torn_off)
    with pytest.raises(KeyboardInterrupt):
        activate(None, {"train": {"num_steps": 700}})
    assert params_file.read_text() == QUICKSTART


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ([], {}),
        (["train.num_steps=100"], {"train": {"num_steps": 100}}),
        (["train.learning_rate=1e-3"], {"train": {"learning_rate": 0.001}}),
        (["train.unet.widths=[8, 16]", "train.seed=1"], {"train": {"unet": {"widths": [8, 16]}, "seed": 1}}),
        (["train.gradient_clip=null"], {"train": {"gradient_clip": None}}),
        (["register.enabled=false"], {"register": {"enabled": False}}),
        (["download.source=http://host/a?b=c"], {"download": {"source": "http://host/a?b=c"}}),
        (["profile=mine"], {"profile": "mine"}),
        (["train.seed=1", "train.seed=2"], {"train": {"seed": 2}}),
        (
            ["train.unet={dropout: 0.2}", "train.unet.norm_groups=4"],
            {"train": {"unet": {"dropout": 0.2, "norm_groups": 4}}},
        ),
        (["train.unet.dropout=0.2", "train.unet_=3"], {"train": {"unet": {"dropout": 0.2}, "unet_": 3}}),
    ],
)
def test_words_become_nested_overrides(words, overrides):
    parsed = parse_overrides(words)
    assert parsed == overrides
    assert {name: type(value) for name, value in flatten(parsed).items()} == {
        name: type(value) for name, value in flatten(overrides).items()
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.num_steps"], "set by NAME=VALUE, such as train.num_steps=100, got 'train.num_steps'"),
        (["=3"], "got '=3'"),
        (["train.unet.widths=[8"], "the value of 'train.unet.widths=.8' is not YAML"),
        (["train=3", "train.seed=1"], "'train.seed=1' sets a part of what was set whole before it"),
        (["train.seed=1", "train.seed.deep=1"], "'train.seed.deep=1' sets a part"),
        (
            ["train.seed=1", "train.unet.dropout=0.1", "train.unet={widths: [8]}"],
            r"'train.unet={widths: \[8\]}' replaces the section that 'train.unet.dropout=0.1' sets a part of; give it",
        ),
        (
            ["train.unet.dropout=0.1", "train=null"],
            "'train=null' replaces the section that 'train.unet.dropout=0.1' sets",
        ),
    ],
)
def test_words_that_say_nothing_are_refused(words, message):
    with pytest.raises(ParamsError, match=message):
        parse_overrides(words)


def test_a_misspelt_name_is_refused_with_the_file_untouched(params_file):
    with pytest.raises(ParamsError, match=r"train\.number_of_steps is not a parameter"):
        activate(None, parse_overrides(["train.number_of_steps=5"]))
    with pytest.raises(ParamsError, match="tarin is not a parameter"):
        activate(None, parse_overrides(["tarin.num_steps=5"]))
    assert params_file.read_text() == QUICKSTART


def test_flat_names_the_leaves():
    nested = {"train": {"seed": 0, "unet": {"widths": [8, 16]}}, "profile": "x"}
    assert flatten(nested) == {"train.seed": 0, "train.unet.widths": [8, 16], "profile": "x"}


def test_the_form_of_overrides_has_the_bounds_and_help_of_every_parameter():
    params, overrides = (schema_leaves(model.model_json_schema()) for model in (Params, Overrides))
    assert len(params) > 50
    bounds_in_words = re.compile(r" \((at least|above|at most|below) [^()]*\)$")
    for leaf in overrides.values():
        leaf["description"] = bounds_in_words.sub("", leaf["description"])
    assert overrides == params


def test_the_form_tells_bounds_in_words():
    fields = Overrides.model_json_schema()["$defs"]["TrainParamsOverride"]["properties"]
    assert fields["num_steps"]["description"] == "optimizer steps (at least 1, at most 100000000)"
    assert fields["gradient_clip"]["description"].endswith("null leaves it alone (above 0.0)")
    assert fields["random_flips"]["description"] == "mirror training images left-right at random"


def test_what_prefects_form_sends_of_fields_left_alone_is_left_out():
    fields = dict.fromkeys(TrainParams.model_fields)
    sections = dict.fromkeys(Params.model_fields) | {"train": fields | {"num_steps": 7}}
    assert Overrides(**sections).model_dump(by_alias=True, exclude_unset=True) == {"train": {"num_steps": 7}}


def test_everything_may_be_left_out_of_the_form():
    assert Overrides().model_dump(by_alias=True, exclude_unset=True) == {}
    form = Overrides(train={"gradient_clip": None}, register={"enabled": False})
    assert form.model_dump(by_alias=True, exclude_unset=True) == {
        "train": {"gradient_clip": None},
        "register": {"enabled": False},
    }


@pytest.mark.parametrize(
    "values",
    [
        {"train": {"num_steps": 0}},
        {"train": {"seed": 2**63}},
        {"train": {"unet": {"widths": [0]}}},
        {"train": {"number_of_steps": 5}},
        {"register": {"model_name": "a model"}},
        {"register_": {"enabled": False}},
        {"sample": {"eta": 1.5}},
        {"download": {"archive_md5": "short"}},
    ],
)
def test_the_form_refuses_what_params_would(values):
    with pytest.raises(ValidationError):
        Overrides(**values)


def test_the_form_of_an_evaluation_takes_what_leaves_the_model_as_it_is():
    assert list(EvaluationOverrides.model_fields) == ["reference", "sample", "evaluate"]
    assert EvaluationOverrides(sample={"seed": 3}).model_dump(exclude_unset=True) == {"sample": {"seed": 3}}
    for values in ({"train": {"num_steps": 5}}, {"sample": {"eta": 1.5}}, {"evaluate": {"enable": True}}):
        with pytest.raises(ValidationError):
            EvaluationOverrides(**values)


def schema_leaves(schema):
    """Description and bounds of each parameter, by its dotted name; whether it may be null is left out."""

    def resolved(node):
        node = {key: value for key, value in node.items() if key not in {"title", "default"}}
        if "$ref" in node:
            node = node | schema["$defs"][node.pop("$ref").rsplit("/", 1)[1]]
        choices = [choice for choice in node.pop("anyOf", []) if choice != {"type": "null"}]
        assert len(choices) < 2
        return resolved(node | choices[0]) if choices else node

    def walk(node, prefix):
        node = resolved(node)
        if "properties" not in node:
            return {prefix: node}
        found = {}
        for name, child in node["properties"].items():
            found |= walk(child, f"{prefix}.{name}" if prefix else name)
        return found

    return walk(schema, "")
