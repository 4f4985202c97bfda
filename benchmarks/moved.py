"""Import paths of before the rooms: ``benchmarks.runner`` is ``benchmarks.run.runner``, ..."""

from __future__ import annotations

MOVED = {
    "agent_files": "plan.agent_files",
    "arrivals": "commands.logs",
    "changes": "commands.compare",
    "compare": "commands.compare",
    "completion": "commands.completion",
    "controls": "measure.controls",
    "data": "commands.data",
    "deployment": "problems.deployment.play",
    "engines": "run.engines",
    "export": "score.export",
    "fairness": "score.fairness",
    "intervals": "score.intervals",
    "kinds": "problems.kind",
    "logs": "score.logged",
    "luck": "problems.luck",
    "off_policy": "score.off_policy",
    "queueing": "problems.queueing.play",
    "ray_engine": "run.ray_engine",
    "runner": "run.runner",
    "scoring": "score.scoring",
    "speed": "measure.speed",
    "standing": "score.standing",
    "store": "run.store",
    "suite": "plan.suite",
    "table_file": "commands.data",
    "task_board": "score.task_board",
    "training": "run.training",
    "verify": "commands.verify",
    "warm": "run.warm",
    "watch": "commands.watch",
}
"""Old name in this package -> where it is."""
