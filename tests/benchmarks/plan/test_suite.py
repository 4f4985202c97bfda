"""Suite files: what is accepted, what is refused and how, and what decides a cell's key."""

import copy
import importlib
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.plan.cells import DATA_VARIABLE, make_plan
from benchmarks.plan.suite import SuiteError, built_in_suites, find_task, load_suite, parse_suite
from benchmarks.run.runner import check_tasks, run_cell

TASK = {
    "name": "{kind}-load{load}",
    "env": "LLMQueue-v0",
    "horizon": 50,
    "tags": ["queueing"],
    "matrix": {"kind": ["uniform", "lookalike"], "load": [0.6, 0.9]},
    "kwargs": {
        "load": "{load}",
        "assortment_size": 1,
        "workload": {"source": "synthetic", "kind": "{kind}"},
    },
}
SUITE = {"seeds": 2, "agents": ["greedy"], "task": [TASK]}


def changed(**changes):
    document = copy.deepcopy(SUITE)
    document["task"][0].update(changes)
    return document


def test_matrix_expands_to_every_combination_with_typed_values():
    suite = parse_suite("s", SUITE)
    assert [task.name for task in suite.tasks] == [
        "uniform-load0.6",
        "uniform-load0.9",
        "lookalike-load0.6",
        "lookalike-load0.9",
    ]
    assert suite.tasks[3].kwargs["load"] == 0.9
    assert suite.tasks[3].kwargs["workload"]["kind"] == "lookalike"


def test_a_task_has_what_is_usual_in_its_suite_and_its_own_tables_over_it():
    usual = {"horizon": 9, "tags": ["a"], "kwargs": {"load": 0.5, "workload": {"source": "x"}}}
    own = {"name": "t", "env": "LLMQueue-v0", "tags": ["b"]}
    plain = {**own, "name": "u", "kwargs": {"workload": "synthetic"}}
    own["kwargs"] = {"window": 3, "workload": {"pool_size": 7}}
    merged, over = parse_suite("s", {**SUITE, "defaults": usual, "task": [own, plain]}).tasks
    assert (merged.horizon, merged.tags) == (9, ("b",))
    assert merged.kwargs["workload"] == {"source": "x", "pool_size": 7}
    assert (merged.kwargs["load"], merged.kwargs["window"]) == (0.5, 3)
    assert over.kwargs == {"load": 0.5, "workload": "synthetic"}


def test_plan_adds_the_references_first_and_covers_tasks_agents_seeds():
    plan = make_plan(parse_suite("s", SUITE))
    labels = [cell.spec["agent"]["label"] for cell in plan.cells]
    assert len(labels) == 4 * 3 * 2
    assert set(labels[:16]) == {"oracle", "random"}
    assert set(labels[16:]) == {"greedy"}
    assert len({cell.key for cell in plan.cells}) == len(plan.cells)


def test_a_task_may_have_more_seeds_than_its_suite():
    document = {**SUITE, "task": [TASK, {**TASK, "name": "long-{kind}{load}", "seeds": 3}]}
    for seeds, usual, own in ((None, 2, 3), (1, 1, 1)):
        cells = make_plan(parse_suite("s", document), seeds=seeds).cells
        drawn = Counter((c.spec["task"]["name"], c.spec["agent"]["label"]) for c in cells)
        assert {task.startswith("long"): count for (task, _), count in drawn.items()} == {
            False: usual,
            True: own,
        }


def test_task_and_agent_choices():
    plan = make_plan(parse_suite("s", SUITE), tasks=["*0.9"], agents=["Q-UCB"], seeds=1)
    assert {cell.spec["task"]["name"] for cell in plan.cells} == {
        "uniform-load0.9",
        "lookalike-load0.9",
    }
    assert {c.spec["agent"]["label"] for c in plan.cells} == {"oracle", "random", "greedy", "Q-UCB"}
    assert len(plan.cells) == 2 * 4


def change_horizon(document):
    document["task"][0]["horizon"] = 51


def change_kwargs(document):
    document["task"][0]["kwargs"]["window"] = 16


def change_tags(document):
    document["task"][0]["tags"] = []


def change_settings(document):
    document["agents"] = [{"name": "greedy", "settings": {"ridge": 2.0}}]


def change_label(document):
    document["agents"] = [{"name": "greedy", "label": "greedy-2"}]


def change_protocol(document):
    document["agents"] = [{"name": "greedy", "protocol": "pretrained"}]


@pytest.mark.parametrize(
    "change",
    [change_horizon, change_kwargs, change_tags, change_settings, change_label, change_protocol],
)
def test_any_change_of_a_cell_changes_its_key(change):
    def learner_keys(document):
        cells = make_plan(parse_suite("s", document)).cells
        return {cell.key for cell in cells if cell.spec["agent"]["name"] == "greedy"}

    document = copy.deepcopy(SUITE)
    change(document)
    assert learner_keys(SUITE).isdisjoint(learner_keys(document))


def test_version_and_workload_content_change_the_key(monkeypatch):
    before = {cell.key for cell in make_plan(parse_suite("s", SUITE)).cells}
    monkeypatch.setattr("llmqueue_gym.workloads.fingerprint", lambda spec: "other data")
    other_data = {cell.key for cell in make_plan(parse_suite("s", SUITE)).cells}
    monkeypatch.undo()
    monkeypatch.setattr("llmqueue_gym.__version__", "0.0.0.test")
    other_version = {cell.key for cell in make_plan(parse_suite("s", SUITE)).cells}
    assert before.isdisjoint(other_data)
    assert before.isdisjoint(other_version)


def test_code_of_a_third_party_agent_changes_the_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "key_agent_module.py"
    source.write_text("class A:\n    def act(self, o): ...\n    def update(self, *a): ...\n")

    def keys():
        plan = make_plan(parse_suite("s", SUITE), agents=["key_agent_module:A"])
        return {c.key for c in plan.cells if ":" in c.spec["agent"]["name"]}

    before = keys()
    assert keys() == before
    source.write_text(source.read_text() + "# changed\n")
    assert keys().isdisjoint(before)


AGENT = (
    "from baselines.queueing.heuristics import RandomAgent\n"
    "from {} import helper\n"
    "class Mine(RandomAgent):\n    pass\n"
)


@pytest.mark.parametrize(
    ("module", "files"),
    [
        ("regular.agent", ("regular/__init__.py", "regular/helper.py", "regular/sub/deep.py")),
        ("namespace.agent", ("namespace/helper.py", "namespace/sub/deep.py")),
        ("nested.inner.agent", ("nested/inner/__init__.py", "nested/inner/helper.py")),
    ],
)
def test_any_file_of_a_third_partys_package_changes_the_key(tmp_path, monkeypatch, module, files):
    monkeypatch.syspath_prepend(tmp_path)
    package = module.rpartition(".")[0]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / f"{module.replace('.', '/')}.py").write_text(AGENT.format(package))

    def keys():
        plan = make_plan(parse_suite("s", SUITE), agents=[f"{module}:Mine"])
        return {c.key for c in plan.cells if c.spec["agent"]["name"] == f"{module}:Mine"}

    seen = [keys()]
    assert keys() == seen[0]
    for name in files:
        (tmp_path / name).write_text("CHANGED = True\n")
        seen.append(keys())
    assert len(set().union(*seen)) == sum(map(len, seen)) > 0


def test_missing_data_and_packages_skip_a_task_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    document = copy.deepcopy(SUITE)
    workload = {"source": "table", "path": "{rows}", "text": "q", "quality": ["a", "b"]}
    document["task"].append(
        {
            "name": "table",
            "env": "LLMQueue-v0",
            "horizon": 50,
            "data": {"rows": "sub/rows.csv"},
            "kwargs": {"load": 0.8, "workload": workload},
        }
    )
    document["task"].append(
        {"name": "absent", "env": "X-v0", "horizon": 5, "requires": ["no-such-distribution"]}
    )
    suite = parse_suite("s", document)
    plan = make_plan(suite)
    assert "--data rows=PATH" in plan.skipped["table"]
    assert "no-such-distribution" in plan.skipped["absent"]

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "rows.csv").write_text("q,a,b\nhello,0.1,0.9\n")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    from_folder = make_plan(suite, tasks=["table"])
    given = make_plan(suite, tasks=["table"], data={"rows": str(tmp_path / "sub" / "rows.csv")})
    assert [cell.key for cell in from_folder.cells] == [cell.key for cell in given.cells]
    assert given.cells[0].kwargs["workload"]["path"] == str(tmp_path / "sub" / "rows.csv")
    assert str(tmp_path) not in str(given.cells[0].spec)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({**SUITE, "seed": 3}, "did you mean 'seeds'"),
        ({**SUITE, "seeds": 0}, "seeds=0"),
        ({**SUITE, "task": [{**TASK, "seeds": 2.5}]}, "seeds=2.5"),
        ({**SUITE, "agents": "greedy"}, "must be a list"),
        ({**SUITE, "agents": ["greedy", "greedy"]}, "two agents are called 'greedy'"),
        ({**SUITE, "task": []}, r"at least one \[\[task\]\]"),
        (changed(horizon=True), "horizon=True"),
        (changed(name="fixed"), "two tasks are called 'fixed'"),
        (changed(name="a/b-{kind}-{load}"), "letters, digits"),
        (changed(kwargs={"load": "{laod}"}), "{laod}"),
        (changed(matrix={"kind": [], "load": [1]}), r"matrix.kind=\[\]"),
        (changed(kwargs={"load": float("nan")}), "JSON-plain"),
        (changed(headline="no"), "headline='no'"),
        (
            {**SUITE, "agents": [{"name": "greedy", "protocol": "pretraind"}]},
            "did you mean 'pretrained'",
        ),
    ],
)
def test_what_is_wrong_is_named(document, message):
    with pytest.raises(SuiteError, match=message):
        parse_suite("s", document)


def test_wrong_choices_are_named(tmp_path):
    suite = parse_suite("s", SUITE)
    with pytest.raises(SuiteError, match=r"did you mean 'quick'"):
        load_suite("quik")
    with pytest.raises(SuiteError, match="matches no task"):
        make_plan(suite, tasks=["nothing"])
    with pytest.raises(SuiteError, match="did you mean 'greedy'"):
        make_plan(suite, agents=["gredy"])
    with pytest.raises(SuiteError, match="no module 'no_such_module_here'"):
        make_plan(suite, agents=["no_such_module_here:A"])
    with pytest.raises(SuiteError, match="'Pat' in 'pathlib' is not a class with act"):
        make_plan(suite, agents=["pathlib:Pat"])
    broken = tmp_path / "broken.toml"
    broken.write_text("seeds = ")
    with pytest.raises(SuiteError, match="not valid TOML"):
        load_suite(str(broken))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(
    st.sampled_from(["seeds", "agents", "task", "description"]) | st.text(max_size=5),
    st.sampled_from([None, *TASK, "data", "requires", "agents", "extra_agents", "headline"]),
    plain,
)
def test_any_document_is_read_or_refused_with_a_suite_error(key, task_key, value):
    document = copy.deepcopy(SUITE)
    if task_key is None:
        document[key] = value
    else:
        document["task"][0][task_key] = value
    try:
        suite = parse_suite("s", document)
    except SuiteError:
        return
    assert all(task.name and task.horizon > 0 for task in suite.tasks)


@pytest.mark.parametrize("name", sorted(built_in_suites()))
def test_built_in_suites_are_valid_and_name_known_agents(name):
    from baselines.registry import agent_spec

    suite = load_suite(name)
    for task in suite.tasks:
        for entry in task.agents:
            if entry.train is None:
                assert agent_spec(entry.name).target
            else:
                pytest.importorskip("sb3_contrib")
                assert importlib.import_module("baselines.rl").recipe(entry.name, task.env)


@pytest.mark.parametrize("name", sorted(built_in_suites()))
def test_every_task_of_a_built_in_suite_can_be_set_up(name):
    """As far as its data is here; encoders of texts are left out."""
    cells = make_plan(load_suite(name), seeds=1).cells
    check_tasks([cell for cell in cells if "contexts" not in str(cell.kwargs)], print)


def test_tags_follow_the_rules_of_a_matrix():
    for task in load_suite("queueing").tasks:
        if "-load" in task.name and "synthetic" in task.tags:
            assert ("heavy-load" in task.tags) == (task.kwargs["load"] >= 0.9)
            assert ("many-llms" in task.tags) == (task.kwargs["workload"]["num_llms"] == 50)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"lod": [0.9]}, "did you mean 'load'"),
        ({"load": [0.7]}, "must be a list of values of matrix.load"),
        ({"load": 0.9}, "must be a list of values of matrix.load"),
        ([0.9], "must be a table"),
    ],
)
def test_a_tag_rule_names_an_axis_and_its_values(rule, message):
    document = {**SUITE, "task": [{**TASK, "tags_when": {"heavy-load": rule}}]}
    with pytest.raises(SuiteError, match=message):
        parse_suite("s", document)


CONTROLLED = {
    "name": "real",
    "env": "LLMQueue-v0",
    "horizon": 60,
    "tags": ["queueing", "real-data"],
    "agents": [
        "ACQB",
        "greedy",
        {"name": "ACQB", "label": "wide", "settings": {"alpha_coef": 0.5}},
    ],
    "kwargs": {"load": 0.9, "workload": {"source": "synthetic", "kind": "specialists"}},
    "shuffled_contexts": ["ACQB", "wide"],
}


def test_a_control_is_the_same_task_with_shuffled_contexts():
    own, twin = parse_suite("s", {**SUITE, "task": [CONTROLLED]}).tasks
    assert (own.name, own.control_of) == ("real", None)
    assert (twin.name, twin.control_of) == ("real-shuffled", "real")
    assert not twin.headline
    assert twin.kwargs["workload"] == {**own.kwargs["workload"], "shuffle_contexts": True}
    assert {**twin.kwargs, "workload": None} == {**own.kwargs, "workload": None}
    assert twin.agents == (own.agents[0], own.agents[2])  # settings come along


def test_cells_of_a_control_name_its_task_and_share_arrivals_and_references():
    plan = make_plan(parse_suite("s", {**SUITE, "task": [CONTROLLED]}), seeds=1)
    results = {
        (spec["task"].get("control_of"), spec["agent"]["label"]): run_cell(spec, cell.kwargs)
        for cell in plan.cells
        for spec in [cell.spec]
    }
    labels = {"oracle", "random", "ACQB", "wide"}
    assert results.keys() == {(of, label) for of in (None, "real") for label in labels} | {
        (None, "greedy")
    }
    for label in ("oracle", "random"):  # neither reads contexts
        assert results[None, label]["metrics"] == results["real", label]["metrics"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shuffled_contexts": ["Q-UCB"]}, "'Q-UCB', which does not play the task"),
        ({"shuffled_contexts": "ACQB"}, "must be a list"),
        ({"kwargs": {"load": 0.9}}, "a kwargs.workload table"),
        ({"env": "LLMDeploy-v0"}, "needs a task with contexts of its own"),
    ],
)
def test_a_control_that_cannot_be_is_said(change, message):
    document = {**SUITE, "task": [{**CONTROLLED, **change}]}
    with pytest.raises(SuiteError, match=message):
        parse_suite("s", document)


def test_a_task_is_found_by_name_in_its_suite_or_in_a_file(tmp_path):
    assert find_task("catalog-b0.001") == find_task("quick:catalog-b0.001")
    file = tmp_path / "own.toml"
    file.write_text(
        'seeds = 1\nagents = []\n[[task]]\nname = "mine"\nenv = "LLMQueue-v0"\nhorizon = 9\n'
    )
    assert find_task(f"{file}:mine").horizon == 9


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exponent", "did you mean 'exponents'"),
        ("quick:nothing-like-it", "is in no suite"),
        ("quikc:catalog-b0.001", "did you mean 'quick'"),
        ("routerbench-b0.001", "say deployment:routerbench-b0.001 or quick:routerbench-b0.001"),
    ],
)
def test_an_unknown_or_ambiguous_task_says_what_to_type(name, message):
    with pytest.raises(SuiteError, match=re.escape(message)):
        find_task(name)
