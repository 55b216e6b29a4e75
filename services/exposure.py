"""Who can reach what listens. Beyond this machine nothing is open unless it is encrypted, and asks who is there.

Nothing here is looked up by name: an address is on this machine if it says so itself.
"""

from __future__ import annotations

import ipaddress
import logging

from services.config import ServeConfig
from services.tls import TlsFiles, files_of
from swaa_runtime.errors import InvalidRequest

logger = logging.getLogger(__name__)


def door_files(config: ServeConfig) -> TlsFiles | None:
    """The certificate's files of the front doors, gRPC and HTTP; None: they are open without TLS.

    Raises:
        InvalidRequest: some of the files are set and others are missing, or a door would be open to other machines
            without TLS, or to whoever comes.
    """
    ca = config.tls_client_ca_file
    files = files_of("tls", config.tls_cert_file, config.tls_key_file, "tls_client_ca_file", ca)
    missing = []
    if files is None:
        missing.append("TLS (tls_cert_file, tls_key_file)")
    if not config.authenticates and ca is None:
        missing.append("clients that show who they are (api_keys_file, jwt_keys_file or tls_client_ca_file)")
    for setting, listen in (("listen", config.listen), ("http_listen", config.http_listen)):
        if listen and missing and not is_on_this_machine(_host_of(listen)):
            _refuse(config, setting, listen, missing)
    return files


def replica_files(config: ServeConfig) -> TlsFiles | None:
    """The certificate's files of the wire between gateways and replicas, for both of its ends; None: it has no TLS.

    Raises:
        InvalidRequest: some of the files are set and others are missing, or a replica would be open to other machines
            without TLS.
    """
    ca = config.replica_tls_ca_file
    cert, key = config.replica_tls_cert_file, config.replica_tls_key_file
    files = files_of("replica_tls", cert, key, "replica_tls_ca_file", ca, ca_needed=True)
    if files is None and not is_on_this_machine(config.replica_host):
        missing = ["TLS at both ends (replica_tls_cert_file, replica_tls_key_file, replica_tls_ca_file)"]
        _refuse(config, "replica_host", config.replica_host, missing)
    return files


def is_on_this_machine(host: str) -> bool:
    """Whether only this machine can reach what listens on a host."""
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return host == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _host_of(listen: str) -> str:
    return listen.rpartition(":")[0]


def _refuse(config: ServeConfig, setting: str, value: str, missing: list[str]) -> None:
    needs = " and ".join(missing)
    if not config.insecure_public:
        bound = f"can be reached from other machines, which needs {needs}, or insecure_public to do without"
        raise InvalidRequest(setting, value, bound)
    logger.warning("INSECURE: %s is %s, open to whoever can reach it, without %s", setting, value, needs)
