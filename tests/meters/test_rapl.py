"""RAPL on hand-made powercap trees: which domains count, wrap-around, and what is said without access."""

import errno
from pathlib import Path

import pytest

from edgellm.errors import MeterError
from edgellm.meters import RaplMeter, discover, missing_reason
from edgellm.meters.files import read_text
from edgellm.protocols import Meter

RANGE_UJ = 262_143_328_850
POWERCAP = "sys/class/powercap"


def domain(root: Path, directory: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> Path:
    path = root / POWERCAP / directory
    path.mkdir(parents=True, exist_ok=True)
    (path / "name").write_text(f"{name}\n")
    (path / "energy_uj").write_text(f"{energy_uj}\n")
    (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
    return path


def set_energy(root: Path, directory: str, energy_uj: int) -> None:
    (root / POWERCAP / directory / "energy_uj").write_text(f"{energy_uj}\n")


@pytest.fixture
def client(tmp_path: Path) -> Path:
    """A client processor: one package with children, psys above it, and the MMIO mirror."""
    domain(tmp_path, "intel-rapl:0", "package-0", 197_231_547_311)
    domain(tmp_path, "intel-rapl:0:0", "core", 90_000_000)
    domain(tmp_path, "intel-rapl:0:1", "uncore", 10_000_000)
    domain(tmp_path, "intel-rapl:1", "psys", 300_000_000)
    domain(tmp_path, "intel-rapl-mmio:0", "package-0", 197_231_547_311)
    (tmp_path / POWERCAP / "intel-rapl").mkdir()
    return tmp_path


def test_only_the_package_counts(client: Path) -> None:
    meter = RaplMeter(client)
    assert meter.probe().available
    first = meter.read()
    assert first.value == 0
    for directory in ("intel-rapl:0:0", "intel-rapl:0:1", "intel-rapl:1", "intel-rapl-mmio:0"):
        set_energy(client, directory, 250_000_000_000)
    assert meter.read().value == 0
    set_energy(client, "intel-rapl:0", 197_231_547_311 + 5_000_000)
    second = meter.read()
    assert second.value == pytest.approx(5.0)
    assert second.t_ns >= first.t_ns


def test_two_packages_are_added(tmp_path: Path) -> None:
    for n in (0, 1):
        domain(tmp_path, f"intel-rapl:{n}", f"package-{n}", 1000)
    meter = RaplMeter(tmp_path)
    meter.read()
    set_energy(tmp_path, "intel-rapl:0", 2_001_000)
    set_energy(tmp_path, "intel-rapl:1", 3_001_000)
    assert meter.read().value == pytest.approx(5.0)


def test_wrap_around_is_inside(client: Path) -> None:
    set_energy(client, "intel-rapl:0", RANGE_UJ - 1_500_000)
    meter = RaplMeter(client)
    values = [meter.read().value]
    for energy_uj in (RANGE_UJ - 500_000, 500_000, 1_500_000, RANGE_UJ - 1, 999_999):
        set_energy(client, "intel-rapl:0", energy_uj)
        values.append(meter.read().value)
    assert values[:4] == pytest.approx([0.0, 1.0, 2.0, 3.0])
    assert values == sorted(values)
    assert values[-1] - values[-2] == pytest.approx(1.0)


def test_a_gap_loses_nothing(client: Path) -> None:
    broken = False

    def read_file(path: Path) -> str:
        if broken and path.name == "energy_uj":
            raise OSError(errno.ENODATA, "No data available")
        return read_text(path)

    meter = RaplMeter(client, read_file)
    meter.read()
    set_energy(client, "intel-rapl:0", 197_231_547_311 + 1_000_000)
    broken = True
    with pytest.raises(MeterError, match="No data available"):
        meter.read()
    assert "No data available" in meter.probe().reason
    broken = False
    set_energy(client, "intel-rapl:0", 197_231_547_311 + 3_000_000)
    assert meter.read().value == pytest.approx(3.0)


def test_a_permission_problem_has_a_remedy_with_its_price(client: Path) -> None:
    def read_file(path: Path) -> str:
        if path.name == "energy_uj":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read_text(path)

    meter = RaplMeter(client, read_file)
    found = meter.probe()
    assert not found.available
    assert "root" in found.reason
    assert "chmod -R a+r /sys/class/powercap" in found.remedy
    assert "side channel" in found.remedy
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert "chmod" in (caught.value.hint or "")


def test_a_counter_that_is_no_number_is_an_error(client: Path) -> None:
    meter = RaplMeter(client)
    (client / POWERCAP / "intel-rapl:0/energy_uj").write_text("many\n")
    assert not meter.probe().available
    with pytest.raises(MeterError, match="many"):
        meter.read()


def test_no_package_domain(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "psys", 1)
    assert "no package domain" in RaplMeter(tmp_path).probe().reason
    with pytest.raises(MeterError, match="no package domain"):
        RaplMeter(tmp_path).read()


def test_discovery_and_the_reason_for_none(client: Path, tmp_path: Path) -> None:
    found = {meter.name: availability.available for meter, availability in discover(client)}
    assert found == {"rapl": True, "battery": False}
    assert missing_reason(client) == ""
    empty = tmp_path / "empty"
    empty.mkdir()
    reason = missing_reason(empty)
    assert "powercap is absent" in reason
    assert "no battery" in reason
    assert "\n" not in reason


def test_probe_has_no_side_effect_on_the_total(client: Path) -> None:
    meter: Meter = RaplMeter(client)
    meter.probe()
    set_energy(client, "intel-rapl:0", 197_231_547_311 + 9_000_000)
    meter.probe()
    assert meter.read().value == 0
