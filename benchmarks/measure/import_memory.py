"""``python -m benchmarks.measure.import_memory``: peak memory and speed of EmbedLLM's long csv.

Writes a file of invented rows in its schema, imports it in a process of its own, and says how much
memory that process had at most.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llmqueue_gym.workloads.embeddings import CACHE_VARIABLE

LLMS = 112
_CHILD = """
import json, resource, sys
from pathlib import Path
from llmqueue_gym.workloads.datasets import import_dataset
header = import_dataset("embedllm", sys.argv[1])
if sys.platform == "linux":  # getrusage counts what the parent held when it started this process
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([header.facts.rows, len(header.facts.llms), peak]))
"""


def write_long_csv(path: Path, rows: int, prompt_length: int = 60) -> None:
    """Write rows in the schema of EmbedLLM, LLM by LLM within a question; every 50th twice."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt_id", "model_id", "prompt", "label", "model_name", "category"])
        question = written = 0
        while written < rows:
            text = f"Question {question}, with a comma: ".ljust(prompt_length, "x")
            block = [
                (question, llm, text, (question * llm) % 3 // 2, f"maker/model-{llm}", "mmlu")
                for llm in range(LLMS)
            ]
            if question % 50 == 0:
                block += block
            writer.writerows(block[: rows - written])
            written += len(block)
            question += 1


def measure(rows: int, prompt_length: int) -> dict[str, float]:
    """Import a generated file; sizes in MB, times in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        write_long_csv(path, rows, prompt_length)
        env = os.environ | {CACHE_VARIABLE: folder}
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(path)], env=env, check=True, capture_output=True
        )
        seconds = time.perf_counter() - start
        questions, llms, peak = json.loads(done.stdout)
        return {
            "rows": rows,
            "questions": questions,
            "llms": llms,
            "file_mb": path.stat().st_size / 1e6,
            "peak_mb": peak / 1e6,
            "seconds": seconds,
        }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--prompt-length", type=int, default=60, help="characters of a prompt")
    chosen = parser.parse_args()
    print(json.dumps(measure(chosen.rows, chosen.prompt_length), indent=1))


if __name__ == "__main__":
    main()
