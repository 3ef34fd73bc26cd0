"""What is said and done where two processes want one output; see ownership.py."""

import os
import sys
from typing import NoReturn

from crmuons.storage.claims import FOLDER, Claim, Claims, clock
from crmuons.storage.owner import HeldError, LostError, Owner
from crmuons.storage.redact import message, without_credentials

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command may work later.


def held_by(claims: Claims, claim: Claim | None, remedy: str) -> HeldError:
    """Return the error of whoever finds the output in use, by the owner of a claim."""
    if claim is not None:  # It may have shown a sign of life since.
        claim = claims.newest().get(claim.key)
    owner = Owner() if claim is None else Owner.of(claims.read(claim))
    return HeldError(f"{without_credentials(claims.place)} is in use by {owner.describe()}; {remedy}")


def taken_over(claims: Claims, successor: Claim | None, last_sign: float) -> LostError:
    """Return the error of an owner that lost the output: to whom, and since when (by `clock`) it had shown no sign of life."""
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

    An exception would reach only this thread, and would let the others save what they have into another's output.
    """
    print(message(f"crmuons: {reason}; this process ends without writing there again"), file=sys.stderr, flush=True)  # noqa: T201
    os._exit(EXIT_CODE)
