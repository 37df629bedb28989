"""Refusal: why a request gets no answer, as OpenAI's interface tells it."""

from typing import Any


class Refusal(Exception):
    """A request that is not answered.

    Args:
        message: what is wrong, the value found and the value wanted.
        status: of HTTP.
        param: the field of the request that is wrong, or None.
        code: a word for programs, or None.
        retry: seconds after which it may be tried again, or None.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry: int | None = None,
    ):
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.retry = message, status, param, code, retry

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def kind(self) -> str:
        """OpenAI's word for the status."""
        return KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def headers(self) -> dict[str, str]:
        """What goes with it."""
        made = {} if self.retry is None else {"Retry-After": str(self.retry)}
        return {**made, "WWW-Authenticate": "Bearer"} if self.status == 401 else made


KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
