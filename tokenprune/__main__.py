"""``python -m tokenprune``, as ``torchrun -m`` and ``accelerate launch -m`` need it."""

from tokenprune.cli.main import main

main()
