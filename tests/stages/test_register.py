"""Registering: what a version is traced by, which one becomes champion, and what is said of it."""

import json
import os

import pytest

from contract.paths import METRICS, MODEL
from flows.promote import promote
from stages import register as module
from stages.register import PROMOTION_TAG, contents_digest, evaluated_figures, register, version_tags
from tests.tracking.test_promotion import figures
from tracking.registry import CONTENTS_TAG, Version
from tracking.runs import _closing


class Shelf:
    """A registry that keeps its versions in a list; MLflow's own is tested in tracking/."""

    name = "tulips"

    def __init__(self):
        self.tags, self.descriptions, self.runs, self.metadata, self.alias = [], {}, [], {}, None

    def champion(self):
        return self.version(self.alias) if self.alias else None

    def version(self, number):
        return Version(number, self.tags[int(number) - 1])

    def find(self, contents):
        numbers = [str(i) for i, tags in enumerate(self.tags, start=1) if tags[CONTENTS_TAG] == contents]
        return self.version(numbers[-1]) if numbers else None

    def add(self, run_id, model_folder, weights, tags, metadata):
        assert (model_folder / f"{weights}.safetensors").is_file()
        self.tags.append(dict(tags))
        self.runs.append(run_id)
        self.metadata = metadata
        return self.version(str(len(self.tags)))

    def note(self, number, tags, description):
        self.tags[int(number) - 1] |= tags
        self.descriptions[number] = description

    def promote(self, number):
        self.alias = number


@pytest.fixture(autouse=True)
def cards(monkeypatch):
    """What a test hides comes back after it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")


@pytest.fixture
def shelf(model):
    return Shelf()


@pytest.fixture
def registered(shelf, make_params, capsys):
    """Registers build/model with these figures, and returns the lines that are said."""

    def run(metrics, changes=None):
        METRICS.write_text(json.dumps(metrics | {"mlflow_run_id": "the evaluated"}))
        register(make_params(changes), "the run", shelf)
        return capsys.readouterr().out.splitlines()

    return run


def test_the_first_version_becomes_champion_and_it_is_said_why(shelf, registered):
    said = registered(figures(0.1))
    assert said == [
        "register: tulips version 1, run the run",
        "register: version 1 becomes champion: there was no champion",
    ]
    assert shelf.alias == "1" and shelf.runs == ["the run"]
    assert shelf.tags[0][PROMOTION_TAG] == "Became champion: there was no champion"
    assert shelf.descriptions["1"] == "Profile quickstart. Became champion: there was no champion."


def test_a_better_one_takes_its_place(shelf, registered):
    registered(figures(0.1))
    said = registered(figures(0.05))
    assert shelf.alias == "2"
    assert said[1].startswith("register: version 2 becomes champion: its whole interval lies below: kid_")
    assert shelf.tags[1][PROMOTION_TAG].startswith("Became champion: its whole interval lies below")


def test_one_that_is_no_better_does_not_and_it_is_said_why_and_what_to_do(shelf, registered):
    registered(figures(0.1))
    said = registered(figures(0.095))
    assert shelf.alias == "1"
    assert said[1].startswith("register: version 2 does not become champion: the intervals overlap")
    assert said[2] == "register: `python -m flows.promote 2` makes it champion all the same"
    assert shelf.tags[1][PROMOTION_TAG].startswith("Did not become champion: the intervals overlap")
    assert "Did not become champion" in shelf.descriptions["2"]


def test_one_evaluated_otherwise_is_refused(shelf, registered):
    registered(figures(0.1))
    said = registered(figures(0.001, dataset_md5="of other flowers"))
    assert shelf.alias == "1"
    assert "evaluated otherwise than the champion, version 1: dataset_md5 is of other flowers" in said[1]
    assert "flows.promote 2" in said[2]


def test_without_evaluation_a_version_is_registered_and_only_the_first_becomes_champion(shelf, registered):
    assert "becomes champion" in registered({"evaluated": False})[1]
    assert "was not evaluated" in registered(figures(0.1))[1]
    assert shelf.alias == "1" and not any(name.startswith("evaluate.") for name in shelf.tags[0])


def test_where_the_champion_is_gone_the_next_one_becomes_it(shelf, registered):
    registered(figures(0.1))
    shelf.alias = None
    assert "version 2 becomes champion: there was no champion" in registered(figures(0.2))[1]


@pytest.fixture
def contested(shelf, registered, monkeypatch):
    """Registers figures while another registration puts a version of its own in the champion's place, at its turn."""

    def run(ours, theirs, turn):
        registered(figures(0.1))
        shelf.tags.append({CONTENTS_TAG: "of another", **{f"evaluate.{name}": str(v) for name, v in theirs.items()}})
        calls = iter(range(1, 100))

        def take_turn(call):
            def taken(*arguments):
                result = call(*arguments)
                if next(calls) == turn:
                    shelf.alias = "2"
                return result

            return taken

        for name in ("champion", "promote"):
            monkeypatch.setattr(shelf, name, take_turn(getattr(shelf, name)))
        return registered(ours)

    return run


READ, PROMOTED = 1, 3
"""What the registration has just done when the other one moves the alias."""


@pytest.mark.parametrize("turn", [READ, PROMOTED])
def test_a_better_one_that_has_become_champion_meanwhile_stays_it(shelf, contested, turn):
    said = contested(figures(0.05), figures(0.01), turn)
    assert shelf.alias == "2"
    assert said[1].startswith("register: version 3 does not become champion: it is no lower")
    assert shelf.tags[2][PROMOTION_TAG].startswith("Did not become champion: it is no lower")


@pytest.mark.parametrize("turn", [READ, PROMOTED])
def test_a_lesser_one_that_has_become_champion_meanwhile_is_beaten(shelf, contested, turn):
    said = contested(figures(0.01), figures(0.05), turn)
    assert shelf.alias == "3"
    assert said[1].startswith("register: version 3 becomes champion: its whole interval lies below")
    assert "the champion's, version 2" in shelf.tags[2][PROMOTION_TAG]


def test_the_same_again_is_not_registered_twice(shelf, registered):
    # There, elsewhere, and back again, as `dvc repro` does where parameters change back.
    registered(figures(0.1))
    registered(figures(0.05))
    said = registered(figures(0.1))
    assert said[0] == "register: this model is tulips version 1 already"
    assert "version 1 does not become champion: it is no lower" in said[1]
    assert registered(figures(0.05)) == [
        "register: this model is tulips version 2 already",
        "register: version 2 is the champion",
    ]
    assert len(shelf.tags) == 2 and shelf.alias == "2"
    assert shelf.tags[1][PROMOTION_TAG].startswith("Became champion")  # and stays so


def test_promotion_by_hand_says_so(shelf, registered):
    registered(figures(0.1))
    registered(figures(0.2))
    assert promote(shelf, "2") == "tulips version 2 is the champion, after 1"
    assert shelf.alias == "2"
    assert shelf.tags[1][PROMOTION_TAG] == "Became champion by hand, after version 1"


def test_a_version_is_traced_by_code_data_model_and_figures(model, make_params, monkeypatch):
    monkeypatch.setattr(module, "lineage_tags", lambda: {"git_commit": "c0ffee", "dvc_data": "d.dir"})
    monkeypatch.setattr(module, "model_digest", lambda: "m.dir")
    tags = version_tags(make_params({"sample.weights": "raw"}), {"kid_inception": "0.01"})
    assert tags == {
        "git_commit": "c0ffee",
        "dvc_data": "d.dir",
        "dvc_model": "m.dir",
        "profile": "quickstart",
        "weights": "raw",
        "evaluate.kid_inception": "0.01",
    }


def test_the_figures_are_those_of_the_evaluation(model):
    METRICS.write_text(json.dumps({"kid_inception": 0.1 + 0.2, "num_samples": 8, "mlflow_run_id": "x"}))
    assert evaluated_figures() == {"kid_inception": "0.30000000000000004", "num_samples": "8"}


def test_other_weights_settings_or_figures_are_another_version(model):
    def digests():
        for weights in ("averaged", "raw"):
            for known in ({}, {"kid": "1"}):
                yield contents_digest(weights, known)

    before = list(digests())
    assert len(set(before)) == 4 and list(digests()) == before
    (MODEL / "config.json").write_text((MODEL / "config.json").read_text() + " ")
    assert set(before).isdisjoint(digests())


def test_the_evaluated_run_is_gone_on_with(model, make_params, notes, monkeypatch, capsys):
    METRICS.write_text('{"mlflow_run_id": "the evaluated"}')
    asked, registered = [], []
    monkeypatch.setattr(module, "reopened_run", lambda *arguments: asked.append(arguments[1:]) or _closing(notes))
    monkeypatch.setattr(module, "Registry", lambda name: name)
    monkeypatch.setattr(module, "register", lambda _, *arguments: registered.append(arguments))
    module.main(make_params({"register.model_name": "tulips"}))
    assert asked == [("register", "the evaluated")] and notes.ended == ["FINISHED"]
    assert registered == [("the run", "tulips")]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""  # it holds no slot of a GPU


def test_switched_off_it_says_so_and_needs_no_model(folder, make_params, monkeypatch, capsys):
    monkeypatch.setattr(module, "reopened_run", lambda *_: pytest.fail("nothing is to be recorded"))
    module.main(make_params({"register.enabled": False}))
    assert "switched off by register.enabled" in capsys.readouterr().out


def test_without_tracking_it_says_that_nothing_is_registered(model, make_params, capsys):
    METRICS.write_text('{"mlflow_run_id": ""}')
    module.main(make_params())
    assert "nothing is registered, since tracking is off" in capsys.readouterr().out
