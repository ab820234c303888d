"""``python -m segformer``: the command ``segformer``.

Python loads the package, and PyTorch with it, before this file runs. ``OMP_WAIT_POLICY`` has to be
set by the caller here; the command ``segformer`` sets it.
"""

from _segformer_command import main

main()
