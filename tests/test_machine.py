"""The machine read from recorded trees (see data/machines/README.md) and, without numbers, the one in use."""

import resource
import shutil
from pathlib import Path

import psutil
import pytest

from edgellm import machine, targets
from edgellm.errors import MissingInputError
from edgellm.machine.conditions import ConditionsWatch, ThrottleState, throttle_state, was_throttled
from edgellm.machine.host import nearest
from edgellm.machine.memory import swap_used_bytes
from edgellm.report import Conditions

MACHINES = Path(__file__).parent / "data" / "machines"
NAMES = ("rpi5", "rpi4", "intel-laptop", "amd-laptop")
X86 = ["SSE4_2", "AVX", "F16C", "FMA", "AVX2", "BMI2"]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def idle(_: Path) -> float | None:
    return 0.01


@pytest.fixture
def laptop(tmp_path: Path) -> Path:
    """A copy of the Intel laptop to be changed."""
    return Path(shutil.copytree(MACHINES / "intel-laptop", tmp_path / "laptop"))


@pytest.mark.parametrize(
    ("name", "cpu", "arch", "isa", "logical", "physical"),
    [
        (
            "rpi5",
            "Raspberry Pi 5 Model B Rev 1.0, 4x Cortex-A76",
            "aarch64",
            ["NEON", "DOTPROD", "FP16", "AES"],
            4,
            4,
        ),
        ("rpi4", "Raspberry Pi 4 Model B Rev 1.1, 4x Cortex-A72", "aarch64", ["NEON"], 4, 4),
        ("intel-laptop", "Intel(R) Core(TM) i5-8250U CPU @ 1.60GHz", "x86_64", [*X86, "AES"], 8, 4),
        (
            "amd-laptop",
            "AMD Ryzen 7 8845HS w/ Radeon 780M Graphics",
            "x86_64",
            [*X86, "AVX512F", "AVX512BW", "AVX512_VNNI", "AVX512_VBMI", "AVX512_BF16", "AES"],
            16,
            8,
        ),
    ],
)
def test_cpu(name: str, cpu: str, arch: str, isa: list[str], logical: int, physical: int) -> None:
    device = machine.describe(MACHINES / name)
    assert (device.cpu, device.arch, device.isa) == (cpu, arch, isa)
    assert (device.cores_logical, device.cores_physical) == (logical, physical)
    assert device.virtual is False


def test_system_and_memory_of_a_pi() -> None:
    device = machine.describe(MACHINES / "rpi5", target="rpi5")
    assert device.target == "rpi5"
    assert device.ram_bytes == 8256000 * 1024
    assert device.os == "Debian GNU/Linux 12 (bookworm)"
    assert device.kernel == "6.6.51+rpt-rpi-v8"
    assert machine.available_memory_bytes(MACHINES / "rpi5") == 7600000 * 1024


def test_conditions_of_a_pi() -> None:
    found = machine.conditions(MACHINES / "rpi5", idle, started_at="2026-01-01T00:00:00+00:00")
    assert found == Conditions(
        started_at="2026-01-01T00:00:00+00:00",
        load_1min=0.08,
        cpu_busy_fraction=0.01,
        ram_available_bytes=7600000 * 1024,
        swap_used_bytes=0,
        governor="ondemand",
        frequency_hz=2_400_000_000,
        temperature_start_c=52.4,
        temperature_end_c=None,
        power_source=None,
        throttled=None,
    )


def test_conditions_of_laptops() -> None:
    intel = machine.conditions(MACHINES / "intel-laptop", idle)
    assert (intel.power_source, intel.temperature_start_c) == ("battery", 57.0)
    assert intel.swap_used_bytes == (8388604 - 8126460) * 1024
    assert intel.frequency_hz == 1_807_000_000
    amd = machine.conditions(MACHINES / "amd-laptop", idle)
    assert (amd.power_source, amd.temperature_start_c) == ("ac", 61.25)
    assert amd.governor == "performance,powersave"


def test_a_recorded_clock_that_stands_still_gives_no_busy_fraction() -> None:
    assert machine.conditions(MACHINES / "rpi4").cpu_busy_fraction is None


def test_a_battery_alone_tells_the_power_source(laptop: Path) -> None:
    shutil.rmtree(laptop / "sys/class/power_supply/AC")
    status = laptop / "sys/class/power_supply/BAT0/status"
    for state, source in (
        ("Discharging", "battery"),
        ("Full", "ac"),
        ("Not charging", "ac"),
        ("Unknown", None),
    ):
        status.write_text(state + "\n")
        assert machine.conditions(laptop, idle).power_source == source


def test_throttling_between_start_and_end_is_seen(laptop: Path) -> None:
    calm = ConditionsWatch(laptop, idle)
    assert calm.start.throttled is None
    assert calm.finish().throttled is False
    watch = ConditionsWatch(laptop, idle)
    (laptop / "sys/devices/system/cpu/cpu2/thermal_throttle/package_throttle_count").write_text("8\n")
    (laptop / "sys/class/thermal/thermal_zone1/temp").write_text("97000\n")
    end = watch.finish()
    assert end.throttled is True
    assert (end.temperature_start_c, end.temperature_end_c) == (57.0, 97.0)


def test_a_recorded_pi_is_not_asked_by_command() -> None:
    assert throttle_state(MACHINES / "rpi5") == ThrottleState(None, None)
    assert ConditionsWatch(MACHINES / "rpi5", idle).finish().throttled is None


@pytest.mark.parametrize(
    ("before", "after", "throttled"),
    [
        (0x0, 0x0, False),
        (0x50000, 0x50000, False),  # since boot, but not in this run
        (0x0, 0x40000, True),
        (0x50000, 0x50005, True),
        (0x8, 0x80008, True),
        (0x0, None, None),
    ],
)
def test_bits_of_the_pi_firmware(before: int, after: int | None, throttled: bool | None) -> None:
    states = iter([ThrottleState(before, None), ThrottleState(after, None)])
    watch = ConditionsWatch(MACHINES / "rpi5", idle, throttle=lambda _: next(states))
    assert watch.finish().throttled is throttled
    assert was_throttled(ThrottleState(before, None), ThrottleState(after, None)) is throttled


def test_cgroup_v2_limits_memory_and_cores(laptop: Path) -> None:
    group = "sys/fs/cgroup/user.slice/user-1000.slice"
    write(
        laptop,
        {
            "sys/fs/cgroup/memory.stat": "inactive_file 0\n",
            f"{group}/memory.max": "2147483648\n",
            f"{group}/memory.current": "1073741824\n",
            f"{group}/memory.stat": "anon 5\ninactive_file 268435456\n",
            f"{group}/cpu.max": "350000 100000\n",
            f"{group}/session-1.scope/memory.max": "max\n",
            f"{group}/session-1.scope/cpu.max": "max 100000\n",
        },
    )
    assert machine.memory_limit_bytes(laptop) == 2 * 1024**3
    assert machine.ram_bytes(laptop) == 2 * 1024**3
    assert machine.available_memory_bytes(laptop) == 1024**3 + 256 * 1024**2
    assert machine.usable_cores(laptop) == 3
    assert machine.default_threads(laptop) == 3
    assert machine.detect_target(laptop).ram_bytes == 2 * 1024**3


def test_the_tightest_bound_on_memory_is_named(laptop: Path) -> None:
    bound = machine.headroom(laptop)
    assert (bound.limit_bytes, bound.left_bytes) == (machine.ram_bytes(laptop),) * 2
    assert bound.name == "memory of the machine"
    write(laptop, {"proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "1073741824\n"})
    assert machine.headroom(laptop)[::2] == (1024**3, "limit of the cgroup")


def test_a_limit_of_the_address_space_is_a_bound() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped_bytes = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (mapped_bytes + (64 << 20), hard))
    try:
        bound = machine.headroom()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert bound.counts_mapped
    assert "ulimit -v" in bound.name
    assert bound.limit_bytes == mapped_bytes + (64 << 20)
    assert 0 < bound.left_bytes <= 64 << 20
    assert bound._replace(taken_bytes=bound.limit_bytes + 1).left_bytes == 0


def test_cgroup_v1_limits_memory_and_cores(laptop: Path) -> None:
    write(
        laptop,
        {
            "proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/abc\n2:cpu,cpuacct:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "7000000000\n",
            "sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": "536870912\n",
            "sys/fs/cgroup/memory/docker/abc/memory.usage_in_bytes": "104857600\n",
            "sys/fs/cgroup/memory/docker/abc/memory.stat": "inactive_file 1\ntotal_inactive_file 4857600\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
        },
    )
    assert machine.ram_bytes(laptop) == 512 * 1024**2
    assert machine.available_memory_bytes(laptop) == 512 * 1024**2 - 100_000_000
    assert machine.usable_cores(laptop) == 1


def test_a_container_that_sees_its_group_as_the_mount(laptop: Path) -> None:
    write(laptop, {"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/memory.max": "1073741824\n"})
    assert machine.memory_limit_bytes(laptop) == 1024**3


def test_without_limits_there_is_none() -> None:
    assert machine.memory_limit_bytes(MACHINES / "rpi4") is None
    assert machine.usable_cores(MACHINES / "amd-laptop") == 16
    assert machine.default_threads(MACHINES / "amd-laptop") == 8


@pytest.mark.parametrize(
    ("name", "near", "quant", "kind"),
    [
        ("rpi5", "rpi5", "Q4_0", "sbc"),
        ("rpi4", "rpi4", "Q4_K_M", "sbc"),
        ("intel-laptop", "x86-avx2", "Q4_K_M", "laptop"),
        ("amd-laptop", "x86-avx2", "Q4_K_M", "laptop"),
    ],
)
def test_detected_target(name: str, near: str, quant: str, kind: str) -> None:
    target = machine.detect_target(MACHINES / name)
    assert (target.id, target.source_id, target.kind) == ("host", "detected", kind)
    assert near in target.sources["nearest"]
    assert target.defaults.quant == quant == targets.load(near).defaults.quant
    assert target.bandwidth_bytes_per_s is None
    assert "not measured" in target.why["bandwidth_bytes_per_s"]


def test_detected_pi_agrees_with_its_file() -> None:
    found, known = machine.detect_target(MACHINES / "rpi5"), targets.load("rpi5")
    assert found.name == "Raspberry Pi 5 Model B Rev 1.0"
    assert found.defaults == known.defaults
    assert (found.isa, found.cores, found.arch) == (known.isa, known.cores, known.arch)


def test_energy_sources_are_what_sys_shows(laptop: Path) -> None:
    assert machine.detect_target(laptop).energy_sources == ["battery"]
    assert machine.detect_target(MACHINES / "rpi4").energy_sources == []


def test_boards_are_recognised_by_name() -> None:
    device = machine.describe(MACHINES / "rpi4")
    boards = {
        "Raspberry Pi Compute Module 5 Rev 1.0": "rpi5",
        "Raspberry Pi 500 Rev 1.0": "rpi5",
        "Raspberry Pi 400 Rev 1.0": "rpi4",
        "Raspberry Pi 3 Model B Plus Rev 1.3": "rpi3",
        "Raspberry Pi Zero 2 W Rev 1.0": "rpi-zero2w",
        "Raspberry Pi Zero W Rev 1.1": "rpi4",  # no file of its own: the nearest by ISA and memory
    }
    assert {board: nearest(device, board) for board in boards} == boards


def test_an_architecture_without_a_file_has_no_nearest(laptop: Path) -> None:
    write(laptop, {"proc/cpuinfo": "processor\t: 0\nhart\t: 1\nisa\t: rv64imafdcv\n"})
    target = machine.detect_target(laptop)
    assert "nearest" not in target.sources
    assert (target.arch, target.isa, target.soc) == ("unknown", [], "unknown")


def test_mixed_arm_cores_share_the_smaller_instruction_set(tmp_path: Path) -> None:
    block = "processor : {}\nFeatures : {}\nCPU implementer : 0x41\nCPU part : {}\n"
    blocks = [
        block.format(0, "fp asimd asimdhp asimddp", "0xd05"),
        block.format(1, "fp asimd asimdhp asimddp", "0xd05"),
        block.format(2, "fp asimd asimdhp asimddp i8mm bf16", "0xfff"),
    ]
    write(tmp_path, {"proc/cpuinfo": "\n".join(blocks), "proc/meminfo": "MemTotal: 4000000 kB\n"})
    device = machine.describe(tmp_path)
    assert device.isa == ["NEON", "DOTPROD", "FP16"]
    assert device.cpu == "2x Cortex-A55 + 1x Arm core 0x41:0xfff"
    assert (device.cores_physical, device.virtual) == (None, None)
    assert (device.os, device.kernel) == ("unknown", "unknown")


def test_virtual_machines(laptop: Path) -> None:
    cpuinfo = laptop / "proc/cpuinfo"
    cpuinfo.write_text(cpuinfo.read_text().replace("flags\t\t:", "flags\t\t: hypervisor"))
    assert machine.is_virtual(laptop) is True
    arm = write(laptop / "arm", {"proc/device-tree/compatible": "linux,dummy-virt"})
    assert machine.is_virtual(arm) is True


def test_an_empty_tree_is_unknown_and_not_zero(tmp_path: Path) -> None:
    found = machine.conditions(tmp_path, started_at="then")
    values = [getattr(found, field) for field in found.__struct_fields__ if field != "started_at"]
    assert values == [None] * len(values)
    assert machine.physical_cores(tmp_path) is None
    assert swap_used_bytes(tmp_path) is None
    with pytest.raises(MissingInputError, match="cpuinfo"):
        machine.describe(tmp_path)


def test_garbage_is_unknown_and_never_a_crash(laptop: Path) -> None:
    for path in [*laptop.glob("sys/**/*"), laptop / "proc/loadavg", laptop / "proc/stat"]:
        if path.is_file():
            path.write_bytes(b"\xff\xfe rubbish \x00")
    found = machine.conditions(laptop, started_at="then")
    assert (found.frequency_hz, found.temperature_start_c, found.power_source) == (1_807_125_000, None, None)
    assert (found.load_1min, found.cpu_busy_fraction) == (None, None)


def test_the_machine_in_use_can_be_described() -> None:
    device = machine.describe()
    assert device.cores_logical >= 1
    assert device.ram_bytes > 1 << 24
    assert 1 <= machine.usable_cores() <= device.cores_logical
    target = machine.detect_target()
    assert target.defaults.threads <= device.cores_logical
    watch = ConditionsWatch(cpu_busy=idle)
    assert watch.finish().started_at == watch.start.started_at


def test_the_busy_fraction_of_the_machine_in_use_is_a_fraction() -> None:
    busy = machine.conditions().cpu_busy_fraction
    assert busy is None or 0 <= busy <= 1
