"""A federation to try things on by hand: python -m tests.integration.pelican.federation [--events N]"""

import argparse
import signal
import sys

from crmuons.simulation.simulate import SimulationSettings, simulate
from tests.integration.pelican.federation.federation import federation, what_is_missing


def main() -> int:
    """Run a federation filled with simulated events until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.integration.pelican.federation", description=__doc__)
    parser.add_argument("--events", type=int, default=20_000, help="simulated events in each of three run directories")
    events = parser.parse_args().events
    if missing := what_is_missing():
        print(missing, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with federation() as running:
        for seed, runs in enumerate(("0000000-0000999", "0001000-0001999", "0002000-0002999")):
            for namespace in ("public", "private"):
                simulate(
                    SimulationSettings(), num_events=events, out=running.data / namespace / "sim" / runs, seed=seed
                )
        print(f"export SSL_CERT_FILE={running.ca}")
        print(f"export BEARER_TOKEN='{running.token('storage.read:/ storage.create:/ storage.modify:/', 86400)}'")
        print(f"without a token: {running.url('/public/sim/*/*.parquet')}")
        print(f"with that token: {running.url('/private/sim/*/*.parquet')}")
        print(f"or a login:      crmuons login {running.url('/private/sim')}")
        print(f"                 approve with: curl --cacert {running.ca} {running.issuer}/device -d user_code=CODE")
        print("Ctrl-C stops it", flush=True)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("stopping")
    return 0


if __name__ == "__main__":
    sys.exit(main())
