"""Target files: all valid, every number sourced, and unknown names met with the nearest one."""

from pathlib import Path

import msgspec
import pytest

from edgellm import resources, targets
from edgellm.errors import BadInputError, MissingInputError, SpecError
from edgellm.formats.records import to_builtins
from edgellm.targets import Target


def changed(**fields: object) -> Target:
    values = to_builtins(targets.load("rpi5"))
    return msgspec.convert({**values, **fields}, Target)


def test_the_designed_targets_are_there() -> None:
    wanted = {"rpi5", "rpi4", "rpi3", "rpi-zero2w", "x86-avx2", "apple-m1"}
    assert wanted <= set(targets.available())
    assert targets.HOST not in targets.available()


@pytest.mark.parametrize("name", targets.available())
def test_every_file_is_valid_and_bears_its_name(name: str) -> None:
    target = targets.load(name)
    assert target.id == name
    assert target.source_id


@pytest.mark.parametrize("name", targets.available())
def test_every_number_has_a_source_and_every_default_a_reason(name: str) -> None:
    target = targets.load(name)
    for field, value in to_builtins(target).items():
        if isinstance(value, (int, float)):
            assert target.sources[field], field
    for default in target.defaults.__struct_fields__:
        assert len(target.why[default]) > 10, default


def test_a_known_row() -> None:
    target = targets.load("rpi5")
    assert (target.arch, target.cores, target.ram_bytes) == ("aarch64", 4, 8 * 1024**3)
    assert target.isa == ["NEON", "DOTPROD", "FP16", "AES"]
    assert target.bandwidth_bytes_per_s == 11.1e9


def test_only_cores_with_dotprod_get_q4_0() -> None:
    quants = {name: targets.load(name).defaults.quant for name in targets.available()}
    assert quants["rpi5"] == "Q4_0"
    assert {quants[name] for name in ("rpi4", "rpi3", "rpi-zero2w", "x86-avx2", "apple-m1")} == {"Q4_K_M"}


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(SpecError) as caught:
        targets.load("RPI-5")
    assert "'RPI-5'" in caught.value.message
    assert "did you mean 'rpi5'?" in (caught.value.hint or "")
    assert "x86-avx2" in (caught.value.hint or "")


def test_host_is_detected_not_loaded() -> None:
    with pytest.raises(SpecError) as caught:
        targets.load("host")
    assert "detect" in (caught.value.hint or "")


def test_a_path_works_too(tmp_path: Path) -> None:
    source = resources.data_directory("targets") / "rpi4.toml"
    copy = tmp_path / "mine.toml"
    copy.write_bytes(source.read_bytes())
    assert targets.load(str(copy)).id == "rpi4"
    with pytest.raises(MissingInputError):
        targets.load(str(tmp_path / "absent.toml"))
    copy.write_text(source.read_text() + "\nspeed = 3\n")
    with pytest.raises(BadInputError, match=r"mine\.toml"):
        targets.load(str(copy))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cores": 0}, "cores is 0"),
        ({"ram_bytes": 8}, "ram_bytes is 8"),
        ({"bandwidth_bytes_per_s": -1.0}, "bandwidth_bytes_per_s is -1"),
        ({"bandwidth_bytes_per_s": None}, "bandwidth_bytes_per_s has no entry in why"),
        ({"id": "../x"}, "id"),
        ({"isa": ["TURBO"]}, "TURBO"),
        ({"formats": []}, "formats"),
        ({"sources": {}}, "cores has no entry in sources"),
        ({"why": {}}, "defaults.quant has no entry in why"),
        ({"kind": "toaster"}, "toaster"),
        (
            {"defaults": {"quant": "Q9", "kv_type": "F16", "context": 4096, "threads": 4, "offload": "none"}},
            "Q9",
        ),
        (
            {"defaults": {"quant": "F16", "kv_type": "F16", "context": 1, "threads": 4, "offload": "none"}},
            "context",
        ),
    ],
)
def test_nonsense_is_refused_by_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        changed(**fields)


def test_a_source_for_no_field_is_refused() -> None:
    sources = {**targets.load("rpi5").sources, "colour": "a guess"}
    with pytest.raises(msgspec.ValidationError, match="colour"):
        changed(sources=sources)


def test_an_unknown_bandwidth_needs_a_reason() -> None:
    why = {**targets.load("rpi5").why, "bandwidth_bytes_per_s": "nobody measured it"}
    assert changed(bandwidth_bytes_per_s=None, why=why).bandwidth_bytes_per_s is None
