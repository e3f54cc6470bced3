from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from agent_reporter.addresses import Endpoint
from agent_reporter.collectors import Host, PartialError
from agent_reporter.collectors.amd import read_amd
from agent_reporter.collectors.apple import parse
from agent_reporter.collectors.gpus import GpusCollector
from agent_reporter.collectors.nvidia import MissingLibraryError, describe, read_nvidia
from agent_reporter.wire import GpuMetrics

HOST = Host(ollama=Endpoint("http", "127.0.0.1", 11434))


def card(folder: Path, name: str, **files: str) -> None:
    device = folder / name / "device"
    (device / "hwmon" / "hwmon3").mkdir(parents=True)
    for file, text in files.items():
        where = device / "hwmon" / "hwmon3" if file.startswith(("temp", "power")) else device
        (where / file).write_text(text)


class TestNvidia:
    def test_without_a_driver_there_are_none(self) -> None:
        assert read_nvidia() == []

    def test_a_driver_that_is_not_loaded_means_none(self, tmp_path: Path) -> None:
        (tmp_path / "nvidiactl").touch()
        assert read_nvidia([tmp_path / "nvidiactl"]) == []

    def test_a_driver_without_the_library_is_told_with_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
        assert read_nvidia([tmp_path / "nothing"]) == []
        (tmp_path / "version").write_text("NVRM version")
        with pytest.raises(MissingLibraryError, match=r"pip install 'ollama-agent-reporter\[gpu\]'"):
            read_nvidia([tmp_path / "nothing", tmp_path / "version"])

    def test_a_gpu_is_told_in_the_units_of_the_report_and_what_it_does_not_tell_is_null(self) -> None:
        def unknown(*arguments: object) -> Any:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        nvml = SimpleNamespace(
            NVMLError=pynvml.NVMLError,
            NVML_TEMPERATURE_GPU=0,
            nvmlDeviceGetName=lambda handle: b"RTX 4090",
            nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=10, total=24),
            nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=37),
            nvmlDeviceGetPowerUsage=lambda handle: 123_456,
            nvmlDeviceGetTemperature=unknown,
        )
        told = describe(nvml, object())
        assert told == {
            "name": "RTX 4090",
            "utilization": 37.0,
            "memory_used": 10,
            "memory_total": 24,
            "temperature": None,
            "power": 123.456,
        }
        assert GpuMetrics.model_validate(told)
        nvml.nvmlDeviceGetMemoryInfo = nvml.nvmlDeviceGetName = unknown
        assert describe(nvml, object())["name"] == "NVIDIA GPU"
        assert describe(nvml, object())["memory_total"] is None


class TestAmd:
    def test_a_gpu_is_told_by_the_drivers_files(self, tmp_path: Path) -> None:
        card(
            tmp_path,
            "card1",
            vendor="0x1002\n",
            product_name="Radeon RX 7900 XTX\n",
            gpu_busy_percent="42\n",
            mem_info_vram_used="1000\n",
            mem_info_vram_total="24000\n",
            temp1_input="61500\n",
            power1_average="215000000\n",
        )
        (tmp_path / "card1-DP-1").mkdir()
        assert read_amd(tmp_path) == [
            {
                "name": "Radeon RX 7900 XTX",
                "utilization": 42.0,
                "memory_used": 1000,
                "memory_total": 24000,
                "temperature": 61.5,
                "power": 215.0,
            }
        ]

    def test_other_makers_and_graphics_without_memory_are_left_out(self, tmp_path: Path) -> None:
        card(tmp_path, "card0", vendor="0x10de\n", mem_info_vram_total="1\n")
        card(tmp_path, "card1", vendor="0x1002\n")
        assert read_amd(tmp_path) == []
        assert read_amd(tmp_path / "nothing") == []

    @pytest.mark.parametrize("garbage", ["", "x", "-1", "1e9", "9" * 300, "\x00\xff", "٤٢"])
    def test_garbage_is_null(self, tmp_path: Path, garbage: str) -> None:
        names = ("gpu_busy_percent", "mem_info_vram_used", "mem_info_vram_total", "power1_average", "temp1_input")
        card(tmp_path, "card0", vendor="0x1002", **dict.fromkeys(names, garbage))
        [told] = read_amd(tmp_path)
        assert GpuMetrics.model_validate(told)
        assert told["memory_total"] is None or garbage == "٤٢"


IOREG = """+-o AGXAcceleratorG13X  <class AGXAcceleratorG13X, id 0x100000532>
    {
      "model" = "Apple M1 Pro"
      "PerformanceStatistics" = {"In use system memory"=1234567,"Device Utilization %"=17,"Renderer Utilization %"=16}
    }
"""


class TestApple:
    def test_the_gpu_is_told_with_the_memory_that_it_shares(self) -> None:
        [told] = parse(IOREG, 32 * 2**30)
        assert told["name"] == "Apple M1 Pro"
        assert (told["utilization"], told["memory_used"], told["memory_total"]) == (17.0, 1234567, 32 * 2**30)
        assert GpuMetrics.model_validate(told)

    @pytest.mark.parametrize("text", ["", "+-o x", "+-o " * 1000, "no such thing", IOREG.replace("17", "x" * 99)])
    def test_garbage_is_no_gpu_or_one_that_the_report_takes(self, text: str) -> None:
        for told in parse(text, 1):
            assert GpuMetrics.model_validate(told)


class TestAllMakers:
    def test_one_maker_that_fails_leaves_the_others(self, caplog: pytest.LogCaptureFixture) -> None:
        def fails() -> Any:
            raise RuntimeError("driver mismatch")

        collector = GpusCollector(HOST, {"NVIDIA": fails, "AMD": lambda: [{"name": "Radeon"}]})
        for _ in range(2):
            with pytest.raises(PartialError) as caught:
                asyncio.run(collector.collect())
            assert caught.value.fields == {"gpus": [{"name": "Radeon"}]}
        assert [record.getMessage() for record in caplog.records] == ["NVIDIA GPUs cannot be read: driver mismatch"]

    def test_a_driver_that_hangs_gets_one_thread_and_no_second(self) -> None:
        release, calls = threading.Event(), 0

        def hangs() -> list[dict[str, object]]:
            nonlocal calls
            calls += 1
            release.wait(30)
            return [{"name": "RTX"}]

        async def run() -> object:
            collector = GpusCollector(HOST, {"NVIDIA": hangs})
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await collector.collect()
            release.set()
            return await collector.collect()

        assert asyncio.run(run()) == {"gpus": [{"name": "RTX"}]}
        assert calls == 1
