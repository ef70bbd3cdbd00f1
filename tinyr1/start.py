"""Imported first by the scripts: Ctrl-C during the imports, a second or more, ends it quietly.

Never by a module that others import: their signals are theirs. `errors.run_main` takes over when
the program runs. A process that ignores SIGINT goes on so.
"""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
