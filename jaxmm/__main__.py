"""`python -m jaxmm` is the command `jaxmm`."""

import sys

from jaxmm.cli import main

if __name__ == '__main__':
  sys.exit(main())
