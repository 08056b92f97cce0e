"""A project that is moved or copied: its database finds the files, and writes below no other folder."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow.artifacts import list_artifacts

from contract.errors import StageError
from tracking.connection import connect, connect_to_read, find_experiment, open_experiment
from tracking.relocation import follow_files, require_own_files

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # in MLflow's own tables


def read_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


@pytest.fixture
def start(folder, empty_database, monkeypatch):
    """Makes a project with a recorded run and a version of a model, and works in it."""

    def make(name, location=None):
        project = folder / name
        project.mkdir()
        shutil.copy(empty_database, project / "mlflow.db")
        monkeypatch.chdir(project)
        client = connect()
        if location:
            client.create_experiment("flowers-ddpm", artifact_location=location.format(project))
        experiment = open_experiment(client)
        run = client.create_run(experiment)
        client.log_text(run.info.run_id, "the first", "note.txt")
        model = client.create_logged_model(experiment)
        client.create_registered_model("flowers")
        client.create_model_version("flowers", model.model_uri, run.info.run_id, model_id=model.model_id)
        monkeypatch.delenv("MLFLOW_TRACKING_URI")  # which MLflow has set to this database
        return project

    return make


def check_files_are_those_of(project):
    client = connect_to_read()
    experiment = open_experiment(client)
    (run,) = client.search_runs([experiment])
    assert [file.path for file in list_artifacts(run.info.artifact_uri)] == ["artifacts/note.txt"]
    client.log_text(client.create_run(experiment).info.run_id, "the second", "more.txt")
    (note,), (more,) = project.rglob("note.txt"), project.rglob("more.txt")
    assert note.parents[2] == more.parents[2]
    (model,) = client.search_logged_models([experiment])
    assert client.get_model_version_download_uri("flowers", "1") == model.artifact_location
    assert model.artifact_location.startswith(client.get_experiment(experiment).artifact_location)


@pytest.mark.parametrize(
    ("take", "name", "location"),
    [
        (shutil.move, "rose", None),
        (shutil.copytree, "a rose, 50%20 ü?", None),
        (shutil.copytree, "served", "{}/mlartifacts/1"),
        (shutil.move, "plain", "file://{}/mlartifacts"),
    ],
)
def test_a_project_that_was_moved_or_copied_finds_its_files_and_writes_there(
    start, monkeypatch, capsys, take, name, location
):
    before = start(name, location)
    after = before.parent / "garden" / f"{name} 50%20 ü?"
    monkeypatch.chdir(before.parent)
    after.parent.mkdir()
    take(before, after)
    old = read_files(before)
    monkeypatch.chdir(after)
    check_files_are_those_of(after)
    assert read_files(before) == old and before.exists() == bool(old)
    connect()
    said = f"tracking: {after}/mlflow.db comes from {before}: its files are now those in {after}/mlartifacts\n"
    assert capsys.readouterr().out == said


def test_files_that_were_written_at_the_old_place_after_the_move_are_named(start, monkeypatch, capsys):
    before = start("rose")
    after = shutil.move(before, before.parent / "tulip")
    (before / "mlartifacts/lost").mkdir(parents=True)
    monkeypatch.chdir(after)
    check_files_are_those_of(after)
    assert f"; `cp -rn '{before}/mlartifacts/.' '{after}/mlartifacts'` brings" in capsys.readouterr().out
    assert [path.name for path in before.rglob("*")] == ["mlartifacts", "lost"]


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.write_text("a page about tulips\n" * 100)])
def test_what_is_no_database_is_named_in_one_line(folder, make):
    make(folder / "mlflow.db")
    for open_database in (follow_files, require_own_files):
        with pytest.raises(StageError, match=rf"^{folder}/mlflow.db cannot be used as MLflow's database: .*; mend it"):
            open_database(folder / "mlflow.db")


def test_a_project_reached_through_a_link_stays_as_it_is(start, monkeypatch, capsys):
    project = start("rose")
    link = project.parent / "link"
    link.symlink_to(project)
    monkeypatch.chdir(link)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{link}/mlflow.db")
    before = (project / "mlflow.db").read_bytes()
    open_experiment(connect())
    assert (project / "mlflow.db").read_bytes() == before and capsys.readouterr().out == ""


@pytest.mark.parametrize("has_other_files", [False, True])
def test_a_place_that_people_have_chosen_is_kept(start, folder, capsys, has_other_files):
    place = folder / "disk/mlartifacts"
    place.mkdir(parents=True)
    project = start("rose", f"{place}/1")
    other = project / "mlartifacts/of an earlier database"
    if has_other_files:
        other.mkdir(parents=True)
    check_files_are_those_of(place)
    assert list(project.glob("mlartifacts/*")) == [other] * has_other_files and capsys.readouterr().out == ""


def test_a_database_that_came_without_its_files_is_read_and_not_written_for(start, monkeypatch):
    before = start("rose")
    alone = before.parent / "alone"
    alone.mkdir()
    shutil.copy(before / "mlflow.db", alone)
    monkeypatch.chdir(alone)
    client = connect_to_read()
    assert len(client.search_runs([find_experiment(client)])) == 1
    with pytest.raises(StageError, match=rf"`cp -r '{before}/mlartifacts' '{alone}/mlartifacts'` brings them, `mkdir "):
        open_experiment(client)
    (alone / "mlartifacts").mkdir()
    open_experiment(connect())
    with sqlite3.connect("mlflow.db") as database:
        assert (
            database.execute("SELECT artifact_uri FROM runs").fetchone()[0].startswith(f"file://{alone}/mlartifacts/")
        )
