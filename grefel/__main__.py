"The `grefel` command as `python -m grefel`; of several processes (torchrun) the first prints."
import os
import sys

from grefel.use.cli import main

if int(os.environ.get('RANK') or 0): sys.stdout = open(os.devnull, 'w')
raise SystemExit(main())
