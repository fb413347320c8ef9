"""`GET /metrics` of one process, in Prometheus's text format, on the address that its settings name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from prometheus_client import CollectorRegistry, start_http_server

from attestgate.schemas.base import Refusal

log = structlog.get_logger(__name__)


@contextmanager
def served(address: str | None, registry: CollectorRegistry) -> Iterator[str | None]:
    """Serve while the context is open; yields the URL, None if no address is set. Raises Refusal `metrics.address`."""
    if address is None:
        yield None
        return
    host, _, port = address.partition(":")
    try:
        server, thread = start_http_server(int(port), host, registry)
    except (OSError, OverflowError) as error:
        raise Refusal.because(
            "metrics.address",
            address,
            expected="an address of this machine and a free port",
            found=getattr(error, "strerror", None) or error,
            action="correct the setting metrics, or use port 0 for a free one",
        ) from None
    try:
        url = f"http://{host}:{server.server_port}/metrics"
        log.info("metrics served", url=url)
        yield url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
