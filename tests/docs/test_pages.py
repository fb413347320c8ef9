"""The pages that are made from the code are the code's."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from attestgate.cli.config import MODELS
from attestgate.cli.reference import DOCS, PAGES, keys_of, settings_page
from attestgate.schemas.prototype import PROTOTYPE

ORIGINAL = [
    *("rh_host", "rh_port", "container_host", "container_port", "measurement_list", "remotehostHashKeyLocation"),
    *("applicationHashKeyLocation", "nginx_pub_crt", "nginx_client_crts", "server_crt", "server_key"),
    *("spid", "ias_crt", "ias_url"),
]
"""Every setting of the prototype."""


@pytest.mark.parametrize("name", PAGES)
def test_a_page_says_what_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), (
        "write it again: python -m attestgate.cli.reference"
    )


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.__name__)
def test_every_key_says_what_it_means(model: type[BaseModel]) -> None:
    keys = dict(keys_of(model))
    assert len(keys) > 4
    assert [key for key, field in keys.items() if not field.description] == []


def test_every_setting_of_the_prototype_has_a_place() -> None:
    assert sorted(PROTOTYPE) == sorted(ORIGINAL)
    assert all(f"| `{name}` |" in settings_page() for name in ORIGINAL)
