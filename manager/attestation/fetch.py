"""One request to an attestation service: bounded in size, retried where that may help, or a refusal that says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from attestgate.schemas.base import Refusal

ATTEMPTS = 3
_CODING = {"content-encoding", "content-length", "transfer-encoding"}


class _Busy(Exception):
    """The service is temporarily unavailable (429 or 5xx): retry."""


@dataclass(frozen=True)
class Service:
    """A service as its client sees it. `code` begins its refusals; `wait_s` is the first pause before a retry."""

    http: httpx.AsyncClient
    code: str
    wait_s: float
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    async def ask(self, method: str, url: str, *, limit: int, body: object = None) -> httpx.Response:
        """The answer, its body (at most `limit` bytes) read; `body` is sent as JSON.

        Raises Refusal: `<code>.unavailable`, or `<code>.answer` for a longer one.
        """
        try:
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(ATTEMPTS),
                wait=wait_random_exponential(multiplier=self.wait_s, max=2.0),
                retry=retry_if_exception_type((httpx.TransportError, _Busy)),
                reraise=True,
            ):
                with attempt:
                    return await self._once(method, url, limit, body)
        except (httpx.HTTPError, httpx.InvalidURL, _Busy) as error:
            raise self.unavailable(url, f"{type(error).__name__}: {error}") from None
        raise AssertionError("tenacity ends with a value or an error")

    async def _once(self, method: str, url: str, limit: int, body: object) -> httpx.Response:
        async with self.http.stream(method, url, json=body, headers=dict(self.headers)) as response:
            if response.status_code == httpx.codes.TOO_MANY_REQUESTS or response.is_server_error:
                raise _Busy(f"HTTP {response.status_code}")
            if not response.is_success:
                raise self.unavailable(url, f"HTTP {response.status_code}")
            content = bytearray()
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > limit:
                    raise self.answer(url, f"at most {limit} bytes", "more")
            # The body is decoded by now; headers that speak about its coding would mislead.
            headers = [(name, value) for name, value in response.headers.items() if name.lower() not in _CODING]
            return httpx.Response(
                response.status_code, headers=headers, content=bytes(content), request=response.request
            )

    def answer(self, url: str, expected: str, found: str) -> Refusal:
        """The refusal of an answer that is not what was asked for."""
        action = "check that the URL in the settings is that of the service"
        return Refusal.because(f"{self.code}.answer", url, expected=expected, found=found, action=action)

    def unavailable(self, url: str, found: str) -> Refusal:
        """The refusal where there is no answer."""
        return Refusal.because(
            f"{self.code}.unavailable",
            url,
            expected="an answer from the attestation service",
            found=found,
            action="check that the service runs and can be reached; nothing is attested without it",
        )
