"""What tests of more than one folder, and the benchmarks, share. It tests nothing itself."""

import pkgutil

import pytest

# A failed assertion in here shows its values, as one in a test module does.
pytest.register_assert_rewrite(*(f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)))
