"""``python -m edge_sdk`` is the command ``edge-sdk``; ``torchrun -m edge_sdk train ...`` trains on several GPUs."""

from edge_sdk.cli import main

main()
