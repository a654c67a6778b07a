"The `grefel` command as `python -m grefel`."
from grefel.use.cli import main

raise SystemExit(main())
