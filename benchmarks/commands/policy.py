"""``llmqueue-bench export-policy``: a saved agent as JSON, for routers in other languages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.terminal import say


def export_policy_command(
    saved: Annotated[Path, typer.Argument(help="A file that Agent.save wrote.")],
    out: Annotated[Path, typer.Argument(help="The JSON; gzipped if it ends in .gz.")],
    llm: Annotated[
        list[str] | None, typer.Option(help="Name of an LLM; repeat it, in the agent's order.")
    ] = None,
) -> None:
    """Write what a saved agent decides on once it explores no longer: weights and contexts."""
    from baselines.policy import write_policy
    from baselines.saving import load_agent

    policy = write_policy(load_agent(saved), out, llm or ())
    contexts = "vectors as given" if policy["text"] is None else "texts"
    say(
        f"{out}: {policy['agent']}, {policy['scale']} of {len(policy['llms'])} LLMs, linear in "
        f"{policy['context_dim']} coordinates; contexts of {contexts}; {out.stat().st_size:,} bytes"
    )
