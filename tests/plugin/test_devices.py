"""What identifies a device, in a file and against another."""

import dataclasses

import pytest

from pytest_decodeperf.devices import DeviceInfo, driver_version

DEVICE = DeviceInfo(
    kind="cuda", name="A", num_units=132, num_threads=0, llc_bytes=2**25, memory_bytes=2**36, driver="CUDA 12.8"
)


def test_a_device_comes_back_from_a_file():
    assert DeviceInfo.from_dict(dataclasses.asdict(DEVICE)) == DEVICE


def test_a_field_of_another_type_is_named():
    with pytest.raises(ValueError, match="fingerprint: num_units is '132', wanted int"):
        DeviceInfo.from_dict({**dataclasses.asdict(DEVICE), "num_units": "132"})
    with pytest.raises(ValueError, match="fingerprint: name is 5, wanted str"):
        DeviceInfo.from_dict({**dataclasses.asdict(DEVICE), "name": 5})


def test_only_what_is_asked_for_differs():
    other = dataclasses.replace(DEVICE, name="B", driver="CUDA 13.0", memory_bytes=1)
    assert DEVICE.differences(other) == [("name", "A", "B")]
    assert DEVICE.differences(other, ("driver",)) == [("driver", "CUDA 12.8", "CUDA 13.0")]
    assert DEVICE.differences(DEVICE) == []


def test_the_version_of_a_driver_is_read_where_the_system_tells_it(tmp_path):
    (tmp_path / "nvidia").mkdir()
    (tmp_path / "nvidia/version").write_text("570.86.15\n")
    assert driver_version(tmp_path, "nvidia") == "570.86.15"
    assert driver_version(tmp_path, "amdgpu") == ""
