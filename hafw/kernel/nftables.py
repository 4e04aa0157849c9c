"""libnftables.so.1 by ctypes: JSON documents to the kernel's nf_tables, and listings back.

A thin binding: one document is one transaction, all or nothing; `dry_run` has the kernel validate
it and then abort. The tables are those of the calling thread's network namespace. Facts: JSON
errors carry no position (``internal:0:0-0``), so who needs to know which command was refused asks
again with fewer. A document that the JSON parser refuses is tried by libnftables as text too; that
second message is noise and is cut.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from hafw.errors import KernelError

__all__ = ["NftError", "Nftables"]

LIBRARY = "libnftables.so.1"
_OUTPUT_JSON = 1 << 4  # nftables/libnftables.h: NFT_CTX_OUTPUT_JSON
_POSITION = re.compile(r"^internal:0:0-0: (Error: )?", re.MULTILINE)


class NftError(KernelError):
    """nft refused a document. `message` is nft's own word; `errno` is the kernel's, as far as the
    message tells (EINVAL for what nft itself refuses)."""

    def __init__(self, message: str, request: str, target: str, hint: str | None = None) -> None:
        self.message = message
        number = next(
            (n for n in errno.errorcode if message.endswith(os.strerror(n))), errno.EINVAL
        )
        if number == errno.EPERM:
            hint = "root (CAP_NET_ADMIN) is needed"
        super().__init__(number, request, target, "; ".join(p for p in (message, hint) if p))


class Nftables:
    """A libnftables context. Not for several threads at once. Raises KernelError if the library
    is not there."""

    def __init__(self) -> None:
        try:
            self._lib = ctypes.CDLL(LIBRARY)
        except OSError:
            raise KernelError(
                errno.ENOENT, "loading the library", LIBRARY, "install Debian's libnftables1"
            ) from None
        self._declare()
        self._context = self._lib.nft_ctx_new(0)
        if not self._context:
            raise KernelError(errno.ENOMEM, "nft_ctx_new", LIBRARY)
        self._lib.nft_ctx_buffer_output(self._context)
        self._lib.nft_ctx_buffer_error(self._context)
        self._lib.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON)

    def _declare(self) -> None:
        context, text = ctypes.c_void_p, ctypes.c_char_p
        signatures: dict[str, tuple[Any, list[Any]]] = {
            "nft_ctx_new": (context, [ctypes.c_uint32]),
            "nft_ctx_free": (None, [context]),
            "nft_ctx_buffer_output": (ctypes.c_int, [context]),
            "nft_ctx_buffer_error": (ctypes.c_int, [context]),
            "nft_ctx_get_output_buffer": (text, [context]),
            "nft_ctx_get_error_buffer": (text, [context]),
            "nft_ctx_output_set_flags": (None, [context, ctypes.c_uint]),
            "nft_ctx_set_dry_run": (None, [context, ctypes.c_bool]),
            "nft_run_cmd_from_buffer": (ctypes.c_int, [context, text]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self._lib, name)
            function.restype = result
            function.argtypes = arguments

    def close(self) -> None:
        if self._context:
            self._lib.nft_ctx_free(self._context)
            self._context = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def json_cmd(self, document: dict[str, Any], *, dry_run: bool = False) -> list[Any]:
        """Run one document as one transaction; the listing it asks for, if any. Raises NftError:
        then nothing of it is in force."""
        assert self._context, "used after close"
        self._lib.nft_ctx_set_dry_run(self._context, dry_run)
        result = self._lib.nft_run_cmd_from_buffer(self._context, json.dumps(document).encode())
        output = self._lib.nft_ctx_get_output_buffer(self._context) or b""
        error = (self._lib.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace")
        if result != 0:
            raise NftError(_message(error), *_about(document, dry_run))
        return list(json.loads(output)["nftables"]) if output.strip() else []

    def text_cmd(self, commands: str, about: str) -> str:
        """Run nft's own language, also one transaction; what it prints. `about`: of what, for
        the error. Raises NftError."""
        assert self._context, "used after close"
        self._lib.nft_ctx_output_set_flags(self._context, 0)
        self._lib.nft_ctx_set_dry_run(self._context, False)
        try:
            result = self._lib.nft_run_cmd_from_buffer(self._context, commands.encode())
        finally:
            self._lib.nft_ctx_output_set_flags(self._context, _OUTPUT_JSON)
        output = self._lib.nft_ctx_get_output_buffer(self._context) or b""
        error = (self._lib.nft_ctx_get_error_buffer(self._context) or b"").decode(errors="replace")
        if result != 0:
            raise NftError(_message(error), "an nft transaction", about)
        return str(output.decode())

    def list_objects(self, what: str, **where: str) -> list[dict[str, Any]]:
        """The objects, without the metainfo: ``list_objects("tables")``,
        ``list_objects("table", family="inet", name="x")``. Raises NftError (ENOENT: there is no
        such thing)."""
        asked = {"nftables": [{"list": {what: where or None}}]}
        return [item for item in self.json_cmd(asked) if "metainfo" not in item]


def _message(error: str) -> str:
    """The first line of what nft said, without its empty position. Later lines are the text
    parser's complaints about JSON, or source excerpts that do not exist."""
    for line in _POSITION.sub("", error).splitlines():
        if line.strip():
            return line.strip().rstrip(".")
    return "refused without a word"


def _about(document: dict[str, Any], dry_run: bool) -> tuple[str, str]:
    commands = document.get("nftables", [])
    request = "an nft dry run" if dry_run else "an nft transaction"
    if len(commands) == 1:
        verb, objects = next(iter(commands[0].items()))
        return f"nft {verb}", json.dumps(objects)[:200]
    tables = sorted({name for command in commands for name in _tables_in(command)})
    return f"{request} of {len(commands)} commands", f"tables {', '.join(tables)}"


def _tables_in(command: dict[str, Any]) -> Iterator[str]:
    for objects in command.values():
        for kind, fields in (objects or {}).items():
            if isinstance(fields, dict):
                name = fields.get("name" if kind == "table" else "table")
                if name:
                    yield f"{fields.get('family', 'ip')} {name}"
