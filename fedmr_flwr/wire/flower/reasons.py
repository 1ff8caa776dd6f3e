"""The reason why something failed, from what Flower or Ray wrote about it."""

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_TRACEBACK = re.compile(r"Traceback \(most recent call last\):\n(?: .*\n|\n)*(\S.*)")
# Flower's lines of ordinary work, and those of its HTTP server.
_ORDINARY = re.compile(r"(\d{4}-\d\d-\d\d\S* (\S+ )?)?(INFO|DEBUG)\b")
_CHAINED = ("direct cause of the following exception", "another exception occurred")


def plain(text: str) -> str:
    """Return a text without the codes for colours."""
    return _COLOUR.sub("", text)


def reason(log: str) -> str:
    """Return the line of a log that says most about a failure.

    Returns:
        The exception that began the last chain of tracebacks; without one, the last line about an error; else the
        last line. Empty if there is none but about ordinary work.
    """
    cause, end = "", 0
    log = plain(log)
    for found in _TRACEBACK.finditer(log):
        # Flower raises exceptions of its own from the first one, which say only that there was one.
        if not any(words in log[end : found.start()] for words in _CHAINED):
            cause = found[1]
        end = found.end()
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|fatal|error)\b", line, re.IGNORECASE)]
    lines = [line for line in lines if not _ORDINARY.match(line)]
    return " ".join((cause or (errors or lines or [""])[-1]).split())
