"""The command itself: help, errors in one line, exit codes, plumbing of the workstation verbs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import edge_sdk
from edge_sdk import cli
from edge_sdk.cli import app
from edge_sdk.cli.evaluate import parse_intervals
from edge_sdk.cli.output import plain
from edge_sdk.errors import DependencyError, RecipeError
from edge_sdk.settings import Settings

VERBS = [
    "demo", "train", "profile", "distill", "export", "calibrate", "lint", "build", "run", "adapt", "evaluate", "front",
    "compare",
    "bench", "tune",
    "keygen", "sign", "install", "slots", "doctor",
]  # fmt: skip


def invoke(*args):
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_at_most_15_options(verb):
    result = invoke(verb, "--help")
    assert result.exit_code == 0
    function = inspect.unwrap(getattr(getattr(cli, verb), verb))
    assert (function.__doc__ or "").split("\n")[0].rstrip(".:")[:30] in " ".join(result.stdout.split())
    assert 0 < len(inspect.signature(function).parameters) <= 15


def test_the_command_names_exactly_its_verbs_in_the_order_of_the_work():
    listed = invoke("--help").stdout.split("Commands:")[1]
    assert [line.split()[0] for line in listed.splitlines() if line.strip()] == VERBS


def test_version():
    result = invoke("--version")
    assert (result.exit_code, result.stdout.strip()) == (0, f"edge-sdk {edge_sdk.__version__}")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "b", "s", "--fps", "3"], "No such option"),
        (["run", "b"], "SOURCE: expected on the command line or in a recipe"),
        (["adopt"], "No such command"),
        (["adapt"], "BUNDLE and SOURCE: expected on the command line or in a recipe"),
        (["run", "b", "s", "--interval", "0"], "--interval"),
        (["train", "r.yaml", "--device", "tpu"], "--device"),
        (["demo", "--seed", "-1"], "--seed"),
    ],
)
def test_what_the_command_does_not_know_is_refused(args, message):
    result = invoke(*args)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["train", "{tmp}/no.yaml"], ["recipe: expected a file at", "no.yaml"]),
        (["distill", "{tmp}/no.yaml"], ["recipe: expected a file at"]),
        (["profile", "{tmp}/no.yaml"], ["expected a file, or a prepared folder", "no.yaml"]),
        (["export", "{tmp}/no.yaml"], ["recipe: expected a file at"]),
        (["front", "{tmp}/no.yaml"], ["recipe: expected a file at"]),
        (["run", "{tmp}/no", "synthetic:shapes"], ["bundle: expected a folder at", "/no"]),
        (["evaluate"], ["BUNDLE and SOURCE: expected", "edge-sdk evaluate BUNDLE SOURCE"]),
        (["evaluate", "b"], ["SOURCE: expected"]),
        (["evaluate", "b", "s", "--intervals", "5;10"], ["--intervals: expected whole numbers", "5;10"]),
        (
            ["run", "b", "s", "--interval", "3", "--schedule", "x.yaml"],
            ["--interval and --schedule", "got both"],
        ),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(args, parts, tmp_path):
    result = invoke(*(arg.replace("{tmp}", str(tmp_path)) for arg in args))
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("edge-sdk: error: ")
    for part in parts:
        assert part in line


def test_an_error_of_several_lines_is_printed_as_one(monkeypatch):
    _let_doctor_raise(monkeypatch, DependencyError("a\n  b", hint="c\nd"))
    assert invoke("doctor").stderr == "edge-sdk: error: a b c d\n"


def test_an_interrupt_is_one_line_and_exit_code_130(monkeypatch):
    _let_doctor_raise(monkeypatch, KeyboardInterrupt())
    result = invoke("doctor")
    assert result.exit_code == 130
    assert result.stderr == "edge-sdk: interrupted; files are either whole or not there.\n"


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch, capsys):
    _let_doctor_raise(monkeypatch, ZeroDivisionError("boom"))
    monkeypatch.setattr(sys, "argv", ["edge-sdk", "doctor"])
    with pytest.raises(SystemExit) as exit_info:
        cli.main()
    assert exit_info.value.code == 70
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("Traceback")
    assert lines[-2] == "ZeroDivisionError: boom"
    assert lines[-1].startswith("edge-sdk: this is a defect of edge_sdk")


def test_the_module_runs_as_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "edge_sdk", "run", "no-such-bundle", "synthetic:shapes"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("edge-sdk: error: bundle: expected a folder at no-such-bundle")


def test_importing_the_command_loads_nothing_heavy():
    heavy = {"torch", "onnx", "onnxruntime", "cv2", "numpy"}
    code = f"import sys, edge_sdk.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class _Loop(Settings):
    accelerator: str = "auto"


class _Recipe(Settings):
    out: Path
    loop: _Loop = _Loop()


@dataclass(frozen=True)
class _Report:
    checkpoint: str
    figures: dict


@pytest.fixture
def stage(monkeypatch):
    """Stands in for edge_sdk.distill, so that no torch is loaded; records what the verb passed."""
    seen = {}

    def work(recipe, *, progress, resume):
        progress.update("work", 1, 1, loss=0.5)
        seen.update(recipe=recipe, resume=resume)
        return _Report(str(recipe.out / "model.pt"), {"loss": 0.5})

    module = types.ModuleType("edge_sdk.distill")
    for name, value in {
        "TrainRecipe": _Recipe,
        "DistillRecipe": _Recipe,
        "train_teacher": work,
        "distill": work,
    }.items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "edge_sdk.distill", module)
    monkeypatch.setattr(edge_sdk, "distill", module, raising=False)
    monkeypatch.setattr("edge_sdk.cli.stage.require", lambda package, purpose: None)
    return seen


@pytest.mark.parametrize("verb", ["train", "distill"])
def test_options_replace_the_recipes_values(verb, stage, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("out: from-recipe\nloop: {accelerator: cuda}\n")
    result = invoke(verb, recipe, "--out", tmp_path / "o", "--device", "cpu", "--no-resume", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"checkpoint": str(tmp_path / "o/model.pt"), "figures": {"loss": 0.5}}
    assert stage["recipe"] == _Recipe(out=tmp_path / "o", loop=_Loop(accelerator="cpu"))
    assert stage["resume"] is False


@pytest.mark.parametrize("verb", ["train", "distill"])
def test_without_options_the_recipe_stands_and_training_resumes(verb, stage, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("out: from-recipe\nloop: {accelerator: cuda}\n")
    result = invoke(verb, recipe)
    assert result.exit_code == 0, result.output
    assert stage["recipe"] == _Recipe(out=Path("from-recipe"), loop=_Loop(accelerator="cuda"))
    assert stage["resume"] is True
    assert "from-recipe/model.pt" in result.stdout
    assert "work: 1/1" in result.stderr


def test_other_ranks_of_a_torchrun_print_nothing(stage, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("out: o\n")
    monkeypatch.setenv("RANK", "1")
    result = invoke("train", recipe, "--json")
    assert (result.exit_code, result.output) == (0, "")


def test_an_unknown_recipe_key_is_named(stage, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("out: o\nlopo: {}\n")
    result = invoke("train", recipe)
    assert result.exit_code == 2
    assert "unknown key 'lopo', did you mean 'loop'?" in result.stderr


def test_a_missing_package_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("out: o\n")
    result = invoke("train", recipe)
    assert result.exit_code == 2
    assert "edge-sdk train needs the package torch" in result.stderr
    assert "edge_sdk[workstation]" in result.stderr


def test_intervals_are_parsed():
    assert parse_intervals("5,10") == (5, 10)
    with pytest.raises(RecipeError, match="whole numbers such as 5,10, got '5,x'"):
        parse_intervals("5,x")


def test_plain_turns_results_into_json_values_and_refuses_what_it_does_not_know():
    import numpy as np

    value = {
        "p": Path("a"),
        "n": np.float32(0.5),
        "d": _Report("c", {"x": (1, 2)}),
        "s": _Recipe(out=Path("o")),
    }
    assert plain(value) == {
        "p": "a",
        "n": 0.5,
        "d": {"checkpoint": "c", "figures": {"x": [1, 2]}},
        "s": {"out": "o", "loop": {"accelerator": "auto"}},
    }
    with pytest.raises(TypeError, match="cannot write object as JSON"):
        plain(object())


def _let_doctor_raise(monkeypatch, error):
    def diagnose():
        raise error

    monkeypatch.setattr("edge_sdk.doctor.diagnose", diagnose)
