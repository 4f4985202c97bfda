"""``python -m benchmarks.measure.speed``: how fast environments, agents and cells are.

Ratios to CartPole-v1 say more than times: both run in one process, in turns. ``--before`` measures
the code of another commit too, on this machine and in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.measure.agents import agent_speed, cell_speed
from benchmarks.measure.environments import (
    LANES,
    SCALAR,
    VECTOR,
    cartpole_ratios,
    environment_speed,
    growth_speed,
)
from benchmarks.report.tables import insert_between_markers, markdown_table
from benchmarks.run.pool import ONE_THREAD
from benchmarks.run.runner import provenance
from benchmarks.run.store import write_text
from llmqueue_gym.errors import UsageError

HORIZON = 5000
BEFORE_KERNELS = "79d968f"
"""The last commit whose environments were written in NumPy."""

_SMALL = "d=5 N=5 K=2 median us"
TARGETS = {
    SCALAR: 0.55,
    VECTOR: 0.40,
    f"LLMQueue-v0 x{LANES} (one instance) / CartPole-v1 x{LANES}": 0.50,
    f"Q-UCB {_SMALL}": 5.0,
    f"LinUCB {_SMALL}": 12.0,
    f"OFU-MNL+ {_SMALL}": 20.0,
    f"ACQB {_SMALL}": 40.0,
    "ACQB d=384 N=11 K=2 mean us": 400.0,
    "StageRoute median us": 4.0,
    "a step of a queueing cell beside its agent, us": 22.0,
}
"""What is aimed at: ratios at least, microseconds at most."""


# --- the guard ------------------------------------------------------------------------------------


def write_baseline(path: Path, ratios: Mapping[str, float], command: str) -> None:
    """Write the ratios that the guard compares with, and where they come from."""
    rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
    content = {"ratios": rounded, "provenance": provenance(command)}
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_baseline(path: Path) -> dict[str, float]:
    """Read the committed ratios.

    Raises
    ------
    ValueError
        If the file is missing, damaged or holds no positive ratios.
    """
    fix = f"write it anew with `python -m benchmarks.measure.speed --write-baseline {path}`"
    try:
        ratios = json.loads(path.read_text(encoding="utf-8"))["ratios"]
        baseline = {str(name): float(ratio) for name, ratio in ratios.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no speed baseline ({error!r}); {fix}") from error
    if not baseline or not all(0 < ratio < np.inf for ratio in baseline.values()):
        raise UsageError(f"{path} holds no positive ratios; {fix}")
    return baseline


def slowdowns(baseline: Mapping[str, float], measured: Mapping[str, float]) -> list[str]:
    """Say which ratios fell below half of the committed ones.

    Raises
    ------
    ValueError
        If the two do not name the same ratios.
    """
    if baseline.keys() != measured.keys():
        raise UsageError(
            f"the baseline holds {sorted(baseline)} and the bench measures {sorted(measured)}; "
            "write the baseline anew with --write-baseline"
        )
    return [
        f"{name}: {measured[name]:.3f} is below half of {ratio:.3f}"
        for name, ratio in baseline.items()
        if not measured[name] >= ratio / 2
    ]


# --- output ---------------------------------------------------------------------------------------


def figures(seconds: float, horizon: int) -> dict[str, float]:
    """Measure everything that is printed."""
    return {
        **environment_speed(seconds),
        **growth_speed(seconds),
        **agent_speed(horizon),
        **cell_speed(),
    }


def figures_before(commit: str, seconds: float, horizon: int) -> dict[str, float]:
    """Let the code of another commit measure itself, as far as it can.

    Raises
    ------
    UsageError
        If there is no such commit, or its code cannot measure itself.
    """
    root = Path(__file__).resolve().parents[2]
    with TemporaryDirectory() as name:
        folder = Path(name)
        archive = folder / "code.tar"
        command = ["git", "archive", "--output", str(archive), commit, "benchmarks"]
        done = subprocess.run(
            [*command, "baselines", "llmqueue_gym"], cwd=root, capture_output=True, check=False
        )
        if done.returncode == 0:
            with tarfile.open(archive) as code:
                code.extractall(folder, filter="data")
            rooms = (folder / "benchmarks/measure/speed.py").exists()
            module = "benchmarks.measure.speed" if rooms else "benchmarks.speed"
            command = [sys.executable, "-m", module, "--json", "--seconds", str(seconds)]
            done = subprocess.run(
                [*command, "--horizon", str(horizon)],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(folder)},
                capture_output=True,
                check=False,
            )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").splitlines() or ["it says nothing"]
        raise UsageError(f"--before {commit!r} cannot be measured: {lines[-1]}")
    found: dict[str, float] = json.loads(done.stdout)["figures"]
    return found


def comparison(now: Mapping[str, float], before: Mapping[str, float]) -> list[list[str]]:
    """Rows: figure, before, now, target."""
    rows = [["figure", "before", "now", "target"]]
    for name, value in now.items():
        target = (
            "" if name not in TARGETS else f"{'<=' if ' us' in name else '>='} {TARGETS[name]:g}"
        )
        old = _short(before[name]) if name in before else ""
        rows.append([name, old, _short(value), target])
    return rows


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def page(text: str, rows: Sequence[Sequence[str]], measured: Mapping[str, Any]) -> str:
    """Return a page with the rows of a comparison, and what measured them, between its markers."""
    versions = ", ".join(f"{name} {measured[name]}" for name in ("python", "numpy", "gymnasium"))
    table = markdown_table(rows[0], rows[1:])
    command, commit, machine = (measured[name] for name in ("command", "commit", "machine"))
    source = f"`{command}` at commit {commit}: {versions}, on {machine}."
    return insert_between_markers(text, "speed", f"{source}\n\n{table}")


def _restart_with_one_thread() -> None:
    """Run this program again with one BLAS thread, as the workers of a benchmark run do."""
    if any(os.environ.get(name) != "1" for name in ONE_THREAD):
        environment = os.environ | dict.fromkeys(ONE_THREAD, "1")
        arguments = [sys.executable, "-m", "benchmarks.measure.speed", *sys.argv[1:]]
        raise SystemExit(subprocess.run(arguments, env=environment, check=False).returncode)


def main() -> None:
    """Measure and print a table, or what the options say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measure.speed", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per environment measured")
    parser.add_argument("--horizon", type=int, default=HORIZON, help="slots of an agent's run")
    parser.add_argument(
        "--before",
        metavar="COMMIT",
        nargs="?",
        const=BEFORE_KERNELS,
        help=f"measure this commit too, by default {BEFORE_KERNELS}, the last one without kernels",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument(
        "--guard",
        type=Path,
        metavar="FILE",
        help="fail if a ratio to CartPole-v1 is below half of the one in this baseline",
    )
    output.add_argument(
        "--write-baseline", type=Path, metavar="FILE", help="measure and write the baseline"
    )
    output.add_argument(
        "--page", type=Path, metavar="FILE", help="write the table into this page, docs/speed.md"
    )
    options = parser.parse_args()
    if not options.seconds > 0 or options.horizon < 100:
        parser.error("--seconds must be positive and --horizon at least 100")
    _restart_with_one_thread()
    command = " ".join(["python -m benchmarks.measure.speed", *sys.argv[1:]])
    if options.write_baseline:
        write_baseline(options.write_baseline, cartpole_ratios(options.seconds), command)
    elif options.guard:
        raise SystemExit(guard(options.guard, options.seconds))
    else:
        now = figures(options.seconds, options.horizon)
        before = (
            figures_before(options.before, options.seconds, options.horizon)
            if options.before
            else {}
        )
        if options.json:
            document = {"figures": now, "before": before, "provenance": provenance(command)}
            print(json.dumps(document, indent=2))
            return
        rows = comparison(now, before)
        if options.page:
            text = options.page.read_text(encoding="utf-8")
            write_text(options.page, page(text, rows, provenance(command)))
        width = max(map(len, now))
        for name, *cells in rows:
            print(f"{name:<{width}}", *(f"{cell:>14}" for cell in cells))


def guard(path: Path, seconds: float) -> int:
    """Measure and compare; return the exit code: 0, 1 if a ratio is too low, 2 if none is known."""
    try:
        baseline = read_baseline(path)
        measured = cartpole_ratios(seconds)
        slow = slowdowns(baseline, measured)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for name, ratio in measured.items():
        print(f"{name}: {ratio:.3f} (committed {baseline[name]:.3f})")
    for message in slow:
        print(message, file=sys.stderr)
    return 1 if slow else 0


if __name__ == "__main__":
    main()
