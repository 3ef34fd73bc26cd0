"""Object stores and other remote file systems: each error is one sentence that names the URL, and an OSError."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

from crmuons.progress import spoken_wait

# A thread that reports a wait costs 0.1 ms: the same as a thousand of these calls, but much less than a request.
WITHOUT_REQUESTS = frozenset(
    {"tell", "seek", "readable", "writable", "seekable", "unstrip_protocol", "invalidate_cache"}
)
PROGRAMMING = (NotImplementedError, AttributeError, TypeError, LookupError, ValueError)


class StoreError(OSError):
    """Raised if a store cannot be reached, refuses, or fails."""


@contextmanager
def named_errors(url: str) -> Iterator[None]:
    """Turn errors of a storage library into an OSError that names the URL; botocore's errors, for example, are no OSErrors."""
    try:
        yield
    except PROGRAMMING:
        raise
    except (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        if url in str(error):
            raise
        msg = f"{url}: {' '.join(str(error).split())}"
        raise type(error)(msg) from error
    except Exception as error:
        if isinstance(error, StoreError):
            raise
        msg = (
            f"{url}: {type(error).__name__}: {' '.join(str(error).split())}; check the bucket's name, the credentials and"
            " the endpoint in the environment of its library"
        )
        raise StoreError(msg) from error


class Named:
    """A file system or an open file of it, whose methods raise errors that name the URL.

    Args:
        wrapped: the file system or file.
        url: its URL, for errors.
    """

    def __init__(self, wrapped: Any, url: str) -> None:
        self._wrapped, self._url = wrapped, url

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._wrapped, name)
        return self._calling(attribute) if callable(attribute) else attribute

    def _calling(self, method: Callable[..., Any]) -> Callable[..., Any]:
        asks = getattr(method, "__name__", "") not in WITHOUT_REQUESTS

        def call(*arguments: Any, **options: Any) -> Any:
            waiting = (
                spoken_wait(lambda: f"the store of {self._url}, until its library gives up") if asks else nullcontext()
            )
            with named_errors(self._url), waiting:
                result = method(*arguments, **options)
            return Named(result, self._url) if method.__name__ == "open" else result

        return call

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._wrapped)
