"""``python -m sparsekern``."""

import sys

from .cli.main import main

sys.exit(main())
