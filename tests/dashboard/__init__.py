"""The tests of powerbi/, which need powerbi/requirements.txt: pytest --ignore=tests/dashboard leaves them out."""

import pytest

pytest.register_assert_rewrite("tests.dashboard.markets", "tests.dashboard.source")
