"The `grefel` command as `python -m grefel`."
from grefel.cli import main

raise SystemExit(main())
