"""A simulated host as a program: prints one JSON line when it is ready, and ends on SIGTERM or SIGINT."""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields

from . import SimulatedModel, SimulatedOllama, Timing


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m ollama_balancer.simulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one (default: %(default)s)")
    parser.add_argument("--name", default="sim")
    parser.add_argument("--models", default="llama3.2", help="names, separated by commas (default: %(default)s)")
    parser.add_argument("--embedding-models", default="", help="names of models that embed, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the generated text")
    parser.add_argument("--ollama-version", default="0.33.0")
    defaults = Timing()
    for field in fields(Timing):
        default = getattr(defaults, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            flag, type=int if field.type is int else float, default=default, help="(default: %(default)s)"
        )
    return parser.parse_args(arguments)


def build(arguments: argparse.Namespace) -> SimulatedOllama:
    """The host that a command line asks for. Raises ValueError for figures and names that can't be."""
    models = [
        SimulatedModel(name=name.strip(), embedding=embedding)
        for names, embedding in ((arguments.models, False), (arguments.embedding_models, True))
        for name in names.split(",")
        if name.strip()
    ]
    return SimulatedOllama(
        models=models,
        timing=Timing(**{field.name: getattr(arguments, field.name) for field in fields(Timing)}),
        host=arguments.host,
        port=arguments.port,
        name=arguments.name,
        seed=arguments.seed,
        version=arguments.ollama_version,
    )


async def serve(sim: SimulatedOllama) -> None:
    """Run until a signal comes."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, ended.set)
        except NotImplementedError:
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(ended.set))
    await sim.start()
    print(json.dumps({"url": sim.url, "port": sim.port, "name": sim.name}), flush=True)
    try:
        await ended.wait()
    finally:
        await sim.stop()


def main() -> None:
    """Entry point; a host that can't be built or started ends the program with status 2."""
    try:
        asyncio.run(serve(build(parse())))
    except (OSError, ValueError) as error:
        print(f"simulator: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
