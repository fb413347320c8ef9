"""Writes the tables of docs/threats.md."""

from __future__ import annotations

from tests.support.threats.page import PAGE, page

if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
