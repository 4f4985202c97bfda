"""Which failed calls are held against an LLM: those that another one would have answered."""

LIMITED = "the provider's rate limit (429)"
CALLERS = "an error of the caller's (400)"

_CALLERS_CODES = ("400", "422", "499")  # 499: the caller hung up
_CALLERS_ERRORS = (
    "BadRequestError",
    "ContentPolicyViolationError",
    "ImageFetchError",
    "InvalidRequestError",
    "RejectedRequestError",
    "UnprocessableEntityError",
    "UnsupportedParamsError",
)


def excuse(code: object, error: str) -> str | None:
    """Return why a failed call says nothing of the LLM that was asked; None if it does.

    A request that is wrong in itself fails wherever it is sent, and a rate limit tells of the
    traffic. A prompt that is too long for an LLM, and whatever its deployment does not do, is its
    failure: another one would have answered.

    Parameters
    ----------
    code : int or str
        HTTP status of the call.
    error : str
        Name of LiteLLM's exception; it decides where the code is none.
    """
    status = str(code)
    if error == "ContextWindowExceededError":
        return None
    if error.startswith("CallerCredential"):  # the key is the caller's own
        return CALLERS
    if status == "429" or error == "RateLimitError":
        return LIMITED
    if status.isdigit():
        return CALLERS if status in _CALLERS_CODES else None
    return CALLERS if error in _CALLERS_ERRORS else None
