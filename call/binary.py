"""Bytes in the inputs and outputs of operations: as they are in msgpack, base64 text in JSON, which has none."""

import base64
import binascii
from typing import Annotated, Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

__all__ = ["OUTPUT", "Bytes", "decode_base64", "to_base64"]

OUTPUT: Final = object()
"""The context in which outputs are validated: text is then no base64, it is a mistake."""


def decode_base64(text: str) -> bytes:
    """The bytes of base64 in the standard or the URL-safe alphabet, padded or not; nothing else is let through.

    `ValueError` for a foreign character, both alphabets in one text, wrong padding, and bits that mean nothing.
    """
    if "-" in text or "_" in text:
        if "+" in text or "/" in text:
            raise ValueError("it mixes the standard and the URL-safe alphabet")
        text = text.replace("-", "+").replace("_", "/")
    if "=" not in text:
        text += "=" * (-len(text) % 4)
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError as exc:
        raise ValueError("it has a wrong length, a wrong character or wrong padding") from exc
    if binascii.b2a_base64(data, newline=False).decode("ascii") != text:
        raise ValueError("it ends with wrong padding or with bits that mean nothing")
    return data


def to_base64(data: bytes) -> str:
    """The one way in which alknet writes bytes as text: the standard alphabet, padded."""
    return base64.b64encode(data).decode("ascii")


class _Base64:
    """What makes `bytes` into `Bytes`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_before_validator_function(
            _to_bytes,
            core_schema.bytes_schema(strict=True),
            serialization=core_schema.plain_serializer_function_ser_schema(to_base64, when_used="json"),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "contentEncoding": "base64"}


def _to_bytes(value: Any, info: core_schema.ValidationInfo) -> Any:
    if type(value) is bytes:
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str) or info.context is OUTPUT:
        raise PydanticCustomError("bytes_type", "Input should be bytes")
    try:
        return decode_base64(value)
    except ValueError as exc:
        raise PydanticCustomError(
            "base64", "Input should be bytes, or base64 text: {reason}", {"reason": str(exc)}
        ) from None


Bytes = Annotated[bytes, _Base64()]
"""Bytes in an input or output. Where a codec has none, callers give base64 (RFC 4648, either alphabet) and get it."""
