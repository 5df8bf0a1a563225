"""`kafka.properties` of security, in librdkafka's words, as what the monitor's client takes.

Workers and tools are on librdkafka, Faust is on aiokafka; users write TLS and SASL once.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any

from stream.errors import ConfigError

_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
_OWN = "sasl.", "ssl.", "security.", "enable.ssl"
_KNOWN = {
    "security.protocol",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "sasl.password",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
    "ssl.key.password",
    "ssl.endpoint.identification.algorithm",
}


def client_options(properties: Mapping[str, str]) -> dict[str, Any]:
    """Arguments of an aiokafka client. Raises `ConfigError` for what it has no counterpart of."""
    unknown = [name for name in properties if name.startswith(_OWN) and name not in _KNOWN]
    if unknown:
        raise _refused(unknown[0], "is not known to it; see docs/operations.md")
    protocol = properties.get("security.protocol", "PLAINTEXT").upper()
    options: dict[str, Any] = {"security_protocol": protocol}
    if protocol.startswith("SASL_"):
        options |= _sasl(properties)
    if protocol.endswith("SSL"):
        options["ssl_context"] = _context(properties)
    return options


def _sasl(properties: Mapping[str, str]) -> dict[str, str]:
    named = properties.get("sasl.mechanisms", properties.get("sasl.mechanism", "PLAIN"))
    if named not in _MECHANISMS:
        raise _refused("sasl.mechanisms", f"must be one of {', '.join(_MECHANISMS)}")
    return {
        "sasl_mechanism": named,
        "sasl_plain_username": properties.get("sasl.username", ""),
        "sasl_plain_password": properties.get("sasl.password", ""),
    }


def _context(properties: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=properties.get("ssl.ca.location"))
        if "ssl.certificate.location" in properties:
            context.load_cert_chain(
                properties["ssl.certificate.location"],
                properties.get("ssl.key.location"),
                properties.get("ssl.key.password"),
            )
    except (OSError, ssl.SSLError) as error:
        raise _refused("ssl.*.location", f"cannot be read: {error}") from None
    if properties.get("ssl.endpoint.identification.algorithm") == "none":
        context.check_hostname = False
    return context


def _refused(name: str, why: str) -> ConfigError:
    return ConfigError(f"the monitor: kafka.properties: {name} {why}")
