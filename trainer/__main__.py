"""`python -m trainer` is `paretrain`."""

import sys

from trainer.cli import main

sys.exit(main())
