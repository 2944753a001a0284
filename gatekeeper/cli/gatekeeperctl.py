"""``gatekeeperctl``: rabbitmqctl's commands for a running gate.

Not on click, as ``gatekeeper`` is: options may stand anywhere, also before the command, and
every message is rabbitmqctl's.
"""

from __future__ import annotations

import os
import sys

from gatekeeper.cli.ctl.run import run


def main() -> None:
    sys.exit(run(sys.argv[1:], os.environ))


if __name__ == "__main__":
    main()
