"""What is run: suites, and the cells and trainings that they expand to."""

from benchmarks.plan.cells import Cell, Plan, Training, make_plan

__all__ = ["Cell", "Plan", "Training", "make_plan"]
