"""``python -m ici.cli``."""

import sys

from ici.cli.main import main

sys.exit(main())
