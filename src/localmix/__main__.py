"""`python -m localmix` is `localmix`."""

import sys

from localmix.cli import main

sys.exit(main())
