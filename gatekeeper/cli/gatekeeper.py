"""``gatekeeper``: run the gate in the foreground, or check its configuration.

Exit codes: 0 stopped in order, or the configuration is good; 1 it cannot start (one line on
standard error says where and what to do); 2 the command line is wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from gatekeeper import __version__, logs
from gatekeeper.config.load import load_settings
from gatekeeper.config.settings import HttpsDefinitions, Settings
from gatekeeper.errors import BackendError, ConfigError, OperatorError

T = TypeVar("T")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=Path("/etc/gatekeeper/gatekeeper.conf"),
    show_default=True,
    help="The configuration, in the format of rabbitmq.conf.",
)
@click.option("--check-config", is_flag=True, help="Check the configuration and exit (0 or 1).")
@click.version_option(__version__, "--version", message="gatekeeper %(version)s")
def main(path: Path, check_config: bool) -> None:
    """Enforce RabbitMQ's authentication and access control in front of a broker."""
    try:
        settings = load_settings(path, os.environ)
        if check_config:
            _check(settings)
            for warning in settings.warnings:
                click.echo(f"warning: {warning}", err=True)
            click.echo(f"{path}: good")
            return
        logs.configure(settings.log)
        log = logs.get_logger("default")
        for warning in settings.warnings:
            log.warning(warning)
        _run(settings)
    except OperatorError as error:
        click.echo(f"gatekeeper: {error}", err=True)
        sys.exit(1)


def _check(settings: Settings) -> None:
    """What can be found wrong beyond the file itself, without touching the store or a port."""
    from gatekeeper.admin import management  # noqa: PLC0415
    from gatekeeper.backends.registry import Backends  # noqa: PLC0415
    from gatekeeper.store.store import Store  # noqa: PLC0415
    from gatekeeper.tls import client_context, server_context  # noqa: PLC0415

    if settings.tls is not None:
        server_context(settings.tls)
    management.check(settings.management)
    for upstream in settings.upstreams.values():
        if upstream.tls is not None:
            client_context(upstream.tls, f"upstreams.{upstream.name}.ssl_options")
    for source in settings.definitions.sources:
        if isinstance(source, HttpsDefinitions):
            client_context(source.tls, "definitions.tls")
    with contextlib.closing(
        Store.open("sqlite::memory:", algorithm=settings.password_hashing)
    ) as store:
        problems = asyncio.run(Backends(settings, store).problems())
    problems += asyncio.run(_token_problems(settings))
    if problems:
        raise ConfigError("\n".join(problems))


async def _token_problems(settings: Settings) -> list[str]:
    """The upstreams whose token cannot be had. Raises ConfigError."""
    from gatekeeper.backends.oauth2.service_token import token_source  # noqa: PLC0415

    problems = []
    for name, upstream in settings.upstreams.items():
        if upstream.token is None:
            continue
        place = f"upstreams.{name}"
        try:
            token = await token_source(upstream.token, place).fetch()
        except BackendError as error:
            problems.append(f"{place}: there is no token: {error}")
        else:
            if not token.valid(time.time()):
                problems.append(f"{place}: its token has ended already")
    return problems


def _run(settings: Settings) -> None:
    import uvloop  # noqa: PLC0415 - not needed to check a configuration

    from gatekeeper.app import serve  # noqa: PLC0415
    from gatekeeper.supervisor import supervise  # noqa: PLC0415

    def run(work: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)

    if settings.workers == 1:
        run(serve(settings))
    else:
        supervise(settings, run)


if __name__ == "__main__":
    main()
