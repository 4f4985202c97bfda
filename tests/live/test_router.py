"""Live requests: exact propensities, what counts as kept, budgets, and state that survives."""

import contextlib
import itertools
import multiprocessing
import os
import signal

import numpy as np
import pytest

from baselines.interface import QueueProblem
from baselines.queueing.linear import LinUCB
from baselines.registry import make_agent, registered_agents
from llmqueue_gym.errors import UsageError
from llmqueue_gym.live import budget as live_budget
from llmqueue_gym.live import router as live_router
from llmqueue_gym.live.budget import Budget, OverBudgetError
from llmqueue_gym.live.router import LiveRouter
from llmqueue_gym.live.shared_agent import SharedAgent, answer_entry, teach

NAMES = ("small", "large", "huge")
KEPT = np.array([[0.9, 0.2], [0.3, 0.8], [0.5, 0.5]])  # of each LLM, by kind of question
QUESTIONS = (
    "why is the sky blue",
    "count to ten in French",
    "name a river of Peru",
    "what does an otter eat",
)


class Clock:
    now = 1_000_000.0

    def __call__(self):
        return self.now


def context_of(text):
    """Kind of the question and a constant."""
    return np.array([len(text) % 2, 1.0 - len(text) % 2, 0.5], np.float32)


def make(name="LinUCB", **settings):
    agent = make_agent(name, QueueProblem(3, 1, 3, 1, 0.5, 1000), 0)
    agent.encoder = context_of  # a function cannot be saved: it stays out of the state
    clock = Clock()
    return LiveRouter(agent, NAMES, clock=clock, timer=clock, seed=0, **settings), clock


def ask(router, text, session="s", usd=0.001, candidates=(0, 1, 2), **outcome):
    number = router.reserve(candidates)
    choice = router.choose(number, text, session, candidates)
    router.answered(number, choice.llm, usd, **outcome)
    router.learn()
    return choice


# --- propensities ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LinUCB", "LinTS", "ACQB-OMD", "random"])
def test_ips_is_unbiased_whatever_the_agent_draws(name):
    # The agent learns on the way, and an LLM that it may favour is down for a third of the time.
    # For the target policies "always LLM j", the mean of 1[a = j] r / p less the truth is a
    # martingale: its standard error is that of the terms.
    router, _ = make(name, explore=0.3)
    rng = np.random.default_rng(1)
    count = 1500
    terms, weights = np.zeros((count, 2)), np.zeros((count, 2))
    for i in range(count):
        kind = int(rng.integers(2))
        candidates = (0, 1) if i % 3 == 0 else (0, 1, 2)
        text = f"{QUESTIONS[i % 4]} {i:06d}" + "!" * kind
        number = router.reserve(candidates)
        choice = router.choose(number, text, None, candidates)
        assert choice.llm in candidates
        kind = len(text) % 2
        kept = rng.random() < KEPT[choice.llm, kind]
        router.answered(number, choice.llm, None, name=str(i))
        assert router.feedback(str(i), bool(kept))
        if choice.llm < 2:
            weights[i, choice.llm] = 1.0 / choice.propensity
            terms[i, choice.llm] = kept / choice.propensity - KEPT[choice.llm, kind]
            terms[i, choice.llm] -= (1.0 / choice.propensity - 1.0) * KEPT[choice.llm, kind]
    for found in (terms, weights - 1.0):
        error = found.std(axis=0) / np.sqrt(count)
        assert (np.abs(found.mean(axis=0)) < 4.0 * error).all()
    assert weights.max() <= 3.0 / 0.3 + 1e-9


@pytest.mark.parametrize("explore", [0.0, 1.0])
def test_without_and_with_nothing_but_exploration(explore):
    router, _ = make(explore=explore)
    found = {ask(router, QUESTIONS[i % 4], f"s{i}").propensity for i in range(20)}
    assert found == {1.0 if explore == 0.0 else 1.0 / 3.0}


# --- what counts as kept --------------------------------------------------------------------------


@pytest.fixture
def told(monkeypatch):
    """LLM and outcome of every answer that the agent learned from."""
    found = []
    learn = LinUCB.learn

    def spy(self, served):
        found.append((served.shown[0], served.kept >= 0))
        learn(self, served)

    monkeypatch.setattr(LinUCB, "learn", spy)
    return found


def test_sessions_tell_what_was_kept(told):
    router, clock = make(patience=60.0)
    told.clear()  # of the trial
    first = ask(router, "why is the sky blue")
    again = ask(router, "Why is the sky blue?")  # asks again
    assert told == [(first.llm, False)]
    assert (first.retrials, again.retrials) == (0, 1)
    ask(router, "count to ten in French")  # goes on
    assert told[1:] == [(again.llm, True)]
    clock.now += 61.0
    ask(router, "who was Ada Lovelace", "another")  # the pause of the first session
    assert [kept for _, kept in told] == [False, True, True]


def test_only_what_was_not_kept_is_learned_before_the_next_choice(told, monkeypatch):
    router, _ = make()
    told.clear()  # of the trial
    ask(router, "why is the sky blue")
    for kept in (True, False):
        router.choose(router.reserve((0, 1, 2)), "count to ten", "s", (0, 1, 2), kept)
        assert len(told) == (not kept)
        told.clear()
        ask(router, "name a river of Peru")
        told.clear()
    monkeypatch.setattr(live_router, "JUDGED", 4)  # a burst leaves no time to learn
    for i in range(12):
        number = router.reserve((0, 1, 2))
        choice = router.choose(number, f"{i}", None, (0, 1, 2))
        router.answered(number, choice.llm, None, failed=True)
        assert len(told) == (i + 1) // 4 * 4


def test_no_request_is_the_first_to_choose_or_to_learn_after_a_choice(monkeypatch):
    done = []
    for name in ("act", "update"):
        own = getattr(LinUCB, name)
        spy = lambda self, *seen, own=own, name=name: (done.append(name), own(self, *seen))[1]  # noqa: E731
        monkeypatch.setattr(LinUCB, name, spy)
    make()
    assert done == ["update", "act", "update"]  # what they compile is compiled by now


def test_a_choice_at_once_is_the_same_choice_and_takes_no_file(tmp_path, monkeypatch):
    (one, clock), (other, other_clock) = (make(patience=60.0, state=tmp_path / n) for n in "ab")
    for router in (one, other):
        router.shared.learned.salt = "00"
    rng, at_once, said = np.random.default_rng(0), [], (None, None, None, True, False)
    for step in range(400):
        clock.now = other_clock.now = clock.now + float(
            rng.choice([0.01, 0.5, 70.0], p=(0.9, 0.08, 0.02))
        )
        asked = (
            f"{QUESTIONS[rng.integers(4)]} now",
            f"s{rng.integers(9)}",
            (0, 1, 2),
            said[rng.integers(5)],
        )
        expected = one.choose(one.reserve(asked[2]), *asked)
        number = other.reserve(asked[2])
        with monkeypatch.context() as patch:
            for name in ("add", "catch_up"):
                patch.setattr(SharedAgent, name, None)  # an error, were it called
            choice = other.choose_at_once(number, *asked)
        at_once.append(choice is not None)
        if choice is None:
            choice = other.choose(number, *asked)
        for router, made in ((one, expected), (other, choice)):
            router.answered(number, made.llm, 0.0, failed=step % 50 == 49)
        for field in ("llm", "propensity", "policy", "session", "retrials", "time"):
            assert getattr(choice, field) == getattr(expected, field)
    assert 100 < sum(at_once) < 350
    assert other.shared.learned.answers == one.shared.learned.answers > 100


def test_failures_users_words_and_what_nobody_tells(told):
    router, clock = make(patience=60.0)
    told.clear()  # of the trial
    failed = ask(router, QUESTIONS[0], "a", failed=True)
    assert told == [(failed.llm, False)]
    said = ask(router, QUESTIONS[1], "b", name="id")
    assert router.feedback("id", False)
    assert not router.feedback("id", True)
    assert told[1:] == [(said.llm, False)]
    ask(router, QUESTIONS[2], None)  # no session
    number = router.reserve((0, 1, 2))
    router.choose(number, QUESTIONS[3], "c", (0, 1, 2))
    router.answered(number, None, None)  # answered by an LLM that is none of ours
    clock.now += 100.0
    ask(router, QUESTIONS[0], "d")
    assert len(told) == 2
    choice = ask(router, QUESTIONS[1], "e")
    number = router.reserve((0, 1, 2))
    router.choose(number, QUESTIONS[1], "e", (0, 1, 2), kept=True)  # asks again, but is content
    router.learn()
    assert told[2:] == [(choice.llm, True)]


def test_what_a_template_shares_is_no_retrial(told):
    router, _ = make()
    told.clear()  # of the trial
    frame = "You are a helper of a shop for garden tools. Answer in one short sentence: {}? Thanks."
    for i in range(8):
        ask(router, frame.format(f"{QUESTIONS[i % 4]} {'abcdefgh'[i] * 3}"), f"s{i}")
    ask(router, frame.format("rakes or hoes"), "z")
    ask(router, frame.format("delivery to Oslo"), "z")
    assert told[-1][1]


def test_of_a_long_question_head_and_tail_are_read():
    router, _ = make()
    read = []
    router.contexts = lambda text: (read.append(text), context_of(text))[1]
    head, tail = "Sum up: " + "a" * 20_000, "z" * 20_000 + " in one line?"
    longest = "b" * live_router.READ
    for text in (QUESTIONS[0], longest, head + "m" * 10**6 + tail):
        ask(router, text, None)
    assert read[:2] == [QUESTIONS[0], longest]
    long = read[2]
    assert len(long) == live_router.READ
    assert head.startswith(long[: len(long) // 2])
    assert tail.endswith(long[len(long) // 2 :])


def test_a_tools_result_goes_to_the_llm_that_asked_for_it():
    router, _ = make(explore=1.0)
    choice = ask(router, QUESTIONS[0])
    assert router.same_again("s", QUESTIONS[0]) == choice.llm
    assert router.same_again("s", QUESTIONS[1]) is None
    assert router.same_again(None, QUESTIONS[0]) is None


def test_a_gateway_that_chose_itself_teaches_without_a_propensity(told, tmp_path):
    router, _ = make(log=tmp_path / "log.jsonl")
    told.clear()  # of the trial
    for followed in (False, True):
        number = router.reserve((0, 1, 2))
        choice = router.choose(number, QUESTIONS[0], None, (0, 1, 2))
        other = (choice.llm + 1) % 3
        router.answered(number, other, None, followed=followed, failed=True)
        router.learn()
        assert told == [(told[0][0], False)]  # the second one is nobody's choice: not learned
    assert not (tmp_path / "log.jsonl").exists()


def test_a_log_of_other_llms_teaches_nothing_and_that_is_told():
    router, _ = make()
    agent, contexts = router.shared.learned.agent, np.eye(3, dtype=np.float32)
    assert teach(agent, NAMES, contexts, ["small", "another", "large"], [1.0, 1.0, 0.0]) == 2
    assert teach(agent, NAMES, contexts[:0], [], []) == 0
    with pytest.raises(UsageError, match=r"answers are by \['openai/small'"):
        teach(agent, NAMES, contexts, ["openai/small"] * 3, [1.0, 1.0, 0.0])


# --- bounds ---------------------------------------------------------------------------------------


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(live_router, "REMEMBERED", 50)
    router, _ = make(budget=Budget(1e9, "hour", dict.fromkeys(NAMES, 1.0)))
    for i in range(200):
        ask(router, f"{QUESTIONS[i % 4]} {i}", f"s{i}", name=str(i))
        router.choose(router.reserve((0, 1)), f"{QUESTIONS[i % 4]} {i}", f"t{i}", (0, 1))
    kept = router._open, router._named, router._under_way
    assert max(map(len, kept)) <= 50


@pytest.mark.parametrize("per", ["hour", "day"])
def test_a_budget_holds_and_is_paced(per):
    # Answers cost about their price; the dear LLM is the favourite.
    seconds = live_budget.PERIODS[per]
    prices = {"small": 0.1, "large": 1.0, "huge": 4.0}
    router, clock = make(explore=0.1, budget=Budget(100.0, per, prices))
    clock.now = 50.0 * seconds
    rng = np.random.default_rng(0)
    used, refused = np.zeros((2, 3)), np.zeros(2)
    for window in range(2):
        spent = 0.0
        for i in range(600):
            clock.now = (50 + window) * seconds + i * seconds / 600
            try:
                candidates = router.account.affordable((0, 1, 2))
            except OverBudgetError:
                refused[window] += 1
                continue
            number = router.reserve(candidates)
            choice = router.choose(number, f"{QUESTIONS[i % 4]} {i}", None, candidates)
            usd = prices[NAMES[choice.llm]] * rng.uniform(0.9, 1.1)
            router.answered(number, choice.llm, usd, name=f"{window}.{i}")
            router.feedback(f"{window}.{i}", choice.llm > 0)
            spent += usd
            used[window, choice.llm] += 1
            assert spent <= 100.0 * min(1.0, i / 600 + live_budget.AHEAD) + 4.5
        assert 90.0 < spent <= 100.4  # by what the last answer cost more than usual
    assert (used > 0).all()
    router.account.budget = Budget(1e-6, per, prices)
    with pytest.raises(OverBudgetError, match="USD a"):
        router.account.affordable((0, 1, 2))


def test_requests_under_way_hold_back_their_price():
    router, _ = make(budget=Budget(10.0, "hour", dict.fromkeys(NAMES, 4.0)))
    for _ in range(2):
        router.reserve(router.account.affordable((0, 1, 2)))
    with pytest.raises(OverBudgetError):
        router.account.affordable((0, 1, 2))


# --- state ----------------------------------------------------------------------------------------


def test_the_agent_goes_on_where_it_was_and_no_text_is_kept(tmp_path):
    path, log = tmp_path / "state", tmp_path / "log.jsonl"
    router, _ = make(state=path, log=log)
    for i in range(30):
        ask(router, QUESTIONS[i % 3], f"s{i % 5}", name=str(i))
    learned = router.shared.learned
    assert learned.answers > 10
    again, _ = make(state=path)
    assert again.shared.learned.answers == learned.answers
    assert again.shared.learned.agent.encoder is context_of
    np.testing.assert_array_equal(
        again.shared.learned.agent.regression.theta, learned.agent.regression.theta
    )
    words = ("sky", "blue", "French", "Peru", "otter")
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        assert not [word for word in words if word.encode() in content], file
    assert log.read_text().count("\n") == learned.answers


def one_hot(place, dim=90):
    return np.eye(dim, dtype=np.float32)[place]


def open_shared(path, every=20):
    return SharedAgent(path, LinUCB(QueueProblem(2, 1, 90, 1, 0.5, 1000), 0), "ab", every=every)


def work(path, places, acknowledged):
    shared = open_shared(path)
    for place in places:
        shared.add(answer_entry(one_hot(place), 0, kept=True))
        acknowledged.send(place)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_share_what_they_learn_exactly_once_though_one_is_killed(tmp_path):
    # Answers are unit vectors, kept: theta_i is n / (1 + n) after n times the i-th. The last worker
    # goes on until it is killed, wherever it is; then another one opens what it left.
    path = tmp_path / "state"
    open_shared(path)
    fork = multiprocessing.get_context("fork")
    acknowledged = np.zeros(90, np.int64)
    for killed in range(1, 4):
        pairs = []
        for places in (range(30), range(30, 60), itertools.cycle(range(60, 90))):
            receiver, sender = fork.Pipe(duplex=False)
            pairs.append((fork.Process(target=work, args=(path, places, sender)), receiver))
            pairs[-1][0].start()
            sender.close()
        endless, heard = pairs[-1]
        for _ in range(10 * killed):
            acknowledged[heard.recv()] += 1
        os.kill(endless.pid, signal.SIGKILL)
        for worker, receiver in pairs:
            with contextlib.suppress(EOFError):
                while True:
                    acknowledged[receiver.recv()] += 1
            worker.join()
        assert endless.exitcode == -signal.SIGKILL
        learned = open_shared(path).learned
        theta = learned.agent.regression.theta[0]
        times = np.rint(theta / (1.0 - theta)).astype(np.int64)
        assert times.sum() == learned.answers
        assert (times[:60] == killed).all()
        assert (times >= acknowledged).all()
        assert times.sum() - acknowledged.sum() <= killed  # one at most was written and not told


def test_a_worker_catches_up_over_any_number_of_snapshots_and_torn_lines(tmp_path):
    path = tmp_path / "state"
    slow, quick = open_shared(path, 10), open_shared(path, 10)
    slow.add(answer_entry(one_hot(0), 0, kept=True))
    for place in range(1, 36):
        quick.add(answer_entry(one_hot(place), 0, kept=True))
    journal = next(tmp_path.glob("state.journal-*"))
    with journal.open("ab") as file:
        file.write(b'{"context": "AAA')  # somebody died here
    slow.add(answer_entry(one_hot(36), 0, kept=True))
    quick.catch_up()
    for shared in (slow, quick, open_shared(path, 10)):
        assert shared.learned.answers == 37
        np.testing.assert_allclose(shared.learned.agent.regression.theta[0][:37], 0.5)


def test_an_answer_whose_session_goes_on_at_another_worker_is_judged_by_neither(told, tmp_path):
    (one, clock), (other, other_clock) = (make(patience=60.0, state=tmp_path / "s") for _ in "ab")
    told.clear()  # of the trials
    ask(one, "why is the sky blue", "anna")
    ask(one, "name a river of Peru", "ben")
    clock.now = other_clock.now = clock.now + 5.0
    ask(other, "Why is the sky blue?", "anna")  # asks again, where nobody knows what was asked
    for router in (one, other):
        router.learn()
    clock.now = other_clock.now = clock.now + 90.0
    ask(one, "count to ten in French", "carl")
    assert [kept for _, kept in told] == [True]  # Ben's
    for file in tmp_path.iterdir():
        assert b"anna" not in file.read_bytes()


def test_a_snapshot_without_its_journal_is_read_with_the_one_before(tmp_path):
    from llmqueue_gym.state import write_state

    path = tmp_path / "state"
    shared = open_shared(path)
    for place in range(5):
        shared.add(answer_entry(one_hot(place), 0, kept=True))
    write_state(path, shared.learned, "router")  # died before the new journal
    shared = open_shared(path)
    shared.add(answer_entry(one_hot(5), 0, kept=True))
    learned = open_shared(path).learned
    assert learned.answers == 6
    np.testing.assert_allclose(learned.agent.regression.theta[0][:6], 0.5)


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"[1]",
        b"{",
        b"[" * 5000,
        b"1" * 5000,
        b'{"seen":3}',
        b'{"usd":"x","llm":0,"window":1}',
        b'{"usd":0.5,"llm":9,"window":1}',
        b'{"usd":0.5}',
        b'{"context":3,"llm":0,"kept":1,"retrials":0}',
    ],
)
def test_a_damaged_line_of_a_journal_is_counted_and_stops_nobody(line, tmp_path):
    path = tmp_path / "state"
    running = open_shared(path)
    running.add(answer_entry(one_hot(0), 0, kept=True))
    with (tmp_path / "state.journal-0").open("ab") as file:
        file.write(line + b"\n")
    running.add(answer_entry(one_hot(1), 0, kept=True))
    for shared in (running, open_shared(path)):
        assert (shared.learned.entries, shared.learned.answers) == (3, 2)
        assert shared.learned.refused == 1
        assert shared.learned.calls == [0] * len(shared.learned.llms)
        np.testing.assert_allclose(shared.learned.agent.regression.theta[0][:2], 0.5)


PAIRED = ("litellm-adaptive", "litellm-adaptive-retrials", "paretobandit")  # learn what they chose
UNSAVED = ("DQN-online", "PPO-online")  # Stable-Baselines3's objects
ONLINE = [
    spec.name
    for spec in registered_agents()
    if spec.load().kind == "queueing"
    and spec.load().protocol == "online"
    and not spec.name.startswith("known-")
    and spec.name not in (*PAIRED, *UNSAVED)
]


@pytest.mark.parametrize("name", ONLINE)
def test_online_agents_learn_from_answers_that_come_late_and_out_of_order(name, tmp_path):
    router, _ = make(name, state=tmp_path / "state")
    for i in range(8):
        for session in "ab":
            number = router.reserve((0, 1, 2))
            text = f"{QUESTIONS[i % 4]} {i}{session}"
            choice = router.choose(number, text, session, (0, 1, 2))
            router.answered(number, choice.llm, None)
    router.learn()
    again, _ = make(name, state=tmp_path / "state")
    for found in (router, again):
        assert (found.shared.learned.answers, found.shared.learned.refused) == (14, 0)


@pytest.mark.parametrize("name", PAIRED)
def test_agents_that_need_answers_at_once_are_refused(name):
    with pytest.raises(UsageError, match="live answers come late"):
        make(name)


# --- wrong usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"explore": 1.5}, "explore=1.5"),
        ({"patience": 0.0}, "patience=0.0"),
        ({"budget": Budget(1.0, "week", {})}, "budget.per 'week'"),
        ({"budget": Budget(1.0, "day", {"small": 1.0})}, "budget.prices has no 'large'"),
        ({"budget": Budget(1.0, "day", dict.fromkeys(NAMES, -1.0))}, "budget.prices"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(UsageError, match=message):
        make(**changes)


def test_agents_of_another_shape_are_refused(tmp_path):
    three = QueueProblem(3, 1, 3, 1, 0.5, 1000)
    for llms, problem, contexts, message in (
        (("a", "b"), three, context_of, "num_llms=2"),
        (("a", "a", "b"), three, context_of, "each once"),
        (NAMES, QueueProblem(3, 2, 3, 1, 0.5, 1000), context_of, "assortment_size=1"),
        (NAMES, three, None, "contexts=None"),
        (NAMES, three, lambda text: np.zeros(2), "gives 2 numbers"),
    ):
        with pytest.raises(UsageError, match=message):
            LiveRouter(LinUCB(problem, 0), llms, contexts)
    path = tmp_path / "state"
    make(state=path)
    with pytest.raises(UsageError, match="for other LLMs"):
        LiveRouter(LinUCB(three, 0), ("x", "y", "z"), context_of, state=path)
    for other, contexts in (
        (three, lambda text: context_of(f"{text}?")),
        (QueueProblem(3, 1, 4, 1, 0.5, 1000), lambda text: np.append(context_of(text), 0.0)),
    ):
        with pytest.raises(UsageError, match="another encoder"):
            LiveRouter(LinUCB(other, 0), NAMES, contexts, state=path)
