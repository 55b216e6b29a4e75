"""`swaa serve --ray`: a cluster on this machine, in one command."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path

from services.cli.process import write_whole
from services.cluster import running_cluster
from services.config import ServeConfig
from services.telemetry import logs

CHECK_INTERVAL_S = 1.0


def serve_cluster(config: ServeConfig, num_replicas: int, num_gateways: int, ready_file: Path | None) -> None:
    """Serve until SIGTERM or SIGINT, then drain and stop. Gateways that end by themselves are started again."""
    logs.configure(config.log_level, config.log_format)
    logger = logging.getLogger(__name__)
    logger.info("starting %d replicas; the first start measures this machine", num_replicas)
    with running_cluster(config, num_replicas, num_gateways) as cluster:
        stopping = threading.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):  # over the handlers that Ray sets when it starts
            signal.signal(signum, lambda *_: stopping.set())
        for gateway in cluster.gateways:
            logger.info("serving %s on %s; log in %s", config.model, gateway.address, gateway.log_path)
        logger.info("replicas are leased at %s", cluster.replicas)
        if ready_file is not None:
            write_whole(ready_file, "\n".join(gateway.address for gateway in cluster.gateways))
        while not stopping.wait(CHECK_INTERVAL_S):
            cluster.keep_up()
        logger.info("stopping; running requests have %.0f s", config.drain_s)
