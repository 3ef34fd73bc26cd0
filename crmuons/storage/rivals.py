"""Errors and actions for two processes that want the same output; see ownership.py."""

import os
import sys
from typing import NoReturn

from crmuons.storage.claims import FOLDER, Claim, Claims, clock
from crmuons.storage.owner import HeldError, LostError, Owner
from crmuons.storage.redact import message, without_credentials

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command may work later.


def held_by(claims: Claims, claim: Claim | None, remedy: str) -> HeldError:
    """Return the error for a process that finds the output in use by the owner of a claim."""
    if claim is not None:  # It may have shown a newer sign of life.
        claim = claims.newest().get(claim.key)
    owner = Owner() if claim is None else Owner.of(claims.read(claim))
    return HeldError(f"{without_credentials(claims.place)} is in use by {owner.describe()}; {remedy}")


def taken_over(claims: Claims, successor: Claim | None, last_sign: float) -> LostError:
    """Return the error for an owner that lost the output. It names the successor and the time without a sign of life.

    Args:
        claims: the claims on the output.
        successor: the claim of the process that took over; None if there is none.
        last_sign: the time of the last sign of life, on `clock`.
    """
    place = without_credentials(claims.place)
    if successor is None:
        return LostError(f"the mark of this process in {place}/{FOLDER} was removed, so that others may write there")
    owner = Owner.of(claims.read(successor))
    return LostError(
        f"{place} was taken over by {owner.describe()}, because this process had shown no sign of life for "
        f"{clock() - last_sign:.0f} s"
    )


def end_process(reason: str) -> NoReturn:
    """End this process without another write. Ray ends the workers of a driver that is gone.

    An exception would end only this thread; other threads would still save their data into another process's output.
    """
    print(message(f"crmuons: {reason}; this process ends without writing there again"), file=sys.stderr, flush=True)  # noqa: T201
    os._exit(EXIT_CODE)
