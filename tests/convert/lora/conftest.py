"""What the tests of adapters share: tiny bases, adapters by PEFT, and its own merges."""

from __future__ import annotations

import pytest

from tests.support import peft_adapters
from tests.support.peft_adapters import Made


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return peft_adapters.make(peft_adapters.CASES.values(), tmp_path_factory.mktemp("adapters"))
