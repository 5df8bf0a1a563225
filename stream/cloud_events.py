"""CloudEvents 1.0 on Kafka: in binary mode the value is the message, in structured mode inside."""

from __future__ import annotations

import base64
import binascii

import msgspec

from stream.message_checks import Reason, Refused, explain

Headers = tuple[tuple[str, bytes | None], ...]


class _CloudEvent(msgspec.Struct):
    data: msgspec.Raw = msgspec.Raw(b"")
    data_base64: str = ""


_decoder = msgspec.json.Decoder(_CloudEvent)


def unwrap(value: bytes, headers: Headers) -> bytes:
    """The message inside a CloudEvent in structured mode; any other value as it is.

    Raises `Refused`.
    """
    kind = next((v for name, v in headers if name.lower() == "content-type"), None)
    if not kind or not kind.lower().startswith(b"application/cloudevents+json"):
        return value
    try:
        return _data(_decoder.decode(value))
    except binascii.Error:
        raise Refused(Reason.CLOUD_EVENT, "Field `data_base64` is not base64.") from None
    except (ValueError, RecursionError) as error:
        raise explain(error, value) from None


def _data(cloud: _CloudEvent) -> bytes:
    data = bytes(cloud.data) or base64.b64decode(cloud.data_base64, validate=True)
    if not data:
        raise Refused(Reason.CLOUD_EVENT, "The CloudEvent has no `data`.")
    return data
