"""What befalls a router in operation: clocks that are set, full disks, files that vanish."""

import contextlib

import numpy as np
import pytest

from baselines.interface import QueueProblem
from baselines.queueing.linear import LinUCB
from baselines.registry import make_agent
from llmqueue_gym.errors import UsageError
from llmqueue_gym.live import budget as live_budget
from llmqueue_gym.live import router as live_router
from llmqueue_gym.live import shared_agent as live_shared_agent
from llmqueue_gym.live.budget import Budget, OverBudgetError
from llmqueue_gym.live.router import LiveRouter
from llmqueue_gym.live.shared_agent import WINDOWS, Learned, SharedAgent, answer_entry

NAMES = ("small", "large")
PRICES = dict.fromkeys(NAMES, 0.1)
HOUR = 3600.0


class Clock:
    def __init__(self, now=300 * HOUR):
        self.now = now

    def __call__(self):
        return self.now


def make(**settings):
    """A router, what it takes for the time, and the clock that nobody sets."""
    agent = make_agent("LinUCB", QueueProblem(2, 1, 2, 1, 0.5, 1000), 0)
    agent.encoder = lambda text: np.array([len(text) % 2, 1.0], np.float32)
    clock, timer = Clock(), Clock(0.0)
    return LiveRouter(agent, NAMES, clock=clock, timer=timer, seed=0, **settings), clock, timer


def ask(router, text="why is the sky blue", session=None, usd=0.1):
    number = router.reserve((0, 1))
    choice = router.choose(number, text, session, (0, 1))
    router.answered(number, choice.llm, usd)
    router.learn()
    return choice


def answers(router):
    """Ask until the budget is spent."""
    for count in range(1000):
        router.learn()
        try:
            router.account.affordable((0, 1))
        except OverBudgetError:
            return count
        ask(router)
    return 1000


# --- clocks that are set --------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-7 * HOUR, -HOUR, HOUR, 7 * HOUR, 1e6 * HOUR])
def test_a_clock_that_is_set_leaves_every_windows_budget_in_force(jump, tmp_path):
    # Ten answers an hour. One worker's clock is wrong for a while: what it spends then is of
    # another hour, and no hour is without its budget, at any worker.
    (one, wrong, _), (other, right, _) = (
        make(budget=Budget(1.0, "hour", PRICES), state=tmp_path / "s") for _ in "ab"
    )
    wrong.now = right.now = 300 * HOUR + 3599.0  # none is ahead of the pace
    for _ in range(4):
        ask(one)
    wrong.now += jump
    assert answers(one) == 10
    assert answers(other) == 6
    wrong.now -= jump
    assert answers(one) == answers(other) == 0
    right.now += HOUR
    assert answers(other) == (0 if jump == HOUR else 10)
    again, clock, _ = make(budget=Budget(1.0, "hour", PRICES), state=tmp_path / "s")
    clock.now = 300 * HOUR + 3599.0
    assert answers(again) == 0


def test_windows_are_forgotten_in_the_order_of_their_last_booking():
    learned = Learned(None, NAMES)
    for window in range(3 * WINDOWS):
        learned.apply({"usd": 1.0, "llm": 0, "window": 7})
        learned.apply({"usd": 1.0, "llm": 0, "window": 1000 - window})
    assert len(learned.spent) == WINDOWS
    assert learned.spent[7] == 3 * WINDOWS


def test_a_state_of_one_window_is_read():
    learned, found = Learned(None, NAMES), object.__new__(Learned)
    state = {name: value for name, value in vars(learned).items() if name != "spent"}
    found.__setstate__({**state, "window": 5, "spent": 0.5})
    assert found.spent == {5: 0.5}
    found.apply({"usd": 1.0, "llm": 0, "window": 5})
    assert found.spent == {5: 1.5}


@pytest.mark.parametrize("jump", [-100 * HOUR, 100 * HOUR])
def test_a_clock_that_is_set_changes_nothing_that_lasts(jump, tmp_path):
    # Sessions rest, other workers' answers are looked for and lost requests are given up by a clock
    # that nobody sets.
    (one, clock, timer), (other, _, _) = (make(patience=60.0, state=tmp_path / "s") for _ in "ab")
    ask(one, session="a")
    lost = one.reserve((0, 1))
    one.choose(lost, "name a river of Peru", None, (0, 1))
    clock.now += jump
    ask(one, session="b")
    assert one.shared.learned.answers == 0  # nobody has rested
    for text in ("why", "count to ten in French"):
        ask(other, text, "c")
    timer.now += live_router.FRESH + 0.1
    one.choose(one.reserve((0, 1)), "who was Ada Lovelace", None, (0, 1))
    assert one.shared.learned.answers == 1  # another worker's
    timer.now += 61.0
    ask(one)
    assert one.shared.learned.answers == 3
    timer.now += live_budget.UNDER_WAY
    ask(one)
    assert lost not in one._under_way


# --- files that cannot be written -----------------------------------------------------------------


@pytest.fixture
def full(monkeypatch):
    """Makes files full, and gives them space again."""
    add = SharedAgent.add

    def refuse(self, *entries):
        raise OSError(28, "No space left on device")

    def fill(is_full):
        monkeypatch.setattr(SharedAgent, "add", refuse if is_full else add)

    return fill


@pytest.mark.parametrize("usd", [0.1, 0.3])
def test_a_budget_is_in_force_while_nothing_can_be_written(usd, full, tmp_path):
    path = tmp_path / "s"
    router, clock, timer = make(budget=Budget(1.0, "hour", PRICES), state=path)
    clock.now += 0.9 * HOUR

    def spent():
        total = 0.0
        for _ in range(20):
            timer.now += live_budget.UNDER_WAY  # reservations do not stand for it
            with contextlib.suppress(OverBudgetError):
                candidates = router.account.affordable((0, 1))
                number = router.reserve(candidates)
                choice = router.choose(number, "why is the sky blue", None, candidates)
                with contextlib.suppress(OSError):
                    router.answered(number, choice.llm, usd)
                total += usd
        return total

    full(True)
    found = spent()
    assert 1.0 - usd < found < 1.0 + usd
    assert not router.account._held
    full(False)
    router.learn()
    again, clock, _ = make(budget=Budget(1.0, "hour", PRICES), state=path)
    (booked,) = again.shared.learned.spent.values()
    assert booked == pytest.approx(found)
    router.learn()  # and once
    again.learn()
    assert again.shared.learned.spent == router.shared.learned.spent
    clock.now += HOUR
    ask(again)
    assert len(again.shared.learned.spent) == 2


def test_an_answer_of_an_unknown_price_costs_what_the_budget_says(tmp_path):
    router, clock, _ = make(budget=Budget(1.0, "hour", PRICES))
    clock.now += HOUR - 1.0
    for _ in range(10):
        router.account.affordable((0, 1))
        ask(router, usd=0.0)
    with pytest.raises(OverBudgetError):
        router.account.affordable((0, 1))


def test_what_nobody_has_time_for_is_paid_all_the_same():
    router, clock, _ = make(budget=Budget(1.0, "hour", PRICES))
    clock.now += HOUR - 1.0
    for _ in range(10):
        router.account.owe(router.reserve((0, 1)), 0, 0.1)
    assert not router.account._held
    with pytest.raises(OverBudgetError):
        router.account.affordable((0, 1))


def test_what_nothing_is_heard_of_is_paid_at_its_usual_price_once(tmp_path):
    # Users who stop listening to a stream: LiteLLM's SDK tells nothing of it, the provider's bill
    # does. Late enough in the hour that none is ahead of the pace.
    path = tmp_path / "s"
    router, clock, timer = make(budget=Budget(1.0, "hour", PRICES), state=path)
    clock.now += HOUR - 1.0
    for i in range(4):
        router.choose(router.reserve((0, 1)), f"name {i} rivers of Peru", None, (0, 1))
    timer.now += live_budget.UNDER_WAY + 1.0
    assert answers(router) == 6
    router.learn()
    assert not router.account._held
    again, later, _ = make(budget=Budget(1.0, "hour", PRICES), state=path)
    assert sum(again.shared.learned.spent.values()) == pytest.approx(1.0)
    assert sum(again.shared.learned.calls) == 6  # it tells nothing of an LLM's mean cost
    timer.now += live_budget.UNDER_WAY + 1.0
    clock.now = later.now = clock.now + HOUR
    ask(router)  # nothing is paid twice
    again.learn()
    assert sum(again.shared.learned.spent.values()) == pytest.approx(1.1)


def test_a_log_that_cannot_be_written_is_told_at_once(tmp_path):
    with pytest.raises(UsageError, match="log="):
        make(log=tmp_path / "no such folder" / "log.jsonl")


def open_shared(path, every=20):
    return SharedAgent(path, LinUCB(QueueProblem(2, 1, 90, 1, 0.5, 1000), 0), "ab", every=every)


def answer(place):
    return answer_entry(np.eye(90, dtype=np.float32)[place], 0, kept=True)


@pytest.mark.parametrize("every", [7, 1000])
@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("lost", ["journal", "snapshot", "both", "cut", "half"])
def test_files_that_vanish_cost_workers_nothing_they_know(lost, behind, every, tmp_path):
    # Answers are unit vectors, kept, each once: theta is 1/2 where one was learned. A worker that
    # was behind goes on with what the other one knew, and so does one that opens the files anew.
    path = tmp_path / "state"
    one, other = open_shared(path, every), open_shared(path, every)
    for place in range(10):
        one.add(answer(place))
    if not behind:
        other.catch_up()
    for file in path.parent.glob("state.journal-*"):
        if lost in ("journal", "both"):
            file.unlink()
        elif lost in ("cut", "half"):
            file.write_bytes(file.read_bytes()[: 0 if lost == "cut" else file.stat().st_size // 2])
    if lost in ("snapshot", "both"):
        path.unlink()
    for place in range(10, 40, 2):
        one.add(answer(place))
        other.add(answer(place + 1))
    one.catch_up()
    for shared in (one, other, open_shared(path, every)):
        assert (shared.learned.answers, shared.learned.refused) == (40, 0)
        np.testing.assert_allclose(shared.learned.agent.regression.theta[0][:40], 0.5)


def test_a_deleted_agent_leaves_nothing_to_the_next_one(tmp_path):
    path = tmp_path / "state"
    for _ in range(2):
        shared = open_shared(path)
        for place in range(33):
            shared.add(answer(place))
        assert (shared.learned.answers, open_shared(path).learned.answers) == (33, 33)
        path.unlink()


def test_a_snapshot_that_cannot_be_written_loses_no_answer(monkeypatch, tmp_path):
    def refuse(*_):
        raise UsageError("No space left on device")

    path = tmp_path / "state"
    shared = open_shared(path)
    with monkeypatch.context() as patch:
        patch.setattr(live_shared_agent, "write_state", refuse)
        for place in range(19):
            shared.add(answer(place))
        with pytest.warns(RuntimeWarning, match="No space"):
            shared.add(answer(19))
        for place in range(20, 30):  # no second warning: not tried each time
            shared.add(answer(place))
    assert (shared.learned.answers, open_shared(path).learned.answers) == (30, 30)
    monkeypatch.setattr(live_shared_agent, "AGAIN", 0.0)
    shared._next = 0.0
    shared.add(answer(30))
    assert path.with_name("state.journal-31").exists()
    assert open_shared(path).learned.answers == 31


def test_a_state_of_another_class_of_agent_is_refused(tmp_path):
    open_shared(tmp_path / "state")
    other = make_agent("LinTS", QueueProblem(2, 1, 90, 1, 0.5, 1000), 0)
    with pytest.raises(UsageError, match="of a LinUCB, not of a LinTS"):
        SharedAgent(tmp_path / "state", other, "ab")
