"""The command `flowers`: its words and their meaning, its errors, and drawing."""

import getpass
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from contract.errors import FlowersError
from flows import cli
from flows.service.addresses import Addresses
from flows.summary import list_pages

PROJECT = Path(__file__).parents[2]
COMMANDS = {"run", "sweep", "compare", "up", "set-up", "serve", "promote", "export", "draw"}


@pytest.fixture
def flowers(capsys, monkeypatch):
    """Runs the command in this process, which must end with `status`; returns what it prints."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words, status=0):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert (ended.value.code or 0) == status
        printed = capsys.readouterr()
        return printed.out if status == 0 else printed.err

    return run


@pytest.fixture
def call(flowers, monkeypatch):
    """Runs the command with another function in the place of the one that works; returns its arguments."""

    def run(module, function, *words):
        given = []
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{function: lambda *values: given.extend(values)}))
        flowers(*words)
        return given

    return run


def run_python(*words, folder=PROJECT):
    environment = {"PYTHONPATH": str(PROJECT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_help_lists_the_commands_and_loads_no_tool(tmp_path):
    program = """
import sys
from flows.cli import main
try:
    main(["--help"])
finally:
    print("loaded:", *{"torch", "prefect", "mlflow", "dvc", "pandas", "pydantic"} & set(sys.modules))
"""
    done = run_python("-c", program, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {line.split()[1] for line in done.stdout.splitlines() if line.startswith("│")} >= COMMANDS
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_has_a_help_text(flowers, command):
    shown = [line.strip("│ \n") for line in flowers(command, "--help").splitlines() if line.startswith("│")]
    for line in shown:
        _, gap, text = line.partition("  ")
        assert gap and text.strip(), line


def test_profiles_are_those_of_the_folder():
    done = run_python("-m", "flows.cli", "run", "--profile", "rose")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert all(f'"{path.stem}"' in done.stderr for path in (PROJECT / "profiles").glob("*.yaml"))


@pytest.mark.parametrize(
    ("words", "module", "function", "given"),
    [
        (["run"], "flows.pipeline", "run_by_hand", [None, [], False]),
        (
            ["run", "--profile", "quickstart", "--set", "train.seed=1", "--set", "sample.classes=[a, b]", "--isolated"],
            "flows.pipeline", "run_by_hand", ["quickstart", ["train.seed=1", "sample.classes=[a, b]"], True],
        ),
        (
            ["sweep", "--grid", "a=[0,1]", "--grid", "b=[1]", "--set", "c=2", "--name", "x", "--max-concurrent", "3"],
            "flows.sweep", "run_by_hand", [None, ["a=[0,1]", "b=[1]"], None, ["c=2"], "x", 3],
        ),
        (
            ["sweep", "--overrides", "[{train.seed: 1}]"],
            "flows.sweep", "run_by_hand", [None, [], "[{train.seed: 1}]", [], None, 2],
        ),
        (
            ["up", "--host", "::", "--mlflow-port", "5100"],
            "flows.service.up", "serve_until_interrupted", [Addresses("::", 4200, 5100)],
        ),
        (["serve", "--port", "6001"], "tracking.serve", "serve", ["127.0.0.1", 6001, None, 600]),
        (["export", "build/model", "out"], "flows.drawing", "export_model", ["build/model", Path("out"), None]),
        (
            ["draw", "3", "--class", "rose", "--class", "7", "--eta", "1"],
            "flows.drawing", "draw_images",
            [
                3, "models:/flowers-ddpm@champion", Path("drawn"), None, ("rose", "7"),
                {"seed": 0, "sampler": "ddim", "steps": 50, "eta": 1.0, "guidance": 1.0},
            ],
        ),
    ],
)  # fmt: skip
def test_words_become_arguments(call, monkeypatch, words, module, function, given):
    monkeypatch.chdir(PROJECT)
    assert call(module, function, *words) == given


@pytest.mark.parametrize(
    ("words", "decisive"),
    [
        (["draw", "0"], "flowers draw: .*N.* >= 1"),
        (["draw", "3", "--eta", "1.5"], "flowers draw: .*--eta.* <= 1"),
        (["draw", "3", "--seed", "-1"], "flowers draw: .*--seed.* >= 0"),
        (["draw", "3", "--sampler", "no_such"], 'flowers draw: .*"no_such".*"ddim"'),
        (["draw", "three"], "flowers draw: .*three"),
        (["draw"], "flowers draw: .*N"),
        (["up", "--prefect-port", "0"], "flowers up: .*--prefect-port.* >= 1"),
        (["up", "--mlflow-port", "65536"], "flowers up: .*--mlflow-port.* <= 65535"),
        (["sweep", "--max-concurrent", "65"], "flowers sweep: .*--max-concurrent.* <= 64"),
        (["compare", "--last", "0"], "flowers compare: .*--last.* >= 1"),
        (["run", "--sets", "a=1"], "flowers run: .*--sets"),
        (["serve", "--model", ""], "flowers serve: .*--model.*empty"),
        (["promote", "1", "--model", ""], "flowers promote: .*--model.*empty"),
        (["runs"], 'flowers: .*"runs".*"run"'),
    ],
)
def test_a_word_that_cannot_be_used_is_one_line(flowers, words, decisive):
    said = flowers(*words, status=2)
    assert len(said.splitlines()) == 1
    assert re.match(decisive, said), said


def test_outside_the_project_the_error_says_where_it_has_to_be(flowers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert flowers("run", status=1).startswith(f"flowers run: {tmp_path} holds no dvc.yaml")


PRINTING = """
import sys, types
from flows.cli import main
sys.modules["tracking.serve"] = types.SimpleNamespace(serve=lambda *_: print("served"))
main(["serve"])
"""


def test_output_that_nobody_reads_or_no_disk_takes_is_no_traceback():
    read, write = os.pipe()
    os.close(read)
    full = os.open("/dev/full", os.O_WRONLY)
    for output, status, said in ((write, 141, ""), (full, 1, "flowers serve: [Errno 28] No space left on device\n")):
        command = [sys.executable, "-c", PRINTING]
        done = subprocess.run(command, cwd=PROJECT, stdout=output, stderr=subprocess.PIPE, text=True, check=False)
        os.close(output)
        assert (done.returncode, done.stderr) == (status, said)


def test_a_user_whom_the_system_does_not_know_has_a_name(flowers, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    flowers("--help")
    assert getpass.getuser() == str(os.getuid())


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (FlowersError("no champion"), 1, "flowers serve: no champion\n"),
        (IsADirectoryError(21, "Is a directory", "drawn"), 1, "flowers serve: drawn: Is a directory\n"),
        (KeyboardInterrupt(), 130, "flowers serve: interrupted\n"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "flowers serve: interrupted\n"),
    ],
)
def test_an_error_is_a_message_and_a_status(flowers, monkeypatch, error, status, said):
    def fail(*_):
        raise error

    monkeypatch.setitem(sys.modules, "tracking.serve", SimpleNamespace(serve=fail))
    assert flowers("serve", status=status) == said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_first_imports_is_one_line(number):
    # The program sends it to itself where the command imports its first library.
    program = (
        f"import sys, os; sys.argv[0] = 'flowers'; import flows; os.kill(os.getpid(), {number:d}); import flows.cli"
    )
    done = run_python("-c", program)
    said = f"flowers: interrupted by {number.name} before anything began\n"
    assert (done.returncode, done.stderr) == (128 + number, said)


INTERRUPTED = "import os; os.kill(os.getpid(), {:d})"
TURNED_INTO_ANOTHER_ERROR = """
try:
    import os; os.kill(os.getpid(), {:d})
except BaseException:
    raise ValueError("as pydantic does while Prefect reads its settings") from None
"""


@pytest.mark.parametrize(
    ("number", "library"), [(signal.SIGTERM, INTERRUPTED), (signal.SIGINT, TURNED_INTO_ANOTHER_ERROR)]
)
def test_a_signal_during_the_imports_of_a_command_is_one_line(number, library, tmp_path):
    (tmp_path / "prefect.py").write_text(library.format(number))
    (tmp_path / "dvc.yaml").touch()
    done = run_python("-c", "import sys; sys.argv[1:] = ['run']; import flows.cli; flows.cli.main()", folder=tmp_path)
    assert (done.returncode, done.stderr) == (128 + number, "flowers run: interrupted\n")


def test_a_missing_package_is_one_line_that_names_the_extra(flowers, monkeypatch):
    monkeypatch.chdir(PROJECT)
    for name in [name for name in sys.modules if name.partition(".")[0] == "flows" and name != "flows.cli"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prefect", None)
    said = flowers("run", status=1)
    assert said.startswith("flowers run: ") and said.endswith("pip install 'flowers-ddpm[pipeline]'\n")


def test_another_checkout_runs_its_own_code(tmp_path):
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows/__init__.py").touch()
    (tmp_path / "flows/cli.py").write_text("import sys; print('own code:', *sys.argv[1:])")
    program = (
        "import sys; sys.argv[1:] = ['run', '--isolated']; sys.path.remove(''); import flows.cli; flows.cli.main()"
    )
    assert run_python("-c", program, folder=tmp_path).stdout == "own code: run --isolated\n"


def test_compared_runs_are_printed_written_and_linked(flowers, recorded, tmp_path, monkeypatch):
    asked, runs = [], recorded({"kid": 0.5, "rate": "a"}, {"kid": 0.25, "rate": "b"})
    monkeypatch.setattr("tracking.search.choose_runs", lambda *choice: asked.append(choice) or runs)
    path = tmp_path / "table.csv"
    printed = flowers("compare", "3f2a", "wise-owl", "--sweep", "owls", "--last", "2", "--csv", str(path))
    assert asked == [(("3f2a", "wise-owl"), "owls", 2)]
    assert printed.index("run-2") < printed.index("run-1") and "rate" in printed and "MLflow: http" in printed
    assert pd.read_csv(path)["name"].tolist() == ["run-2", "run-1"]
    for other in (str(path / "x.csv"), ""):
        assert "cannot be written" in flowers("compare", "--csv", other, status=1)
    monkeypatch.setattr("tracking.search.choose_runs", lambda *_: recorded())
    assert "MLflow has no runs yet" in flowers("compare", status=1)


def test_a_run_ends_with_the_servers_in_force_or_the_commands_that_start_them(monkeypatch):
    for name, address in (("PREFECT_API_URL", "http://box:4711/api"), ("MLFLOW_TRACKING_URI", "http://box:5711")):
        monkeypatch.setenv(name, address)
    assert [line.split()[-1] for line in list_pages()] == ["http://box:5711", "http://box:4711"]
    monkeypatch.delenv("PREFECT_API_URL")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [line.split()[:2] for line in list_pages()] == [["make", "mlflow"], ["make", "prefect"]]


def test_a_version_is_promoted_by_hand(flowers, monkeypatch):
    monkeypatch.setattr("tracking.registry.Registry", lambda name: name)
    monkeypatch.setattr("tracking.promotion.promote_by_hand", lambda registry, number: f"{registry} {number}")
    assert flowers("promote", "4", "--model", "tulips") == "promote: tulips 4\n"


def test_images_are_drawn_into_files_and_a_grid(flowers, folder, model):
    printed = flowers("draw", "11", "--model", "build/model", "--steps", "2", "--seed", "5", "--weights", "raw")
    assert "11 images" in printed
    names = [f"{number:02}.png" for number in range(11)]
    assert sorted(path.name for path in Path("drawn").iterdir()) == [*names, "drawn.json", "grid.png"]
    images = [np.asarray(Image.open(f"drawn/{name}")) for name in names]
    assert {image.shape for image in images} == {(16, 16, 3)}
    record = json.loads(Path("drawn/drawn.json").read_text())
    assert (record["model"], record["weights"], record["seed"], record["steps"]) == ("build/model", "raw", 5, 2)
    # Image i depends on the seed and on i alone.
    flowers("draw", "2", "--model", "build/model", "--steps", "2", "--seed", "5", "--weights", "raw", "--output", "two")
    assert np.array_equal(np.asarray(Image.open("two/1.png")), images[1])
    assert np.asarray(Image.open("two/grid.png")).shape[0] < np.asarray(Image.open("drawn/grid.png")).shape[0]


def test_classes_can_be_asked_for(flowers, folder, conditional_model):
    flowers("draw", "2", "--model", "build/model", "--steps", "2", "--class", "8", "--class", "01")
    flowers("draw", "2", "--model", "build/model", "--steps", "2", "--output", "all")
    assert json.loads(Path("drawn/drawn.json").read_text())["classes"] == ["rose", "01"]
    assert not np.array_equal(np.asarray(Image.open("drawn/0.png")), np.asarray(Image.open("all/0.png")))


@pytest.mark.parametrize(
    ("words", "decisive"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--model", "roses:/red"], "roses:"),
        (["--model", "build/model", "--class", "rose"], "classes"),
        (["--model", "build/model", "--steps", "9999"], "9999"),
        (["--model", "build/model", "--output", "build"], "--output"),
        (["--model", "build/model", "--output", "build/model/config.json/x"], "config.json/x"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_and_no_file(flowers, folder, model, words, decisive):
    said = flowers("draw", "2", *words, status=1)
    assert said.startswith("flowers draw: ") and len(said.splitlines()) == 1 and decisive in said
    assert [path.name for path in folder.iterdir()] == ["build"]


def test_a_model_is_exported_once(flowers, folder, model):
    assert "DDPMPipeline" in flowers("export", "build/model", "out")
    assert Path("out/model_index.json").is_file()
    assert flowers("export", "build/model", "out", status=1).startswith("flowers export: out exists")
    assert "nowhere" in flowers("export", "nowhere", "other", status=1)
