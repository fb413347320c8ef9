"""What a bucket held before, for a test that puts it back."""

from __future__ import annotations

from attestgate.bus.memory.bucket import BucketState
from tests.support.manager.deployment import Deployment


def watched(site: Deployment, bucket: str) -> list[BucketState]:
    """Every state that a bucket goes through from now on."""
    states: list[BucketState] = []
    store = site.wire.buckets[bucket]
    write = store._write

    def noted(key: str, value: bytes | None) -> int:
        states.append(store.snapshot())
        return write(key, value)

    store._write = noted  # type: ignore[method-assign]
    return states
