"""Promises of the README: its code runs, its commands and files exist."""

import re
from pathlib import Path

import pytest

README = Path("README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def test_the_ten_lines_of_the_library_run(capsys):
    (code,) = [block for language, block in BLOCKS if language == "python"]
    shortened = code.replace("num_steps=100", "num_steps=2").replace("num_sampling_steps=50", "num_sampling_steps=2")
    assert shortened.count("steps=2") == 2
    names = {}
    exec(compile(shortened, "README.md", "exec"), names)
    assert names["flowers"].shape == (4, 3, 32, 32)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2"]


def test_the_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", Path("Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z]+)", README, re.MULTILINE))
    assert named
    assert named <= targets


def test_the_pictures_exist():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert pictures
    assert [picture for picture in pictures if not Path(picture).is_file()] == []


@pytest.mark.parametrize("name", sorted(set(re.findall(r"--set '?([a-z_0-9.]+)=", README))))
def test_the_parameters_named_exist(name):
    from contract.nesting import flatten
    from contract.params import read_params

    params = read_params()
    sections = ("download", "preprocess", "reference", "train", "sample", "evaluate", "register")
    assert name in flatten({section: params.section(section) for section in sections})
