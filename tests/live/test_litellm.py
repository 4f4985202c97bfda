"""The router in the real LiteLLM, before servers on the loopback that answer by a known table."""

import asyncio
import json
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

litellm = pytest.importorskip("litellm")

from questions import question  # noqa: E402
from real_litellm import LLMS, ask, gateway, learning, run, settled  # noqa: E402

from baselines.interface import QueueProblem  # noqa: E402
from baselines.queueing.linear import LinUCB  # noqa: E402
from baselines.registry import make_agent  # noqa: E402
from baselines.saving import load_agent  # noqa: E402
from benchmarks.score.intervals import t_interval  # noqa: E402
from benchmarks.score.logged import judge_policy, prepare  # noqa: E402
from llmqueue_gym.live import litellm as live_litellm  # noqa: E402
from llmqueue_gym.live import router as live_router  # noqa: E402
from llmqueue_gym.live import turns as live_turns  # noqa: E402
from llmqueue_gym.live.litellm import KEPT, Budget, LearningRouter  # noqa: E402
from llmqueue_gym.live.shared_agent import teach  # noqa: E402
from llmqueue_gym.workloads.sources.logs import read_log  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of other people's packages
    pytest.mark.usefixtures("callbacks"),
]

RATES = np.array([[0.85, 0.2, 0.3], [0.3, 0.85, 0.3], [0.2, 0.3, 0.85]])  # LLM by topic
USERS = 1500
"""Users in the loop of the router that learns: 2,000 requests; a quarter of them at the others."""


class SpendLog(litellm.integrations.custom_logger.CustomLogger):
    """Rows in the shape of LiteLLM's table, from what its callbacks are given."""

    def __init__(self):
        super().__init__()
        self.rows = []

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        metadata = kwargs["litellm_params"]["metadata"]
        kept = {"spend_logs_metadata": metadata.get("spend_logs_metadata"), "status": "success"}
        self.rows.append(
            {
                "request_id": response_obj.id,
                "call_type": kwargs["call_type"],
                "spend": kwargs["response_cost"],
                "startTime": start_time.astimezone().isoformat(),
                "endTime": end_time.astimezone().isoformat(),
                "model": kwargs["model"],
                "model_group": metadata["model_group"],
                "metadata": json.dumps(kept),
                "messages": kwargs["messages"],
                "session_id": metadata["session_id"],
                "status": "success",
            }
        )


async def serve(router, rng, users, learner=None):
    """Users who ask until they are content, each in a session of its own.

    Returns whether each first answer was kept, and the LLMs and topics of the first answers.
    """
    kept, llms = np.zeros(users), np.zeros(users, np.int64)
    topics = rng.integers(3, size=users)
    places = asyncio.Semaphore(8)

    async def user(number, text):
        for attempt in range(20):
            metadata = {"session_id": f"{id(router)}-{number}"}
            answer = await ask(router, text + "?" * attempt, metadata=metadata)
            llm = LLMS.index(f"openai/{answer.choices[0].message.content}")
            content = rng.random() < RATES[llm, topics[number]]
            if attempt == 0:
                kept[number], llms[number] = content, llm
            if learner is not None:
                while answer.id not in learner.router._named:  # users need longer than LiteLLM
                    await asyncio.sleep(0.005)
                if content:
                    assert await learner.feedback(answer.id, True)
            if content:
                return

    async def one(number, text):
        async with places:
            await user(number, text)

    texts = [question(rng, int(topic), i) for i, topic in enumerate(topics)]
    await asyncio.gather(*(one(i, text) for i, text in enumerate(texts)))
    return kept, llms, topics


def fitted(log, contexts, rows, encoder, path):
    """The next policy: LinUCB on the log's answers, saved and loaded."""
    agent = make_agent("LinUCB", QueueProblem(3, 1, 8, 1, 1.0, 10_000), 0, alpha=0.0)
    agent.encoder = encoder
    answered = [log.llms[log.llm[row]] for row in rows]
    assert teach(agent, LLMS, contexts[rows], answered, log.reward[rows]) == len(rows)
    agent.save(path)
    return load_agent(path)


def test_the_loop_from_a_log_to_a_better_policy_and_back(server, encoder, tmp_path):
    # Simple-shuffle; then a router that begins with nothing and whose spend log fits the next
    # policy; IPS by that log, against what this policy then earns in the gateway.
    rng = np.random.default_rng(1)
    shuffled, *_ = asyncio.run(serve(gateway(server), rng, USERS // 4))
    spend = SpendLog()
    first = learning(encoder, explore=0.3, state=tmp_path / "state")
    learned, *_ = asyncio.run(serve(gateway(server, first, spend), rng, USERS, first))
    first.settle()
    assert set(first.counts) == {"chosen"}
    assert t_interval(learned).low > t_interval(shuffled).high
    path = tmp_path / "spend.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in spend.rows))
    log = read_log(str(path))
    assert (log.llms, log.propensity.min()) == (tuple(sorted(LLMS)), pytest.approx(0.1))
    assert len(log) == first.counts["chosen"] == first.router.shared.learned.answers > 2000
    assert log.reward.sum() == USERS

    contexts = encoder.encode(log.texts)
    data = prepare(log, contexts)
    agent = fitted(log, contexts, data.train, encoder, tmp_path / "next.llmq")
    best = (contexts[data.judge] @ agent.regression.theta.T).argmax(axis=1)
    policy = np.eye(3)[[log.llms.index(LLMS[llm]) for llm in best]]
    estimate = judge_policy(data, policy, "next").estimates["ips"]
    following = LearningRouter(
        tmp_path / "next.llmq", LLMS, "auto", explore=0.0, timeout_ms=60_000.0
    )
    kept, llms, topics = asyncio.run(serve(gateway(server, following), rng, USERS // 4))
    following.settle()
    truth = RATES[llms, topics].mean()
    figures = [t_interval(each) for each in (shuffled, learned, kept)]
    print(len(log), *(tuple(map(float, each)) for each in (*figures, estimate)), truth)
    # Answers come in no fixed order: four standard errors, not two, for a test that does not fail.
    assert abs(truth - estimate.value) < estimate.high - estimate.low
    assert t_interval(kept).low > t_interval(learned).high


# --- what is chosen -------------------------------------------------------------------------------


def test_what_is_down_is_not_chosen_and_failures_are_learned(server, encoder):
    # The favourite fails with 500 and cools down; a 429 is not held against another one.
    learner = learning(encoder, explore=0.0, name="LinUCB")
    router = gateway(server, learner, allowed_fails=0, cooldown_time=60.0)
    server.down["small"] = 500

    async def asked():
        chosen = []
        for i in range(6):
            try:
                answer = await ask(router, f"poem {i}", user=f"u{i}")
                chosen.append(answer.choices[0].message.content)
            except litellm.InternalServerError:
                chosen.append("failed")
            await settled()
        return chosen

    chosen = asyncio.run(asked())
    learner.settle()
    assert chosen.count("failed") == 1
    assert "small" not in chosen
    assert learner.router.shared.learned.answers == 1

    server.down.update(large=429, coder=429)

    async def refused():
        with pytest.raises(litellm.RateLimitError):
            await ask(router, "poem", session_id="another")
        while learner.router._under_way:  # heard of, and dropped
            await asyncio.sleep(0.005)

    asyncio.run(refused())
    learner.settle()
    assert learner.router.shared.learned.answers == 1


def test_every_choice_is_written_and_the_callers_metadata_stays(server, encoder):
    learner, spend = learning(encoder, explore=0.5), SpendLog()
    own = {"session_id": "s", "spend_logs_metadata": {"team": "a"}}
    before = json.dumps(own)
    nested = own["spend_logs_metadata"]
    run(ask(gateway(server, learner, spend), "poem", metadata=own))
    note = json.loads(spend.rows[0]["metadata"])["spend_logs_metadata"]
    assert note["team"] == "a"
    note = note["llmqueue_gym"]
    assert note["candidates"] == list(LLMS)
    assert note["llm"] in LLMS
    assert note["policy"] == "LinUCB-0"
    assert note["propensity"] in (pytest.approx(2 / 3), pytest.approx(1 / 6))
    assert json.loads(before)["spend_logs_metadata"] == nested


def test_litellm_shares_an_llm_out_among_its_deployments(server, encoder):
    learner = learning(encoder, explore=0.0)
    router = gateway(server, learner, copies=2)

    async def asked():
        answers = [await ask(router, "poem") for _ in range(12)]
        return {(a.choices[0].message.content, a._hidden_params["model_id"]) for a in answers}

    found = asyncio.run(asked())
    assert len({llm for llm, _ in found}) == 1
    assert len(found) == 2


def test_the_users_word_counts_more_than_the_rule(server, encoder):
    learner = learning(encoder, explore=0.0)
    router = gateway(server, learner)

    async def asked():
        for said in (None, True):
            extra = {} if said is None else {KEPT: said}
            await ask(router, "a poem on rain", metadata={"session_id": "s"} | extra)
            await settled()

    asyncio.run(asked())
    learner.settle()
    learned = learner.router.shared.learned
    assert learned.answers == 1
    assert learned.agent.regression.theta.max() > 0.0  # kept, though it was asked again


# --- when something goes wrong --------------------------------------------------------------------


@pytest.mark.parametrize("cause", ["error", "timeout", "busy", "no question", "shadow"])
def test_litellm_chooses_where_we_cannot(server, encoder, monkeypatch, cause):
    learner, spend = learning(encoder, shadow=cause == "shadow"), SpendLog()
    agent = learner.router.shared.learned.agent
    if cause == "timeout":
        learner._timeout = 0.02
        monkeypatch.setattr(agent, "act", lambda _: time.sleep(0.5), raising=False)
    elif cause == "error":
        monkeypatch.setattr(agent, "act", lambda _: 1 / 0, raising=False)
    elif cause == "busy":
        monkeypatch.setattr(live_turns, "QUEUED", 0)
    router = gateway(server, learner, spend)

    async def asked():
        content = "poem"
        if cause == "no question":
            content = [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}]
        for i in range(12):
            message = {"role": "user", "content": content}
            metadata = {"session_id": f"s{i}"}
            await router.acompletion(model="auto", messages=[message], metadata=metadata)
        await settled()

    asyncio.run(asked())
    assert dict(learner.counts) == {cause: 12}
    assert len({row["model"] for row in spend.rows}) > 1  # simple-shuffle
    for row in spend.rows:
        note = json.loads(row["metadata"])["spend_logs_metadata"]["llmqueue_gym"]
        assert note["by"] == cause
        assert "propensity" not in note
        assert ("would" in note) == (cause == "shadow")


def test_an_agent_that_hangs_holds_the_event_loop_up_once(server, encoder, monkeypatch):
    learner, hung, waited = learning(encoder, timeout_ms=20.0), threading.Event(), []
    agent = learner.router.shared.learned.agent
    monkeypatch.setattr(agent, "act", lambda _: hung.wait(), raising=False)

    class Waited(Future):
        def result(self, timeout=None):
            waited.append(timeout)
            return super().result(timeout)

    monkeypatch.setattr(live_turns, "Future", Waited)
    router = gateway(server, learner)

    async def asked():
        for i in range(4):
            await ask(router, f"poem {i}")

    asyncio.run(asked())
    hung.set()
    assert learner.counts["timeout"] == 4
    assert waited == [live_turns.BRIEFLY]


class Others(LinUCB):
    """An agent of which nobody knows that it only computes."""


@pytest.mark.parametrize("whose", ["ours", "another's agent", "another's contexts"])
def test_the_event_loop_makes_quick_choices_of_our_agents_itself(
    server, encoder, monkeypatch, whose
):
    monkeypatch.setattr(live_litellm, "PROVEN", 3)
    monkeypatch.setattr(live_litellm, "BRIEFLY", 60.0)  # whatever the machine
    monkeypatch.setattr(live_router, "FRESH", 60.0)
    kind = Others if whose == "another's agent" else LinUCB
    agent, threads = kind(QueueProblem(3, 1, 8, 1, 1.0, 10_000), 0), []
    agent.encoder = encoder
    contexts = (lambda text: encoder(text)) if whose == "another's contexts" else None
    learner = LearningRouter(agent, LLMS, "auto", contexts, timeout_ms=60_000.0)
    act = agent.act
    monkeypatch.setattr(
        agent, "act", lambda seen: (threads.append(threading.get_ident()), act(seen))[1]
    )
    router, turns = gateway(server, learner), learner._turns

    async def asked():
        for i in range(6):
            await ask(router, f"poem {i}")
            await settled()
            while turns._unfinished or turns._turn.locked() or not turns._resting:
                await asyncio.sleep(0.001)

    asyncio.run(asked())
    assert dict(learner.counts) == {"chosen": 6}
    own = [thread == threading.get_ident() for thread in threads]
    assert own == [False] * 3 + [whose == "ours"] * 3
    assert len(learner.router._under_way) == 0  # the answers are taken


def test_a_budget_is_enforced_even_if_the_agent_fails(server, encoder, monkeypatch):
    # 200 tokens at a millionth: 0.0002 USD an answer; five of them an hour.
    prices = dict.fromkeys(LLMS, 0.0002)
    learner = learning(encoder, budget=Budget(0.00101, "day", prices))
    monkeypatch.setattr(learner.router.shared.learned.agent, "act", lambda _: 1 / 0, raising=False)
    router = gateway(server, learner)

    async def asked():
        answers = await asyncio.gather(
            *(ask(router, f"poem {i}") for i in range(9)), return_exceptions=True
        )
        await settled()
        return answers

    answers = asyncio.run(asked())
    learner.settle()
    refused = [a for a in answers if isinstance(a, litellm.BudgetExceededError)]
    assert (len(refused), len(answers)) == (4, 9)
    assert sum(learner.router.shared.learned.spent.values()) == pytest.approx(0.001)


def test_other_model_groups_and_unknown_llms_are_left_alone(server, encoder, caplog, monkeypatch):
    learner = learning(encoder, llms=("openai/a", "openai/b"))
    with caplog.at_level("WARNING", logger=litellm.verbose_logger.name):
        monkeypatch.setattr(litellm.verbose_logger, "propagate", True)
        run(ask(gateway(server, learner), "poem"))
    assert dict(learner.counts) == {"none known": 1}
    told = [text for text in caplog.messages if "names none of the models" in text]
    assert len(told) == 1
    assert "openai/a" in told[0]
    some = learning(encoder, llms=("openai/small", "openai/a"))
    with caplog.at_level("WARNING", logger=litellm.verbose_logger.name):
        for _ in range(2):
            run(ask(gateway(server, some), "poem"))
    assert dict(some.counts) == {"left out": 2, "chosen": 2}
    told = [text for text in caplog.messages if "get no requests" in text]
    assert len(told) == 1
    assert "openai/coder" in told[0]
    learner.model_name = "another"
    run(ask(gateway(server, learner), "poem"))
    assert dict(learner.counts) == {"none known": 1}
