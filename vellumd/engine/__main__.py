"""`python -m vellumd.engine`: the engine process; with `convert`, a conversion."""

import sys

if sys.argv[1:2] == ["convert"]:
    from vellumd.engine import converting

    sys.exit(converting.main(sys.argv[2:]))
else:
    from vellumd.engine.worker import main

    main()
