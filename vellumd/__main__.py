"""`python -m vellumd` is the command `vellumd`."""

from vellumd.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
