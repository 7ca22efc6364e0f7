"""``python -m krq``: the same as ``krq``."""

from krq.cli import main

raise SystemExit(main())
