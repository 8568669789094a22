"""gunicorn, embedded: the master that binds the listeners and keeps the workers running.

No environment variable decides anything: gunicorn's own are taken out, and what it or uvicorn would read one
for is set here. Nothing is preloaded, because a worker opens storage and its connection to the node itself.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from gunicorn.app.base import BaseApplication  # type: ignore[import-untyped]
from gunicorn.arbiter import Arbiter  # type: ignore[import-untyped]
from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from raftkv_core.config import Config
from raftkv_core.errors import ConfigError
from raftkv_core.node.children import die_with_parent
from raftkv_core.observability import configure_logging
from raftkv_transport_http_falcon.app import Connect, Site
from raftkv_transport_http_falcon.gate import TokenFile
from raftkv_transport_http_falcon.limits import Limits
from raftkv_transport_http_falcon.metrics import Counters
from raftkv_transport_http_falcon.plugin import HttpSettings
from raftkv_transport_http_falcon.routes import names
from raftkv_transport_http_falcon.service import Service
from raftkv_transport_http_falcon.sockets import listen
from raftkv_transport_http_falcon.worker import HttpWorker

__all__ = ["HttpServer", "serve"]

_ENVIRONMENT_OF_GUNICORN: Final = ("GUNICORN_PID", "GUNICORN_FD", "LISTEN_PID", "LISTEN_FDS")
_BOOT_FAILURES: Final = (Arbiter.WORKER_BOOT_ERROR, Arbiter.APP_LOAD_ERROR)
_OTHER_FILES: Final = 128
"""Descriptors that a worker needs beside its connections."""
_STUCK_S: Final = 30
"""A worker whose loop does not turn for so long is replaced."""


_logger = logging.getLogger("raftkv.http")


class HttpServer(BaseApplication):  # type: ignore[misc]  # gunicorn is not typed
    """What gunicorn asks for its configuration and, in each worker, for the application."""

    def __init__(self, config: Config, connect: Connect, sockets: Sequence[socket.socket]) -> None:
        """`sockets` as `listen` makes them; gunicorn takes them over."""
        self.config = config
        self.settings = _settings(config)
        self.limits = Limits.of(self.settings)
        self.counters = Counters(names(), self.settings.worker_count)
        self._connect = connect
        self._descriptors = [each.detach() for each in sockets]
        super().__init__()

    def load_config(self) -> None:
        settings = self.settings
        chosen = {
            "bind": [f"fd://{descriptor}" for descriptor in self._descriptors],
            "workers": settings.worker_count,
            "worker_class": HttpWorker,
            "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK) else None,  # noqa: S108
            "timeout": _STUCK_S,
            "graceful_timeout": math.ceil(settings.graceful_timeout_s),
            "keepalive": math.ceil(settings.keepalive_s),
            "forwarded_allow_ips": "",
            "preload_app": False,
            "reuse_port": False,
            "control_socket_disable": True,
            "proc_name": f"raftkv-http {self.config.node.id}",
            "logger_class": _Logger,
            "loglevel": self.config.logging.level,
            "when_ready": _say_where,
            "pre_fork": self._before_fork,
            "post_fork": _after_fork,
            "child_exit": self._after_exit,
        }
        if settings.tls_cert_file:
            chosen |= {"certfile": settings.tls_cert_file, "keyfile": settings.tls_key_file}
        if settings.tls_client_ca_file:
            chosen |= {"ca_certs": settings.tls_client_ca_file, "cert_reqs": ssl.CERT_REQUIRED}
        for name, value in chosen.items():
            self.cfg.set(name, value)

    def load(self) -> Site:
        return Site(Service(self.config, self.settings, self.counters), self._connect)

    def _before_fork(self, _arbiter: Arbiter, worker: HttpWorker) -> None:
        worker.slot = self.counters.take(worker.age)

    def _after_exit(self, _arbiter: Arbiter, worker: HttpWorker) -> None:
        self.counters.give_back(worker.slot)


class _Logger(Logger):  # type: ignore[misc]  # gunicorn is not typed
    """Leaves formatting and output to `raftkv_core.observability`."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        self.error_log.handlers.clear()
        self.error_log.propagate = True
        if self.loglevel == logging.INFO:
            self.error_log.setLevel(logging.WARNING)  # its every step is of no interest


def _say_where(arbiter: Arbiter) -> None:
    _logger.info("listening at %s", ", ".join(dict.fromkeys(map(str, arbiter.LISTENERS))))


def _after_fork(_arbiter: Arbiter, worker: HttpWorker) -> None:
    die_with_parent(worker.ppid)


def serve(config: Config, connect: Connect) -> int:
    """Serve until told to stop; returns the exit status. Raises ConfigError before anything is bound.

    `connect` is called in each worker.
    """
    for name in _ENVIRONMENT_OF_GUNICORN:
        os.environ.pop(name, None)
    configure_logging(config.logging, node=config.node.id, process="http")
    settings = _settings(config)
    _check_files(settings)
    server = HttpServer(config, connect, listen(settings))
    server.limits = server.limits._replace(connections_max=_allow_files(settings.connections_max))
    try:
        server.run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        return 1 if code in _BOOT_FAILURES else code  # the supervisor reads 3 as a refused data directory
    return 0


def _settings(config: Config) -> HttpSettings:
    table = next(selected.settings for selected in config.transports if selected.name == "http")
    return msgspec.convert(table, HttpSettings)


def _check_files(settings: HttpSettings) -> None:
    """Say now what every worker would otherwise die of."""
    for path in {settings.token_file, settings.join_token_file} - {""}:
        TokenFile(Path(path))
    if settings.tls_cert_file:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
            if settings.tls_client_ca_file:
                context.load_verify_locations(settings.tls_client_ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"tls_cert_file, tls_key_file or tls_client_ca_file cannot be used: {error}; "
                "expected PEM files that this user may read"
            ) from error


def _allow_files(connections: int) -> int:
    """Raise this process's limit of open files; returns how many connections fit below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    fitting = max(1, soft - _OTHER_FILES)
    _logger.warning(
        "connections_max is %d, not %d: the limit of open files is %d (ulimit -n)", fitting, connections, soft
    )
    return fitting
