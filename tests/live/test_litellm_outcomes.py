"""What the router in the real LiteLLM makes of calls that fail, stream, and are given up."""

import time

import pytest

litellm = pytest.importorskip("litellm")

from real_litellm import LLMS, ask, gateway, learning, run, settled  # noqa: E402

from llmqueue_gym.live.budget import UNDER_WAY, Budget  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of other people's packages
    pytest.mark.usefixtures("callbacks"),
]

PRICE = 0.0002  # of 200 tokens
BUDGET = Budget(1.0, "day", dict.fromkeys(LLMS, PRICE))


def nothing_pending(learner):
    learner.settle()
    router = learner.router
    return not router._under_way and not router.account._held


@pytest.mark.parametrize(
    ("code", "words", "learned"),
    [
        (400, "invalid parameter foo", False),
        (400, "content_policy_violation: rejected by our safety system", False),
        (400, "This model's maximum context length is 4097 tokens, your messages have 9999", True),
        (401, "no such key", True),
        (403, "not yours", True),
        (404, "no such model", True),
        (408, "too slow", True),
        (413, "too large", True),
        (422, "not to be processed", False),
        (429, "too many", False),
        (500, "broken", True),
        (529, "overloaded", True),
    ],
)
def test_only_what_another_llm_would_have_answered_is_held_against_one(
    code, words, learned, server, encoder
):
    learner = learning(encoder, budget=BUDGET)
    server.down, server.words = dict.fromkeys(("small", "large", "coder"), code), words
    with pytest.raises(Exception, match="litellm"):
        run(ask(gateway(server, learner), "poem", metadata={"session_id": "s"}))
    run(settled())
    assert nothing_pending(learner)
    assert learner.router.shared.learned.answers == learned
    server.down = {}  # the session goes on as if nothing had been asked
    run(ask(gateway(server, learner), "poem", metadata={"session_id": "s"}))
    assert nothing_pending(learner)
    (choice,) = learner.router._open.values()
    assert choice.retrials == 0
    assert sum(learner.router.shared.learned.spent.values()) == pytest.approx(PRICE)


async def heard(router, text, chunks=None, **request):
    """Listen to an answer that is streamed, to its end or for some chunks; return its id."""
    answer = await ask(router, text, stream=True, metadata={"session_id": "s"}, **request)
    count = 0
    async for chunk in answer:  # noqa: B007
        if (count := count + 1) == chunks:
            await answer.aclose()
            break
    return chunk.id


@pytest.mark.parametrize("made_up", [False, True])
def test_an_answer_that_is_streamed_is_paid_and_judged_like_any_other(made_up, server, encoder):
    learner = learning(encoder, budget=BUDGET)
    request = {"mock_response": "fine words"} if made_up else {}
    request |= {"stream_options": {"include_usage": True}}

    async def asked():
        router = gateway(server, learner)
        first = await heard(router, "poem", **request)
        await settled()
        (paid,) = learner.router.shared.learned.spent.values()
        assert await learner.feedback(first, kept=False)
        assert learner.router.shared.learned.answers == 1
        await heard(router, "proof", **request)
        await settled()
        await heard(router, "python", **request)  # goes on: the second one was kept
        await settled()
        return paid

    paid = run(asked())
    assert nothing_pending(learner)
    assert learner.router.shared.learned.answers == 2
    assert paid > 0.0 if made_up else paid == pytest.approx(PRICE)


def test_a_stream_that_breaks_is_a_failure(server, encoder):
    learner = learning(encoder, budget=BUDGET)
    server.breaks = True
    with pytest.raises(Exception, match="broken"):
        run(heard(gateway(server, learner), "poem"))
    run(settled())
    assert nothing_pending(learner)
    assert learner.router.shared.learned.answers == 1


def test_a_stream_that_nobody_hears_to_its_end_is_paid(server, encoder):
    learner = learning(encoder, budget=BUDGET)

    async def asked():
        router = gateway(server, learner)
        await heard(router, "poem", chunks=1)
        await settled()
        later = time.monotonic() + 1.0 + UNDER_WAY
        learner.router._timer = learner.router.account._timer = lambda: later
        await ask(router, "proof", metadata={"session_id": "another"})
        await settled()

    run(asked())
    assert nothing_pending(learner)
    assert sum(learner.router.shared.learned.spent.values()) == pytest.approx(2 * PRICE)
