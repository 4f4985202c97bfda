"""What runs of an agent's folder is what its digests are of: nothing goes unseen."""

import os
import py_compile
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import cache_from_source
from pathlib import Path

import numpy as np
import pytest

from benchmarks.plan.cells import make_plan
from benchmarks.plan.suite import parse_suite
from benchmarks.run.engines import LocalEngine

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the wall needs POSIX processes")

UNCHECKED = py_compile.PycInvalidationMode.UNCHECKED_HASH
TASK = {"name": "queue", "env": "LLMQueue-v0", "horizon": 5, "kwargs": {"load": 0.8}}
AGENT = """
from baselines.queueing.heuristics import RandomAgent
from source_of_it import helper, said

class Tells(RandomAgent):
    def act(self, observation):
        raise RuntimeError(f"{said} {helper.said}")

said = "source"
"""


def hide_bytecode(source, code, cache=None):
    """Lay bytecode of other code beside a source, of the kind that Python never checks."""
    other = source.with_name("other.txt")
    other.write_text(code)
    cache = cache or cache_from_source(source)
    py_compile.compile(str(other), cache, invalidation_mode=UNCHECKED, doraise=True)
    other.unlink()


@pytest.mark.parametrize("trust", [None, True], ids=["walled", "trusted"])
def test_an_agent_runs_from_its_sources_whatever_bytecode_lies_beside_them(
    tmp_path, monkeypatch, trust
):
    """A digest of sources says nothing of a committed cache, which Python prefers."""
    package = tmp_path / "agents" / "bytecode"
    package.mkdir(parents=True)
    code = AGENT.replace("source_of_it", "bytecode.says")
    sources = {"__init__": "", "says": "from bytecode import helper\nsaid = 'source'\n"}
    sources |= {"helper": "said = 'source'\n", "mine": code}
    for name, text in sources.items():
        (package / f"{name}.py").write_text(text)
        hide_bytecode(package / f"{name}.py", text.replace("'source'", "'cache'"))
    hide_bytecode(package / "mine.py", code.replace('"source"', '"cache"'))
    monkeypatch.syspath_prepend(str(package.parent))
    suite = parse_suite("s", {"seeds": 1, "agents": ["bytecode.mine:Tells"], "task": [TASK]})
    plan = make_plan(suite, trust=trust)
    [cell] = [cell for cell in plan.cells if ":" in cell.spec["agent"]["name"]]
    [outcome] = LocalEngine(1).run([cell])
    assert "RuntimeError: source source" in outcome.payload["error"]


def write_files(folder):
    """Write a file of every kind that an agent's code may read or run."""
    (folder / "sub").mkdir(parents=True)
    for name in ("weights.bin", "sub/weights.bin", "__pycache__/weights.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        np.arange(4.0).tofile(folder / name)
    np.save(folder / "weights.npy", np.zeros(4))
    (folder / "data.txt").write_text("found = 1")
    (folder / "plain.py").write_text("found = 1")
    for name in ("bare.pyc", "__pycache__/bare.pyc"):
        hide_bytecode(folder / "bare.py", "found = 1", str(folder / name))
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        archive.writestr("zipped.py", "found = 1")
    library = next(Path(np.__file__).parent.glob(f"linalg/_umath_linalg*{EXTENSION_SUFFIXES[0]}"))
    shutil.copy(library, folder / library.name)
    (folder / "lines.pth").write_text("import sys; sys.found = 1")
    sqlite3.connect(folder / "rows.db").execute("create table rows (a)")
    return library.name


WAYS = {
    "import plain": ["plain.py"],
    "import bare": ["bare.pyc"],
    "sys.path.append(str(here / 'archive.zip')); import zipped": ["archive.zip"],
    "import _umath_linalg": ["LIBRARY"],
    "import _umath_linalg as one; del sys.modules['_umath_linalg'], one": ["LIBRARY"],
    "import ctypes; ctypes.CDLL(str(here / LIBRARY))": ["LIBRARY"],
    "exec(open('data.txt').read())": ["data.txt"],
    "os.close(os.open('weights.bin', os.O_RDONLY))": ["weights.bin"],
    "np.fromfile('weights.bin')": ["weights.bin"],
    "np.load('weights.npy', mmap_mode='r')": ["weights.npy"],
    "np.memmap(here / 'sub/weights.bin')": ["sub/weights.bin"],
    "import mmap; mmap.mmap(os.open(b'weights.bin', 2), 0)": ["weights.bin"],
    "np.fromfile('__pycache__/weights.bin')": ["__pycache__/weights.bin"],
    "import marshal; marshal.loads(open('__pycache__/bare.pyc', 'rb').read()[16:])": [
        "__pycache__/bare.pyc"
    ],
    "import runpy; runpy.run_path('bare.pyc')": ["bare.pyc"],
    "import site; site.addsitedir(str(here)); assert sys.found": ["lines.pth"],
    "import sqlite3; sqlite3.connect('rows.db')": ["rows.db"],
    "open('new.txt', 'w').close()": [],
    "os.stat('weights.bin')": [],
}


def test_every_way_to_read_a_file_or_run_it_is_noted(tmp_path):
    """One process for each: there is no end to watching a folder."""
    library = write_files(tmp_path / "agent")
    for way, expected in WAYS.items():
        code = f"""
import os, sys
import numpy as np
from pathlib import Path
from benchmarks.plan.agent_files import watch_folder
here, LIBRARY = Path.cwd(), {library!r}
sys.path.append(str(here))
reads = watch_folder(here)
{way}
print(*reads())
"""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path / "agent", capture_output=True, text=True
        )
        assert done.returncode == 0, (way, done.stderr)
        wanted = {library if name == "LIBRARY" else name for name in expected}
        assert wanted <= set(done.stdout.split()), way
        assert len(wanted) or not done.stdout.split(), way


OPTIONAL = ("coverage", "cython", "scikits", "sksparse", "uarray", "pandas", "pyarrow", "torch_xla")
"""Packages that NumPy, numba, SciPy and polars try to import, and live without."""


def test_a_file_named_like_an_optional_package_does_not_run_in_the_judges_process(tmp_path):
    """Where it is not installed, the import would find it in the folder of the agent."""
    folder, ran = tmp_path / "agent", tmp_path / "ran"
    folder.mkdir()
    (folder / "mine.py").write_text(AGENT.replace("source_of_it", "aside"))
    (folder / "aside.py").write_text("helper = said = __import__('aside')")
    for name in OPTIONAL:
        words = f"open({str(ran)!r}, 'a').write({name!r} + ' '); raise ImportError('no')"
        (folder / f"{name}.py").write_text(words)
    (tmp_path / "s.toml").write_text(
        "seeds = 1\nagents = ['mine:Tells']\n[[task]]\nname = 'queue'\nenv = 'LLMQueue-v0'\n"
        "horizon = 5\nkwargs = { load = 0.8 }\n"
    )
    code = """
import sys
from benchmarks.cli import main
sys.argv[1:] = ["run", "../s.toml", "--results", "../results", "--workers", "1"]
main()
"""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],  # as a console script: without the current folder
        cwd=folder,
        env=os.environ | {"PYTHONPATH": root, "NO_COLOR": "1", "COLUMNS": "300"},
        capture_output=True,
        text=True,
    )
    assert "RuntimeError: source" in done.stdout + done.stderr, done.stdout + done.stderr
    assert not ran.exists(), ran.read_text()
