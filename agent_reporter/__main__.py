"""The program: `ollama-agent-reporter` or `python -m agent_reporter`."""

import asyncio
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from . import service
from .addresses import any_is_local, own_ips, parse_endpoint, resolve
from .collect import Collection
from .collectors import Host
from .discovery import Discovery
from .joining import JoinError, join
from .options import Options, Token, own_token_file, parse_options, read_token_file
from .push import Collect, Reporter
from .states import log
from .wire import AgentMetrics

DISCOVER_SECONDS = 5.0
"""For which --once looks for balancers."""


def main() -> None:
    """Run, and exit with 0; 1 if a report of --once did not arrive everywhere, a service was not set up, or this host
    could not join; 2 for wrong options.
    """
    _log_to_stderr()
    try:
        options = parse_options(sys.argv[1:], os.environ)
        if options.join is not None:
            options = _joined(options, options.join)
        if options.install:
            sys.exit(service.install(options, options.token or asyncio.run(_own_token(options))))
        if options.uninstall:
            sys.exit(service.uninstall())
    except ValueError as error:
        sys.exit(_usage_error(error))
    except JoinError as error:
        log.error("%s", error)
        sys.exit(1)
    try:
        code = asyncio.run(_run(options))
    except KeyboardInterrupt:
        code = 0
    except BrokenPipeError:  # whoever read what --print prints has left, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains at its end
        code = 1
    sys.exit(code)


def _joined(options: Options, file: Path) -> Options:
    """The options with the key and the name that the balancer has for this host. Raises JoinError."""
    name, token = asyncio.run(join(options.balancers[0], file, options.join_code, options.name))
    return replace(options, token=token, name=name)


async def _run(options: Options) -> int:
    balancers = [balancer.host for balancer in options.balancers]
    host = Host(ollama=options.ollama, balancers=balancers, advertised=options.advertise is not None)
    collect: Collect = Collection(host)
    if options.print:
        collect = _printing(collect)
        if not options.once:
            await collect()
            return 0
    try:
        token = options.token or await _own_token(options)
    except ValueError as error:
        return _usage_error(error)
    reporter = Reporter(
        balancers=[balancer.url for balancer in options.balancers],
        token=token.value,
        token_source=token.source,
        name=options.name,
        advertise=options.advertise,
        port=options.ollama.port,
        interval=options.interval,
        collect=collect,
    )

    def found(url: str) -> None:
        balancers.append(parse_endpoint(url, default_port=80).host)
        reporter.add(url)

    discovery = asyncio.create_task(Discovery(token.value, found).run()) if options.discover else None
    try:
        if options.once:
            if discovery is not None:
                await asyncio.sleep(DISCOVER_SECONDS)
            if not balancers:
                log.error("no balancer announced itself on this network within %g s", DISCOVER_SECONDS)
                return 1
            return 0 if await reporter.once() else 1
        _stop_on_signals(reporter)
        await reporter.run()
        return 0
    finally:
        if discovery is not None:
            discovery.cancel()
            await asyncio.gather(discovery, return_exceptions=True)


def _printing(collect: Collect) -> Collect:
    """The same reports, each printed as JSON as well."""

    async def printed() -> AgentMetrics:
        report = await collect()
        print(report.model_dump_json(indent=2, exclude_none=True, exclude_defaults=True), flush=True)
        return report

    return printed


async def _own_token(options: Options) -> Token:
    """The token that a balancer of this host keeps. Raises ValueError if there is none, or a balancer is elsewhere."""
    own = own_ips()
    path = own_token_file()
    if not options.balancers and not path.exists():
        raise ValueError("no token: --discover needs --token-file PATH or $OLLAMA_BALANCER_TOKEN")
    for balancer in options.balancers:
        try:
            here = any_is_local(await resolve(balancer.host), own)
        except OSError:
            here = False
        if not here or not path.exists():
            looked = f"{path} does not exist" if here else f"{balancer.url} is not on this host"
            raise ValueError(
                f"no token ({looked}): give --token-file PATH or $OLLAMA_BALANCER_TOKEN; the balancer keeps its token "
                f"in its user's ~/.mitmproxy/{path.name}"
            )
    return read_token_file(path)


def _stop_on_signals(reporter: Reporter) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, reporter.stop)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(reporter.stop))


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def _usage_error(error: ValueError) -> int:
    print(f"ollama-agent-reporter: error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
