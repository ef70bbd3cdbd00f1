"""Imported first by the scripts, since importing torch takes a second or more.

Ctrl-C during the imports ends the program quietly. The garbage collector rests meanwhile: it would
spend half a second on looking at what torch makes. numpy's BLAS gets one thread: its others would
wait for work in a busy loop, and no product here is numpy's. `errors.run_main` takes over when the
program runs. Never imported by a module that others import: their signals are theirs.
"""

import gc
import os
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else: it is to be ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)
gc.disable()
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
