"""`python slow_ojak.py VERB ...`: ojak with a decoder that takes its time, as a large model on a busy machine does.

Each run of the decoder in a lane's thread sleeps 0.2 s, without the interpreter's lock, as products do; the first one
makes the file that OJAK_TEST_MARK names.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from ojak.cli import main
from ojak.model.decoder import Decoder

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may have it ignored
hidden = Decoder.hidden


def slow(*given: Any, **named: Any) -> Any:
    if threading.current_thread() is not threading.main_thread():
        Path(os.environ["OJAK_TEST_MARK"]).touch()
        time.sleep(0.2)
    return hidden(*given, **named)


Decoder.hidden = slow  # type: ignore[method-assign]
main()
