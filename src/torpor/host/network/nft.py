"""libnftables in this process: a rule set is applied as one transaction, without a subprocess."""

from __future__ import annotations

import ctypes
import json
from typing import Any, Final

from torpor.model.errors import SetupMissing, TorporError

_LIBRARY: Final = "libnftables.so.1"
_OUTPUT_JSON: Final = 1 << 4


class RulesRefused(TorporError):
    """The kernel or libnftables refused a command; the message is its own."""


def apply(commands: str) -> None:
    """Run nft commands in the calling thread's network namespace, all or none.

    Raises:
        RulesRefused: with nft's message.
        SetupMissing: no libnftables on this machine.
    """
    _run(commands, as_json=False)


def listing(command: str) -> list[dict[str, Any]]:
    """The objects that a `list …` command answers, as libnftables-json(5) describes them."""
    text = _run(command, as_json=True)
    objects: list[dict[str, Any]] = json.loads(text)["nftables"] if text else []
    return objects


def _run(commands: str, *, as_json: bool) -> str:
    library = _load()
    # A context keeps the netlink socket of the namespace it was made in, so each call has its own.
    context = library.nft_ctx_new(0)
    try:
        library.nft_ctx_buffer_output(context)
        library.nft_ctx_buffer_error(context)
        if as_json:
            library.nft_ctx_output_set_flags(context, _OUTPUT_JSON)
        if library.nft_run_cmd_from_buffer(context, commands.encode()) != 0:
            message = (library.nft_ctx_get_error_buffer(context) or b"").decode(errors="replace").strip()
            raise RulesRefused(f"nft: {message}")
        return (library.nft_ctx_get_output_buffer(context) or b"").decode()
    finally:
        library.nft_ctx_free(context)


def _load() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise SetupMissing(f"{_LIBRARY} is not installed", "Run `torpor setup`.") from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error", "nft_ctx_free"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("nft_ctx_get_error_buffer", "nft_ctx_get_output_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    return library
