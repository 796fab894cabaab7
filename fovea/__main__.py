"""``python -m fovea`` is the command line; torchrun starts it by this name."""

import sys

from fovea.cli import main

sys.exit(main())
