"""LiteLLM, where it is installed, in front of the hosts of a bench."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

START_SECONDS = 120.0


def installed(program: str | None) -> str | None:
    """The program's path; without one given, of that beside Python's or on the path."""
    beside = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    return shutil.which(program or "litellm", path=beside)


def version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+\.\d+", said.stdout)
    return f"LiteLLM {found[0] if found else 'of an unknown version'}"


def deployment(model: str, port: int, *, embedding: bool = False) -> dict[str, Any]:
    """Of a model on a host, as its configuration has it."""
    provider = "ollama" if embedding else "ollama_chat"
    host = {"model": f"{provider}/{model}", "api_base": f"http://127.0.0.1:{port}"}
    return {"model_name": model, "litellm_params": host}


def command(
    program: str, folder: Path, port: int, deployments: Iterable[dict[str, Any]], router: dict[str, Any] | None = None
) -> list[str]:
    """With its configuration in that folder, which is JSON: that is YAML as well."""
    file, logging = folder / "config.yaml", folder / "logging.json"
    settings = {"model_list": list(deployments), "litellm_settings": {"telemetry": False}}
    file.write_text(json.dumps(settings | ({"router_settings": router} if router else {})))
    quiet = {"version": 1, "disable_existing_loggers": False, "loggers": {"uvicorn.access": {"level": "WARNING"}}}
    logging.write_text(json.dumps(quiet))
    arguments = [program, "--config", str(file), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return [*arguments, "--log_config", str(logging)]


def environment(key: str) -> dict[str, str]:
    """Without the latter it looks up prices of models on the internet."""
    return {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
