"""`python -m femtune`, and so `torchrun -m femtune fit ...`, `accelerate launch -m femtune fit ...`."""

import sys

from femtune.cli.main import main

sys.exit(main())
