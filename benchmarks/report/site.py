"""The public board: a static site of all suites, their agents and what was handed in.

A suite's page is the report's (`benchmarks.report.page`) with its tasks in files of their own; the
front page and one an agent are plain HTML. Nothing is fetched: it works from the disk and below any
path of a server.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from plotly.offline import get_plotlyjs

from benchmarks.report.figure import file_name
from benchmarks.report.page import (
    page_data,
    rendered,
    script_safe,
    script_text,
    split_page,
    template_text,
)
from benchmarks.report.site_pages import Site, Suite
from benchmarks.run.store import write_text
from benchmarks.score.export import ExportedRun
from benchmarks.score.scoring import load_board
from benchmarks.score.signing import KEYS, read_keys, signer
from benchmarks.submissions.beside import Beside
from benchmarks.submissions.entry import cells_path
from benchmarks.submissions.folder import Entry, read_folder
from benchmarks.terminal import say
from llmqueue_gym.errors import UsageError

COMMITTED = Path("benchmarks/results")

PLOTLY = "plotly.js"

MOST_BYTES = 500_000
"""Of each page and part, which a visitor waits for; plotly.js, loaded once, is ten times that. It
is the pairs of agents that grow fast, with their square: 57 agents take 200 kB."""

_SUITE_SCRIPTS = ("parts", "charts", "tables", "views", "load", "routes")
_PLAIN_SCRIPTS = ("parts", "charts", "tables", "load", "site")


def write_board(
    out: Path, results: Sequence[Path], submissions: Path, repository: str | None = None
) -> None:
    """Read exports and submissions, and write the board of them."""
    if repository is not None and not repository.startswith("https://"):
        raise UsageError(f"--repository {repository!r} must read https://HOST/OWNER/NAME")
    entries = read_folder(submissions)
    suites = read_suites(results or committed(), entries, read_keys(submissions / KEYS))
    write_site(out, Site(suites, entries, repository))
    sizes = {path: path.stat().st_size for path in out.rglob("*") if path.is_file()}
    largest = max(sizes.keys() - {out / PLOTLY}, key=lambda path: (sizes[path], path))
    if sizes[largest] > MOST_BYTES:
        raise UsageError(
            f"{largest} has {sizes[largest]:,} bytes, and no page may have more than "
            f"{MOST_BYTES:,}: split the suite, or give it fewer agents"
        )
    say(
        f"wrote {out / 'index.html'} ({len(suites)} suites, {sum(sizes.values()) / 1e6:.1f} MB in "
        f"all; the largest page, {largest.name}, has {sizes[largest] / 1e3:.0f} kB)"
    )


def committed() -> list[Path]:
    """Return the committed exports; folders among them hold those of earlier releases."""
    found = sorted(COMMITTED.glob("*/*.json.gz")) + sorted(COMMITTED.glob("*.json.gz"))
    if not found:
        raise UsageError(f"no results below {COMMITTED}/: name the exports to show")
    return found


def read_suites(
    results: Sequence[Path], entries: Sequence[Entry], known: Mapping[str, str]
) -> list[Suite]:
    """Read exports, suites by name: those of one are its releases, oldest first.

    ``known`` are public keys.
    """
    found: dict[str, list[ExportedRun]] = {}
    for path in results:
        export = ExportedRun(path)
        run = export.load_run()
        name = f"{run['suite']}-held-out" if "held_out" in run else run["suite"]
        found.setdefault(name, []).append(export)
    suites = []
    for name, exports in sorted(found.items()):
        *earlier, last = exports
        today, signature = Beside(last, entries), last.check_signature()
        boards = (*map(load_board, earlier), load_board(today))
        who = signer(signature, known) if signature else "nobody"
        suites.append(Suite(name, last.root, boards, today.entries, who))
    return suites


def write_site(out: Path, site: Site) -> None:
    """Write all pages and what they load into a folder."""
    write_text(out / "style.css", template_text("page.css"))
    write_text(out / PLOTLY, f'{get_plotlyjs()}\nwindow.dispatchEvent(new Event("plotly"));\n')
    write_text(out / "suite.js", script_text(_SUITE_SCRIPTS))
    write_text(out / "board.js", script_text(_PLAIN_SCRIPTS))
    write_text(out / "index.html", rendered("home", root="", code="board", **site.home()))
    for suite in site.suites:
        _write_suite(out / "suites", site, suite)
    for label, path in site.pages.items():
        page = rendered("agent", root="../", code="board", **site.agent(label))
        write_text(out / path, page)
    for entry in site.entries.values():
        for file in (entry.path, cells_path(entry.path)):
            shutil.copyfile(file, out / "submissions" / file.name)


def _write_suite(folder: Path, site: Site, suite: Suite) -> None:
    page = page_data(suite.today)
    for name, part in split_page(page, file_name(suite.name)).items():
        write_text(folder / f"{name}.js", f"llmqueue({script_safe(name)}, {script_safe(part)});\n")
    page |= {
        "base": "",
        "pages": {label: f"../{path}" for label, path in site.pages.items()},
        "submissions": {label: site.submission(label) for label in suite.entries},
    }
    context = {"root": "../", "code": "suite", "suite": suite.name, "data": script_safe(page)}
    write_text(folder / f"{file_name(suite.name)}.html", rendered("index", **context))
