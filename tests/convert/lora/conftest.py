"""What the tests of adapters share: tiny bases, adapters by PEFT, its own merges, and its rules."""

from __future__ import annotations

import pytest

from tests.support import peft_adapters
from tests.support.peft_adapters import CASES, Made, Rules


@pytest.fixture(scope="session")
def by_peft(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Made], Rules]:
    return peft_adapters.make(CASES.values(), tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="session")
def adapters(by_peft: tuple[dict[str, Made], Rules]) -> dict[str, Made]:
    return by_peft[0]


@pytest.fixture(scope="session")
def peft_rules(by_peft: tuple[dict[str, Made], Rules]) -> Rules:
    return by_peft[1]
