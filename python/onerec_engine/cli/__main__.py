"""``python -m onerec_engine.cli`` is the command ``onerec-engine``."""

import sys

from onerec_engine.cli import main

sys.exit(main())
