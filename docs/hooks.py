"""Generated pages of the documentation: one per family of agents, from the registry; navigation.

MkDocs calls the hooks, mkdocstrings the extension; see mkdocs.yml.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
from markdown import Markdown
from markdown.extensions import Extension
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from baselines import AgentSpec, registered_agents
from benchmarks.report.figure import agents_svg
from benchmarks.report.tables import agents_markdown
from benchmarks.score.export import open_results
from benchmarks.score.scoring import Board, load_board
from benchmarks.score.task_board import TaskBoard

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
"""The committed results, whose curves stand on the agents' pages."""

_PROBLEMS = {
    "queueing": "Queueing",
    "deployment": "Deployment",
    "rl": "Reinforcement learning",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the agents' pages and the leaderboards into the navigation."""
    entries: list[dict[str, Any]] = []
    for problem, title in _PROBLEMS.items():
        pages = [
            {_title(agents): _path(module)}
            for module, agents in _families().items()
            if module.split(".")[1] == problem
        ]
        if pages:
            entries.append({title: pages})
    assert config.nav is not None
    suites = [path.name.removesuffix(".json.gz") for path in sorted(RESULTS.glob("*.json.gz"))]
    boards = [{suite: f"leaderboards/{suite}.md"} for suite in suites]
    boards.append({"Production routers": "leaderboards/production-routers.md"})
    filled = {"Agents": entries, "Leaderboards": ["leaderboards/index.md", *boards]}
    for item in config.nav:
        item.update({title: pages for title, pages in filled.items() if title in item})
    config.markdown_extensions.append(PlainUnderscores())  # type: ignore[arg-type]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write the agents' pages, each with the curves of a published run if there is one."""
    boards = [load_board(open_results(path)) for path in sorted(RESULTS.glob("*.json.gz"))]
    for module, agents in _families().items():
        path, names = _path(module), {spec.name for spec in agents}
        run = next(_published(boards, names), None)
        page = _page(module, agents, run)
        files.append(File.generated(config, path, content=page))
        if run is not None:
            picture = agents_svg(*run, names)
            files.append(File.generated(config, path.replace(".md", ".svg"), content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let tables within <details> be tables and pictures open, as they do on GitHub without this.

    Pages of suites are wide tables and pictures of few headings: they get the room of the contents.
    """
    if page.file.src_uri.startswith("leaderboards/") and page.file.name != "index":
        page.meta["hide"] = ["toc"]
    markdown = re.sub(r"^(!\[.*\]\((.*\.png)\))$", r"[\1](\2)", markdown, flags=re.MULTILINE)
    return markdown.replace("<details>", '<details markdown="1">')


class PlainUnderscores(Extension):
    """Underscores are subscripts here, theta_j, not emphasis."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name
        """Take the rule for underscores out."""
        assert md.delimiters is not None
        md.delimiters.remove("_")


class AlgorithmBoxes(griffe.Extension):
    """Indented lines of a docstring's prose, the algorithm boxes, are set as they stand."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Turn the boxes of one docstring into code blocks."""
        if obj.docstring is not None:
            obj.docstring.value = boxed(obj.docstring.value)


def boxed(text: str) -> str:
    """Set off blocks of indented lines by blank lines and four more spaces, up to the sections."""
    lines = text.split("\n")
    rules = [i for i, line in enumerate(lines) if len(line) > 2 and set(line) == {"-"}]
    prose, sections = (lines[: rules[0] - 1], lines[rules[0] - 1 :]) if rules else (lines, [])
    done: list[str] = []
    fenced = inside = False
    for line in prose:
        fenced ^= line.lstrip().startswith("```")
        indented = line.startswith("  ") and not fenced
        if indented != inside:
            done.append("")
        inside = indented
        done.append(f"    {line}" if indented else line)
    return "\n".join([*done, "", *sections])


def _families() -> dict[str, list[AgentSpec]]:
    """Return this project's registered agents by module."""
    families: dict[str, list[AgentSpec]] = {}
    for spec in registered_agents():
        if spec.target.startswith("baselines."):
            families.setdefault(spec.target.partition(":")[0], []).append(spec)
    return families


def _title(agents: list[AgentSpec]) -> str:
    names = [spec.name for spec in agents]
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def _path(module: str) -> str:
    _, problem, name = module.split(".")
    return f"agents/{problem}-{name.replace('_', '-')}.md"


def _published(boards: list[Board], names: set[str]) -> Iterator[tuple[Board, TaskBoard]]:
    """Tasks of the published runs that some of the agents played, those most of them did first."""
    found = [
        (len(names & task.curves.keys()), board, task) for board in boards for task in board.tasks
    ]
    for count, board, task in sorted(found, key=lambda entry: -entry[0]):
        if count:
            yield board, task


def _page(module: str, agents: list[AgentSpec], run: tuple[Board, TaskBoard] | None) -> str:
    settings = (
        ", ".join(f"`{key}={value!r}`" for key, value in spec.settings.items()) for spec in agents
    )
    rows = [
        f"| `{spec.name}` | {text} | {spec.source} |"
        for spec, text in zip(agents, settings, strict=True)
    ]
    table = ["| name | settings | source |", "|---|---|---|", *rows]
    docs = [f"::: {module}", "    options:", "      show_root_heading: false"]
    published = [] if run is None else _curves(module, agents, *run)
    parts = ([f"# {_title(agents)}"], table, *published, docs)
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _curves(
    module: str, agents: list[AgentSpec], board: Board, task: TaskBoard
) -> Iterator[list[str]]:
    """Command, table and curves of a published run."""
    name = task.task["name"]
    yield [f"## On {name} ({task.about})"]
    yield ["```bash", f"llmqueue-bench run {board.suite} --task {name}", "```"]
    yield [agents_markdown(task, {spec.name for spec in agents}).rstrip()]
    yield [f"![Curves of the run over time]({Path(_path(module)).stem}.svg)"]
