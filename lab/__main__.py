# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m lab``, and the program ``pageflip`` of what is installed."""

import signal
import sys


def main() -> int:
    """Run the command line; Ctrl-C is answered from the first import on."""
    try:
        from lab.base import streams  # noqa: PLC0415 -- an import can be interrupted as well

        streams.steady()
        try:
            from lab.cli import main as run  # noqa: PLC0415

            return run()
        finally:
            streams.finish()
    except KeyboardInterrupt:
        from lab.base import streams  # noqa: PLC0415

        streams.say("interrupted")
        return 130
    finally:
        # The exit code stands.  In the interpreter's own end a signal would replace it.
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
