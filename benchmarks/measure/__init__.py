"""Scripts that measure speed, memory and scale; ``python -m benchmarks.measure.NAME``."""
