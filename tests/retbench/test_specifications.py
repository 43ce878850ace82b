"""Device files: those that ship, those of users, and every way to get one wrong."""

from pathlib import Path

import pytest

from retbench.errors import UsageError
from retbench.specifications import FIELDS, find_specification, specifications

GOOD = {
    "description": '"a device"',
    "device": '"cuda"',
    "memory_bytes": "1000",
    "bytes_per_s": "10.5",
    "source": '"its data sheet"',
    "flops_per_s": "{ fp32 = 1e12 }",
}


def write(folder: Path, **changes: str | None) -> Path:
    fields = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    path = folder / "mine.toml"
    path.write_text("\n".join(f"{name} = {value}" for name, value in fields.items()))
    return path


def test_the_devices_of_the_paper_and_those_that_users_have_are_there() -> None:
    assert specifications() == ["a100-80gb", "cpu", "h100", "h200", "mi250x", "rtx4090"]


@pytest.mark.parametrize("name", specifications())
def test_every_file_names_its_source_and_reads(name: str) -> None:
    found = find_specification(name)

    assert found.source
    assert found.peak_flops_per_s("bf16") > found.peak_flops_per_s("fp32") > found.bytes_per_s > 1e9


def test_the_a100_is_that_of_the_data_sheet() -> None:
    found = find_specification("a100-80gb")

    assert (found.memory_bytes, found.bytes_per_s, found.peak_flops_per_s("fp16")) == (80 * 10**9, 2.039e12, 312e12)


def test_a_file_of_the_user_is_read(tmp_path: Path) -> None:
    found = find_specification(str(write(tmp_path)))

    assert (found.name, found.memory_bytes, found.flops_per_s) == ("mine", 1000, {"fp32": 1e12})


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named_with_the_file_and_what_is_allowed(field: str, tmp_path: Path) -> None:
    path = write(tmp_path, **{field: None})

    with pytest.raises(UsageError) as caught:
        find_specification(str(path))
    assert str(caught.value) == f"device file {path}: {field} is missing; it must be {FIELDS[field]}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("description", "1"),
        ("device", '"tpu"'),
        ("memory_bytes", "0"),
        ("memory_bytes", "1.5"),
        ("memory_bytes", "true"),
        ("memory_bytes", str(2**50 + 1)),
        ("memory_bytes", "1" + 400 * "0"),
        ("memory_bytes", "0x" + 5000 * "f"),
        ("bytes_per_s", "-1"),
        ("bytes_per_s", "inf"),
        ("bytes_per_s", "1e-300"),
        ("bytes_per_s", "1" + 400 * "0"),
        ("source", '" "'),
        ("flops_per_s", "{}"),
        ("flops_per_s", "{ fp32 = 0 }"),
        ("flops_per_s", "{ fp32 = 0x" + 5000 * "f" + " }"),
        ("flops_per_s", "{ fp64 = 1e12 }"),
        ("flops_per_s", "1e12"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_allowed(field: str, value: str, tmp_path: Path) -> None:
    path = write(tmp_path, **{field: value})

    with pytest.raises(UsageError) as caught:
        find_specification(str(path))
    assert str(caught.value).startswith(f"device file {path}: {field} is ")
    assert str(caught.value).endswith(f"; it must be {FIELDS[field]}")
    assert len(str(caught.value)) < len(str(path)) + 200


def test_an_unknown_field_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown field 'memory_gb'; fields are description, device, memory_bytes"):
        find_specification(str(write(tmp_path, memory_gb="80")))


def test_an_unreadable_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_text("memory_bytes = = 1")

    with pytest.raises(UsageError, match=r"broken\.toml cannot be read: Invalid"):
        find_specification(str(tmp_path / "broken.toml"))
    with pytest.raises(UsageError, match=r"none\.toml cannot be read: No such file"):
        find_specification(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("value", [5000 * "9", 5000 * "[" + 5000 * "]"])
def test_what_tomllib_gives_up_on_is_one_line(value: str, tmp_path: Path) -> None:
    path = write(tmp_path, memory_bytes=value)

    with pytest.raises(UsageError, match=r"mine\.toml cannot be read: ") as caught:
        find_specification(str(path))
    assert "\n" not in str(caught.value)


def test_an_unknown_name_helps() -> None:
    with pytest.raises(
        UsageError, match=r"unknown device 'a100'; did you mean 'a100-80gb'\? devices are a100-80gb, cpu"
    ):
        find_specification("a100")


def test_a_dtype_without_a_peak_is_refused() -> None:
    with pytest.raises(UsageError, match="device cpu has no fp16; its dtypes are fp32, bf16"):
        find_specification("cpu").peak_flops_per_s("fp16")
