"""The bench of large sweeps: its cells are those asked for, and what it measures is linear."""

from benchmarks.measure.scale import Engines, Size, Speed, measure, sweep, tables
from benchmarks.run.store import Store


def test_a_sweep_has_as_many_cells_as_asked_for_and_all_differ():
    for cells in (1, 100, 250):
        plan = sweep(cells)
        assert len({cell.key for cell in plan.cells}) == len(plan.cells) == cells


def test_the_steps_store_every_cell_once_and_then_find_it(tmp_path):
    for step in ("plan", "store", "resume", "report"):
        found = measure(step, 120, tmp_path)
        assert found["seconds"] >= 0
        assert found["memory_mb"] < 500
    store, keys = Store(tmp_path), {cell.key for cell in sweep(120).cells}
    assert store.keys() == keys
    assert len(store.load_run()["cells"]) == 120


def test_projections_are_proportional():
    steps = dict.fromkeys(("plan", "store", "resume", "report"), 2.0)
    size = Size(1000, steps, dict.fromkeys(steps, 1.0), 2**20, 3 * 2**20)
    engines = Engines(12.0, 12, [Speed("local", 2, 8.0, 12.0, 0.1, 20.0, 2.0)])
    text = tables("command", 0.0, [size], engines)
    assert "| **1,000,000**, projected | 33 min |" in text
    assert "| 1,000 MB | 1,000 MB | 1,000 MB | 1,000,000 | 2.9 GB |" in text
    assert "| local | 2 | 8.0 s | 75% | 0.1 s | 20 ms | 2.0 ms | 500 cores | 30,000 cores |" in text
