"""Keep what libraries say about their own internals from the user's terminal, without hiding errors."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str, categories: tuple[type[Warning], ...] = (FutureWarning,)) -> Iterator[None]:
    """Silence warnings of `categories`, and everything below an error from `loggers`, inside the block."""
    found = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in found]
    with warnings.catch_warnings():
        for category in categories:
            warnings.simplefilter("ignore", category)
        for logger in found:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(found, levels, strict=True):
                logger.setLevel(level)
