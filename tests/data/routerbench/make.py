"""How the files here were made: `python make.py FOLDER` under several pandas versions.

Run once by hand with pandas 1.5.3 (NumPy 1.26), 2.3.3 (NumPy 2.2) and 3.1.1 in throw-away virtual
environments; the tests only read the files. The texts are invented.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

PROTOCOLS = {"1": (0, 5), "2": (2, 4), "3": (0, 5)}


def frame() -> pd.DataFrame:
    """Return six invented rows in the schema of RouterBench; the last two are filtered away."""
    llms = ["z/big", "a-small", "m.odd"]
    prompts = ["['What is 2+2?']", "['line one\\n', 'line two']", "not a list \u2028 here"]
    prompts += ["['caf\u00e9 \\\\d']", "dropped", "dropped"]
    scores = np.array([[1, 0.25, np.nan], [0, 1, 0], [np.nan, 0.5, 1], [1, 0, 0.75]])
    scores = np.vstack([scores, np.ones((2, 3))])
    table = pd.DataFrame({"sample_id": [f"mmlu.val.{i}" for i in range(6)], "prompt": prompts})
    table["eval_name"] = ["mmlu", "gsm", "mtbench", "mmlu", "x", "x"]
    for j, llm in enumerate(llms):
        table[llm] = scores[:, j]
    for llm in llms:
        table[f"{llm}|model_response"] = ["['4']", None, "x", "y", "", ""]
    for j, llm in enumerate(llms):
        table[f"{llm}|total_cost"] = [(i + 1) * 10.0 ** (-3 - j) for i in range(6)]
    # a column of objects, as a file assembled from several runs has it
    table["m.odd"] = pd.Series([*table["m.odd"][:3], np.float64(0.75), 1, True], dtype=object)
    # and numbers of other kinds than float64
    table["whole"] = np.array([1, 0, 0, 1, 1, 1])
    table["whole|total_cost"] = np.array([0.5, 0.25, 0.125, 1, 1, 1], dtype=np.float32)
    table["oracle_model_to_route_to"] = "no_model_correct"
    return table[table["prompt"] != "dropped"]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    major = pd.__version__.split(".")[0]
    for protocol in PROTOCOLS[major]:
        frame().to_pickle(folder / f"pandas{major}-protocol{protocol}.pkl", protocol=protocol)
    if major == "3":
        frame().to_csv(folder / "table.csv", index=False)
