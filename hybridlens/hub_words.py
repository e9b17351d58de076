"""What the hub's client raises, as one line that says what to do about it.

`refusal` looks through an error and its causes for one of the kinds that the hub tells apart by its headers: a gated
repository with and without a token, one that is missing or private, an unknown revision, a token that is not
accepted, too many requests, and no answer at all. How it fails: it does not; of an unknown kind, what the client says
is given on one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

TAKEN_FOR_AWAY = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
LONGEST = 300
"""Characters of what another library says."""


def refusal(error: BaseException, repo: str, revision: str | None) -> str:
    """Why a repository, or a file of it, cannot be had, and what to do.

    Args:
        error: what the client raised.
        repo: its hub id.
        revision: the one that was asked for.
    """
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{repo}"
    for cause in causes(error):
        status = _status(cause)
        if isinstance(cause, errors.GatedRepoError):
            if get_token() is None or status == HTTPStatus.UNAUTHORIZED:
                return (
                    f"'{repo}' is gated and no token was sent; accept its licence at {page}, then run `hf auth login` "
                    "or set HF_TOKEN"
                )
            return (
                f"'{repo}' is gated and the account of your token has no access; accept its licence at {page} with "
                "that account (`hf auth whoami`), or set HF_TOKEN to a token of one that has access"
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return f"'{repo}' has no revision {revision!r}; its branches, tags and commits are at {page}/commits/main"
        if status == HTTPStatus.UNAUTHORIZED and "invalid" in str(cause).lower() and get_token() is not None:
            return (
                "the hub does not accept your token; make a new one and run `hf auth login` or set HF_TOKEN, or unset "
                f"it for what is public ('{repo}' was asked for)"
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            private = (
                "run `hf auth login` or set HF_TOKEN"
                if get_token() is None
                else "the account of your token needs access to it (`hf auth whoami`)"
            )
            return f"the hub has no model '{repo}' that you may see; check the name, or, if it is private, {private}"
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE keeps it from being fetched; unset it"
        if status is not None:
            said = getattr(cause, "server_message", None) or one_line(cause)
            return f"the hub answers with {status} for '{repo}' ({one_line(said)}); {_then(status)}"
        if _of_connection(cause):
            return (
                f"{constants.ENDPOINT} cannot be reached ({one_line(cause)}); check the connection, a proxy, and "
                "HF_ENDPOINT"
            )
    return f"'{repo}' cannot be fetched ({one_line(error)}); try again"


def away(error: BaseException) -> bool:
    """Whether the hub was not asked, or did not answer for reasons of its own."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    for cause in causes(error):
        status = _status(cause)
        if status is not None:
            return status in TAKEN_FOR_AWAY or status >= HTTPStatus.INTERNAL_SERVER_ERROR
        if isinstance(cause, OfflineModeIsEnabled) or _of_connection(cause):
            return True
    return False


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, the outermost first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def one_line(said: BaseException | str) -> str:
    """A message on one line; of an error without any, its kind."""
    text = " ".join(str(said).split()) or type(said).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _then(status: int) -> str:
    if status == HTTPStatus.FORBIDDEN:
        return "give your token the right to read it, or use another (HF_TOKEN)"
    if status in TAKEN_FOR_AWAY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return "try again later"
    return "check the name and your token"


def _status(error: BaseException) -> int | None:
    from huggingface_hub.errors import HfHubHTTPError

    return int(error.response.status_code) if isinstance(error, HfHubHTTPError) else None


def _of_connection(error: BaseException) -> bool:
    from huggingface_hub.utils import httpx

    return isinstance(error, (httpx.TransportError, ConnectionError, TimeoutError))
