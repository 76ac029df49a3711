"""``python -m shoal``, and so ``torchrun -m shoal`` and ``accelerate launch -m shoal``."""

from shoal.cli import main

if __name__ == "__main__":
    main()
