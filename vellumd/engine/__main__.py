"""`python -m vellumd.engine`: the engine process.

With `convert` it converts a model, with `bench` it measures how fast it is here, with `plan` it
tells how a model would run.
"""

import sys

from vellumd import platform

platform.die_with_parent()  # whoever ends the command that started this means this too
command = sys.argv[1] if len(sys.argv) > 1 else ""
if command == "convert":
    from vellumd.engine import converting

    sys.exit(converting.main(sys.argv[2:]))
elif command == "plan":
    from vellumd.engine import planning

    sys.exit(planning.main(sys.argv[2:]))
elif command == "bench":
    from vellumd.engine.bench.run import main as bench

    sys.exit(bench(sys.argv[2:]))
else:
    from vellumd.engine.worker import main

    main()
