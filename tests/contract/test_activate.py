"""Overrides and profiles: merged into params.yaml, which is written whole or not at all."""

from pathlib import Path

import pytest

from contract.assignments import parse_grid, parse_overrides
from contract.params import ParamsError, activate, compose, read_params

PROJECT = Path(__file__).parents[2]
TULIPS = """# Tulips on a laptop.
train:
  # a short training
  num_steps: 600
  warmup_steps: 60
  unet: {widths: [8, 16], attention: [false, true]}
download:
  source: null
"""


@pytest.fixture
def params_file(folder):
    """The profile of tulips in force, in a folder that holds it beside the published setting."""
    Path("profiles").mkdir()
    Path("profiles/flowers102.yaml").write_text((PROJECT / "profiles/flowers102.yaml").read_text())
    Path("profiles/tulips.yaml").write_text(TULIPS)
    activate("tulips", {})
    return Path("params.yaml")


def state(path):
    return path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino


def test_a_profile_is_completed_by_the_published_setting(params_file):
    published, params = compose("flowers102", {}), read_params()
    assert params.train.num_steps == 600 and params.train.unet.widths == (8, 16)
    assert params.sample == published.sample and params.train.learning_rate == published.train.learning_rate
    text, complete = params_file.read_text(), Path("profiles/flowers102.yaml").read_text()
    assert text.startswith("# Tulips on a laptop.\nprofile: tulips\n\ndownload:\n")
    assert text.count("#") == 1 and len(text.splitlines()) == len(complete.splitlines()) - 1


def test_a_complete_profile_needs_no_other_and_keeps_its_comments(params_file):
    complete = params_file.read_text().replace("train:\n", "train:  # for Ada\n  # as in the paper\n")
    Path("profiles/mine.yaml").write_text(complete.replace("profile: tulips", "profile: mine"))
    Path("profiles/flowers102.yaml").unlink()
    params_file.unlink()
    activate("mine", {})
    assert params_file.read_text() == Path("profiles/mine.yaml").read_text()
    with pytest.raises(ParamsError, match=r"flowers102\.yaml is missing"):
        activate("tulips", {})


def test_an_unknown_profile_is_refused_with_the_known_ones(params_file):
    before = state(params_file)
    with pytest.raises(ParamsError, match="unknown profile 'roses'; choose one of: flowers102, tulips"):
        activate("roses", {})
    assert state(params_file) == before


def test_overrides_change_their_lines_and_no_other(params_file):
    with_comments = params_file.read_text().replace("train:\n", "train:  # for Ada\n  # as in the paper\n")
    params_file.write_text(with_comments)
    params = activate(None, {"train": {"num_steps": 700, "gradient_clip": 0.5}, "register": {"enabled": False}})
    lines = zip(with_comments.splitlines(), params_file.read_text().splitlines(), strict=True)
    changed = [line.strip() for before, line in lines if before != line]
    assert changed == ["num_steps: 700", "gradient_clip: 0.5", "enabled: false"]
    assert params == read_params() and params.train.num_steps == 700


def test_overrides_are_merged_over_a_profile_and_lists_replaced_as_a_whole(params_file):
    activate(None, {"train": {"num_steps": 700}})
    params = activate("tulips", {"train": {"unet": {"widths": (64,), "attention": (True,)}}})
    assert (params.train.num_steps, params.train.unet.widths) == (600, (64,)) and params == read_params()


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
@pytest.mark.parametrize("profile", [None, "tulips"])
def test_after_a_refusal_the_file_is_as_it_was(params_file, overrides, profile):
    activate(None, {"train": {"num_steps": 601}})
    before = state(params_file)
    for attempt in (activate, compose):
        with pytest.raises(ParamsError):
            attempt(profile, overrides)
    assert state(params_file) == before
    assert sorted(found.name for found in Path().iterdir()) == ["params.yaml", "profiles"]


@pytest.mark.parametrize("profile", [None, "tulips"])
@pytest.mark.parametrize("overrides", [{}, {"train": {"num_steps": 600}}])
def test_nothing_is_written_where_nothing_changes(params_file, profile, overrides):
    before = state(params_file)
    activate(profile, overrides)
    assert compose(profile, {"train": {"num_steps": 700}}).train.num_steps == 700
    assert state(params_file) == before


def test_a_layout_of_ones_own_is_left_alone_until_something_changes(params_file):
    by_hand = params_file.read_text().replace("widths: [8, 16]", "widths: [8,\n             16]")
    params_file.write_text(by_hand)
    before = state(params_file)
    activate(None, {"train": {"num_steps": 600}})
    assert state(params_file) == before and params_file.read_text() == by_hand
    activate(None, {"train": {"num_steps": 700}})
    assert "num_steps: 700" in params_file.read_text()


def test_the_file_is_replaced_whole(params_file, monkeypatch):
    # Whoever reads it meanwhile sees the old experiment or the new one.
    def break_off(self, target):
        raise KeyboardInterrupt

    before = params_file.read_bytes()
    monkeypatch.setattr(Path, "replace", break_off)
    with pytest.raises(KeyboardInterrupt):
        activate(None, {"train": {"num_steps": 700}})
    assert params_file.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        ([], {}),
        (["train.num_steps=100"], {"train": {"num_steps": 100}}),
        (["train.learning_rate=1e-3"], {"train": {"learning_rate": 0.001}}),
        (["train.unet.widths=[8, 16]", "train.seed=1"], {"train": {"unet": {"widths": [8, 16]}, "seed": 1}}),
        (["train.gradient_clip=null"], {"train": {"gradient_clip": None}}),
        (["register.enabled=false"], {"register": {"enabled": False}}),
        (["train.seed={}"], {"train": {"seed": {}}}),  # refused later: it is no seed
        (["train.seed=1", "train.seed=2"], {"train": {"seed": 2}}),
        (
            ["train.unet={dropout: 0.2}", "train.unet.norm_groups=4"],
            {"train": {"unet": {"dropout": 0.2, "norm_groups": 4}}},
        ),
        # text is taken as it stands
        (["download.source=/my flowers #2: [new]"], {"download": {"source": "/my flowers #2: [new]"}}),
        (["download.source=http://host/a?b=c"], {"download": {"source": "http://host/a?b=c"}}),
        (["download.source=null"], {"download": {"source": None}}),
        (["download.source="], {"download": {"source": None}}),
        (["profile=1e3"], {"profile": "1e3"}),
        (["train.compilation=off"], {"train": {"compilation": "off"}}),
        (["sample.classes=[rose, 54]"], {"sample": {"classes": ["rose", 54]}}),
    ],
)
def test_assignments_become_nested_overrides(words, overrides):
    assert repr(parse_overrides(words)) == repr(overrides)  # 1 is not 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.num_steps"], "NAME=VALUE, .* got 'train.num_steps'"),
        (["=3"], "got '=3'"),
        (["train.unet.widths=[8"], "of train.unet.widths, '.8' is not YAML: line 1, column 3: .*put text into quotes"),
        (["train.number_of_steps=5"], "train.number_of_steps is not a parameter; did you mean train.num_steps"),
        (["tarin.num_steps=5"], "tarin.num_steps is not a parameter; did you mean train.num_steps"),
        (["train=3", "train.seed=1"], "train.seed is part of a section that is set as a whole"),
        (["train.unet.dropout=0.1", "train=null"], "train is set twice, as a whole or in part"),
    ],
)
@pytest.mark.parametrize("parse", [parse_overrides, parse_grid])
def test_an_assignment_that_cannot_be_used_is_refused(parse, words, message):
    with pytest.raises(ParamsError, match=message):
        parse(words)


def test_the_values_of_a_grid_are_lists():
    grid = parse_grid(["sample.sampler=[ddim, ddpm]", "train.learning_rate=[1e-3, 0.002]"])
    assert grid == {"sample.sampler": ["ddim", "ddpm"], "train.learning_rate": [0.001, 0.002]}


TEXTS = ["/x/a #2", "! x", "[a", "a: b", "@x", "%x", "*x", "&x", "`x", "007", "1e3", "yes", "2024-01-01", "# x", " x"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_stands(text):
    for written in (text, f"'{text}'", f'"{text}"'):
        assert parse_overrides([f"download.source={written}"]) == {"download": {"source": text}}
    assert parse_grid([f"download.source=['{text}']"]) == {"download.source": [text]}


def test_the_texts_of_a_grid_need_quotes_only_where_yaml_would_drop_a_part():
    grid = parse_grid(["download.source=[007, 1e3, yes, 2024-01-01, a b, null]", "profile=[null, '#']"])
    assert grid == {"download.source": ["007", "1e3", "yes", "2024-01-01", "a b", None], "profile": ["null", "#"]}


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("! x", "a tag (!)"),
        ("&x", "an anchor (&)"),
        ("[&a b, *a]", "an anchor (&)"),
        ("1 # x", "a comment (#)"),
        ("[1, 2] #", "a comment (#)"),
        ("--- 1", "the mark of a document (---)"),
        ("007", "007, which may mean several things"),
        ("[0x10]", "0x10, which may mean several things"),
    ],
)
@pytest.mark.parametrize("name", ["train.seed", "sample.classes", "train.unet.widths"])
@pytest.mark.parametrize("parse", [parse_overrides, parse_grid])
def test_what_yaml_would_drop_or_change_is_refused_in_one_line(parse, name, value, what):
    with pytest.raises(ParamsError) as caught:
        parse([f"{name}={value}"])
    assert f"the value of {name}, '{value}' holds {what}" in str(caught.value)
    assert str(caught.value).endswith("""put text into quotes, as in 'sample.classes=["Batch #2", 54]'""")


@pytest.mark.parametrize("word", ["1e3", "1.0", "1_000", "2024-01-01", "true", ".inf", "a: b", "Batch #2", "`x", "@x"])
def test_a_class_that_may_be_a_name_or_something_else_needs_quotes(word):
    with pytest.raises(ParamsError, match="put text into quotes"):
        parse_overrides([f"sample.classes=[{word}]"])
    assert parse_overrides([f'sample.classes=["{word}"]']) == {"sample": {"classes": [word]}}
