"""Checks of arguments, and what the command makes of errors: a line, or a trace of a fault."""

import pytest

from llmqueue_gym import checks
from llmqueue_gym.errors import MissingPackageError, UsageError


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True, float("nan")])
def test_a_count_is_a_whole_number_of_at_least_its_minimum(value):
    with pytest.raises(UsageError, match=r"^lanes=.* must be an integer of at least 1$"):
        checks.count("lanes", value)


def test_a_number_is_a_float_of_its_interval_however_many_digits_it_has():
    assert checks.number("load", 1, "(0, inf)") == 1.0
    assert checks.number("timeout", 10**400, "(0, inf]") == float("inf")
    for value in (10**400, -(10**400), float("nan"), True, "1", None):
        with pytest.raises(UsageError, match=r"^load=.* must be a number in \(0, inf\)$"):
            checks.number("load", value, "(0, inf)")


def test_a_choice_names_the_nearest():
    assert checks.choice("reward", "own", ("own", "shared")) == "own"
    with pytest.raises(UsageError, match=r"^reward 'sharde' is not known; did you mean 'shared'\?"):
        checks.choice("reward", "sharde", ("own", "shared"))
    with pytest.raises(UsageError, match=r"did you mean 'ACQB'\?"):
        checks.choice("agent", "acqb", ("eps-acqb", "ACQB"))
    with pytest.raises(UsageError, match=r"^reward 3 is not known; known: own, shared$"):
        checks.choice("reward", 3, ("own", "shared"))


@pytest.mark.parametrize(
    ("error", "is_mistake"),
    [
        (UsageError("seeds=0: at least 1"), True),
        (MissingPackageError("needs polars"), True),
        (FileNotFoundError("no such file"), True),
        (ValueError("cannot reshape"), False),
        (ImportError("libx.so is missing"), False),
        (ModuleNotFoundError("no module"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_command_keeps_the_traceback_of_a_fault(bench, monkeypatch, capsys, error, is_mistake):
    def fail(prog_name):
        raise error

    monkeypatch.setattr("benchmarks.cli.build_app", lambda: fail)
    if is_mistake:
        assert bench("list") == 2
        assert capsys.readouterr().err == f"llmqueue-bench: {error}\n"
    else:
        with pytest.raises(type(error)):
            bench("list")
