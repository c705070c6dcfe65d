"""The command `ffrepro` and `python -m ffrepro`."""

import os
import signal


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # until `errors.run` takes over, a tenth of a second later
        signal.signal(number, lambda number, frame: os._exit(128 + number))
    from ffrepro import cli

    cli.main()


if __name__ == "__main__":
    main()
