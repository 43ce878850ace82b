"""``python -m retbench``."""

from retbench.cli import main

main()
