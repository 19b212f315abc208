"""`python -m vellumd_queue.server`: the reference queue server."""

from __future__ import annotations

import argparse
from pathlib import Path

from aiohttp import web

from vellumd_queue.server.app import make_app
from vellumd_queue.server.faults import ALL, Faults
from vellumd_queue.server.ledger import LEASE_S, Ledger


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(prog="python -m vellumd_queue.server", description=__doc__)
    options.add_argument("--host", default="127.0.0.1", help="address to listen on")
    options.add_argument("--port", type=int, default=8210, help="TCP port")
    options.add_argument("--db", type=Path, default=Path("queue.sqlite"), help="where jobs are")
    options.add_argument("--lease", type=float, default=LEASE_S, help="seconds of a lease")
    options.add_argument("--token-file", type=Path, help="file with the token that all must send")
    options.add_argument("--faults", type=float, default=0.0, help="share of broken answers, 0-1")
    options.add_argument("--kinds", nargs="+", choices=ALL, default=ALL, help="which faults")
    options.add_argument("--silence", type=float, default=120.0, help="seconds of silent faults")
    options.add_argument("--seed", type=int, default=0, help="of the faults")
    return options


def main() -> None:
    """Serve until a signal."""
    args = parser().parse_args()
    token = args.token_file.read_text("utf-8").partition("\n")[0].strip() if args.token_file else ""
    ledger = Ledger(args.db, args.lease)
    faults = None
    if args.faults:
        faults = Faults(ledger, args.faults, args.seed, tuple(args.kinds), args.silence)
    try:
        web.run_app(
            make_app(ledger, token, faults),
            host=args.host,
            port=args.port,
            access_log=None,
            print=lambda _: print(f"queue server on http://{args.host}:{args.port}", flush=True),
        )
    finally:
        ledger.close()


if __name__ == "__main__":
    main()
