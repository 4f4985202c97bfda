"""Which failures are an LLM's: by status and by name, the same for the router and for the logs."""

import pytest
from test_spend_logs import ask, call, questions, read

from llmqueue_gym.workloads.sources.failures import CALLERS, LIMITED, excuse

EXCUSES = [
    (400, "BadRequestError", CALLERS),
    (422, "BadRequestError", CALLERS),
    (400, "ContentPolicyViolationError", CALLERS),
    (401, "CallerCredentialAuthenticationError", CALLERS),
    (499, "ClientDisconnected", CALLERS),
    (429, "RateLimitError", LIMITED),
    (400, "ContextWindowExceededError", None),
    (402, "PaymentRequiredError", None),  # a BadRequestError, but the operator's
    (401, "AuthenticationError", None),
    (403, "PermissionDeniedError", None),
    (404, "NotFoundError", None),
    (408, "Timeout", None),
    (413, "APIError", None),
    (500, "InternalServerError", None),
    (503, "MidStreamFallbackError", None),
    (None, "APIError", None),
    (None, "BadRequestError", CALLERS),
    ("invalid_request_error", "BadRequestError", CALLERS),  # a provider's own code
    ("context_length_exceeded", "ContextWindowExceededError", None),
    ("", "RateLimitError", LIMITED),
]


@pytest.mark.parametrize(("code", "error", "expected"), EXCUSES)
def test_what_fails_wherever_it_is_sent_is_no_failure_of_the_llm(code, error, expected):
    assert excuse(code, error) == expected
    if code:
        assert excuse(str(code), error) == expected  # as logs have it


@pytest.mark.parametrize(("code", "error", "expected"), EXCUSES)
def test_a_spend_log_counts_the_same_failures_as_the_router(code, error, expected):
    rows = questions(30)
    told = {"error_information": {"error_code": code, "error_class": error}}
    rows[4] |= {"status": "failure", "metadata": told}
    found = read(rows)
    assert found.left_out == ({} if expected is None else {f"no answer: {expected}": 1})
    assert len(found.turns) - found.kept.sum() == (expected is None)


def test_who_mends_a_request_and_sends_it_again_does_not_ask_again():
    wrong = {"error_information": {"error_code": "400", "error_class": "BadRequestError"}}
    again = [call(0, ask("why is glass clear"), status="failure", metadata=wrong)]
    again.append(call(5, ask("why is glass clear")))
    assert read(again).kept.tolist() == [1.0]
    assert not read(again).repeat.any()
