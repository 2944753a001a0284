"""``python -m tests.integration.differential --operations 10000 --seeds 1,2,3``.

Exit status 0 without a difference, 1 with one. ``--self-check`` compares two native nodes, which
must not differ: it measures the noise of the harness itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.integration.differential.campaign import Campaign
from tests.integration.differential.parts import sides


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.integration.differential")
    parser.add_argument("--operations", type=int, default=1000, help="per seed")
    parser.add_argument("--seeds", default="1", help="comma-separated")
    parser.add_argument("--bursts", type=float, default=0.4, help="share of pipelined steps")
    parser.add_argument("--self-check", action="store_true", help="two native nodes")
    parser.add_argument("--folder", type=Path, help="keep the parts' files and logs here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        with sides(folder, self_check=options.self_check) as (a, b):
            campaign = Campaign(a, b, predict=not options.self_check)
            for seed in map(int, options.seeds.split(",")):
                started = time.monotonic()
                known = len(campaign.report.differences)
                campaign.run(seed, options.operations, bursts=options.bursts)
                for difference in campaign.report.differences[known:]:
                    print(difference)
                print(f"seed {seed}: {time.monotonic() - started:.1f} s", flush=True)
    summary = str(campaign.report).splitlines()[0]
    print(summary)
    return 1 if campaign.report.differences else 0


if __name__ == "__main__":
    sys.exit(main())
