"""A policy that `llmqueue-bench export-policy` wrote, evaluated without any package.

    python evaluate_policy.py policy.json "What is the capital of France?"

What a router in another language has to do, line by line; docs/guides/export-policy.md says why.
"""

import gzip
import json
import math
import operator
import re
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def murmur3(data: bytes) -> int:
    """MurmurHash3_x86_32 with seed 0, as a signed integer."""
    h, whole = 0, len(data) // 4 * 4
    for at in range(0, len(data), 4):
        k = int.from_bytes(data[at : at + 4], "little") * 0xCC9E2D51 & 0xFFFFFFFF
        h ^= (k << 15 | k >> 17) * 0x1B873593 & 0xFFFFFFFF
        if at < whole:
            h = ((h << 13 | h >> 19) * 5 + 0xE6546B64) & 0xFFFFFFFF
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B & 0xFFFFFFFF
    h = (h ^ h >> 13) * 0xC2B2AE35 & 0xFFFFFFFF
    h ^= h >> 16
    return h - 2**32 if h >= 2**31 else h


def context_of(text: str, pipeline: dict[str, Any]) -> list[float]:
    """Return the context of a text: hashed n-grams, TF-IDF, directions, norm 1, the constant."""
    clean = re.sub(r"\s\s+", " ", text.encode("utf-8", "replace").decode().lower())
    shortest, longest = pipeline["ngrams"]
    counts: Counter[int] = Counter()
    for n in range(shortest, longest + 1):
        for i in range(len(clean) - n + 1):
            counts[abs(murmur3(clean[i : i + n].encode())) % pipeline["features"]] += 1
    weights = {f: (1.0 + math.log(count)) * pipeline["idf"][f] for f, count in counts.items()}
    length = math.hypot(*weights.values())
    z = [0.0] * pipeline["dim"]
    for feature, weight in weights.items():
        for k, part in enumerate(pipeline["directions"][feature] or ()):
            z[k] += weight / length * part
    norm = math.hypot(*z)
    full = [part / norm if norm >= 1e-9 else 0.0 for part in z] + [1.0]
    norm = math.hypot(*full)
    single = f"<{len(full)}f"  # contexts are rounded to single precision
    return list(struct.unpack(single, struct.pack(single, *(part / norm for part in full))))


def evaluate(policy: dict[str, Any], query: str | list[float]) -> tuple[list[float], list[str]]:
    """Return the number of every LLM for a text, or a ready context, and the LLMs to show."""
    x = context_of(query, policy["text"]) if isinstance(query, str) else query
    rows = zip(policy["weights"], policy["intercept"], strict=True)
    numbers = [sum(map(operator.mul, row, x), start) for row, start in rows]
    order = sorted(range(len(numbers)), key=lambda llm: -numbers[llm])  # of equals the first
    return numbers, [policy["llms"][llm] for llm in order[: policy["assortment_size"]]]


def main(path: str, query: str) -> None:
    """Print the numbers and the choice."""
    data = Path(path).read_bytes()
    policy = json.loads(gzip.decompress(data) if path.endswith(".gz") else data)
    numbers, chosen = evaluate(policy, query)
    for llm, number in zip(policy["llms"], numbers, strict=True):
        print(f"{llm}: {policy['scale']} {number:.6f}")
    print("choose", ", ".join(chosen))


if __name__ == "__main__":
    main(*sys.argv[1:])
