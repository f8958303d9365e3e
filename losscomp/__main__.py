"""`python -m losscomp`."""

from .cli import main

raise SystemExit(main())
