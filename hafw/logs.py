"""structlog for the daemons: console on a tty, JSON lines elsewhere, never a key or a secret."""

from __future__ import annotations

import logging
import sys
from typing import Any

# structlog imports rich if it is there, for tracebacks on a terminal: 40 ms of each start.
_rich = sys.modules.get("rich")
sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _rich is None:
    del sys.modules["rich"]
else:
    sys.modules["rich"] = _rich

__all__ = ["configure_logs"]


def configure_logs(daemon: str, node: str, level: str = "info") -> structlog.stdlib.BoundLogger:
    """Set up structlog once per process and return a logger bound to daemon and node."""
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if sys.stderr.isatty():
        processors.append(structlog.dev.ConsoleRenderer())
    else:
        processors += [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    log: structlog.stdlib.BoundLogger = structlog.get_logger(daemon=daemon, node=node)
    return log
