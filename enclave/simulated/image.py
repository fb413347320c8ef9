"""Private copies of what was measured: an enclave runs from these, so later edits of the source change nothing.

The base and site trees are copied and compiled once and shared by the enclaves that were measured with them; the code
tree is copied for each launch and removed after it.
"""

from __future__ import annotations

import compileall
import shutil
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from tempfile import mkdtemp

from attestgate.enclave.simulated.measure import Contents, tree_digest
from attestgate.enclave.simulated.trusted import PYTHON, TrustedFile


@dataclass(frozen=True)
class Image:
    """The folders of one enclave."""

    base: Path
    site: Path
    code: Path

    def remove(self) -> None:
        """Remove the tree that only this enclave uses."""
        shutil.rmtree(self.code)


class Images:
    """A folder of images, owned by one daemon. Not for use from two threads at once."""

    def __init__(self, folder: Path) -> None:
        """Start empty: what an earlier daemon left is removed."""
        self._folder = folder
        self.close()
        folder.mkdir(mode=0o700)

    def build(self, contents: Contents) -> Image:
        """Copy what was measured. Raises Refusal `measure.changed` if it has changed since, OSError."""
        code = Path(mkdtemp(prefix="code-", dir=self._folder))
        try:
            _copy(contents.code, code)
            return Image(self._shared("base", contents.base), self._shared("site", contents.site), code)
        except BaseException:
            shutil.rmtree(code)
            raise

    def close(self) -> None:
        """Remove every image."""
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _shared(self, kind: str, files: list[TrustedFile]) -> Path:
        tree = self._folder / f"{kind}-{tree_digest(files).hex()}"
        if not tree.exists():
            draft = Path(mkdtemp(prefix="draft-", dir=self._folder))
            _copy(files, draft)
            # Compiled from the copies, and never checked against them again: nothing else writes here.
            compileall.compile_dir(draft, quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
            draft.rename(tree)
        return tree


def _copy(files: list[TrustedFile], folder: Path) -> None:
    for file in files:
        target = folder / file.name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        target.write_bytes(file.read())
        target.chmod(0o500 if file.name == PYTHON else 0o400)
