"""`python -m vellumd.engine`: the engine process; with `bench`, how fast it is here."""

import sys

if sys.argv[1:2] == ["bench"]:
    from vellumd.engine.bench.run import main as bench

    bench(sys.argv[2:])
else:
    from vellumd.engine.worker import main

    main()
