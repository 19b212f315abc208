"""`python -m vellumd.engine`: the engine process."""

from vellumd.engine.worker import main

main()
