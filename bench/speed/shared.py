"""Makes the modules of bench/reference importable, which read talion's files and rebuild its networks."""

import sys
from pathlib import Path

REFERENCE = Path(__file__).resolve().parent.parent / "reference"
# behind this folder: what has a namesake there is found here first
if str(REFERENCE) not in sys.path:
    sys.path.append(str(REFERENCE))
