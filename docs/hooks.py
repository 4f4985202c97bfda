"""Generated pages of the documentation: one per family of agents, from the registry.

MkDocs calls the hooks, mkdocstrings the extension; see mkdocs.yml.
"""

from __future__ import annotations

from typing import Any

import griffe
from markdown import Markdown
from markdown.extensions import Extension
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from baselines import AgentSpec, registered_agents

_PROBLEMS = {
    "queueing": "Queueing",
    "deployment": "Deployment",
    "rl": "Reinforcement learning",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the agents' pages into the navigation."""
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
    next(item for item in config.nav if "Agents" in item)["Agents"] = entries
    config.markdown_extensions.append(PlainUnderscores())  # type: ignore[arg-type]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write the agents' pages."""
    for module, agents in _families().items():
        files.append(File.generated(config, _path(module), content=_page(module, agents)))
    return files


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


def _page(module: str, agents: list[AgentSpec]) -> str:
    settings = (
        ", ".join(f"`{key}={value!r}`" for key, value in spec.settings.items()) for spec in agents
    )
    rows = [
        f"| `{spec.name}` | {text} | {spec.source} |"
        for spec, text in zip(agents, settings, strict=True)
    ]
    command = ["```bash", f"llmqueue-bench run quick --agent {agents[0].name}", "```"]
    table = ["| name | settings | source |", "|---|---|---|", *rows]
    docs = [f"::: {module}", "    options:", "      show_root_heading: false"]
    parts = ([f"# {_title(agents)}"], table, command, docs)
    return "\n\n".join("\n".join(part) for part in parts) + "\n"
