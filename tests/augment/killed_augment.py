"""One augmentation over an engine that answers by the text, logs each answer, and kills its process after some.

echo '["SOURCE", "OUT", "LOG", "MOST", "SHOTS"]' | python killed_augment.py

For each line it forks, so that what is imported is imported once, and prints how the fork ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from ojak.augment import blocks
from ojak.augment.config import AugmentConfig
from ojak.augment.run import augment_data
from ojak.engines.scripted import ScriptedEngine
from ojak.model.request import Completion, Request

BLOCK = 8


def answer(request: Request) -> str:
    """Sound pairs, and for some texts something else."""
    name = str(request.prompt).rpartition("<CON> ")[2].split()[0]
    number = int(name.removeprefix("text"))
    if number % 5 == 0:
        return "nothing to say"
    return f"<QUE> Which is it? <ANS> {name} </END>\n\n<QUE> Is it {name}? <ANS> yes </END>\n\n<QUE> cut"


class Mortal(ScriptedEngine):
    """Dies by kill -9 when it is to give answer number `most`."""

    def __init__(self, log: Path, most: int) -> None:
        super().__init__(answer, slots=3)
        self.log, self.most, self.done = log, most, 0

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        for completion in super().generate(requests, longest=longest):
            if self.done == self.most:
                os.kill(os.getpid(), signal.SIGKILL)
                threading.Event().wait()
            self.done += 1
            with self.log.open("a", encoding="utf-8") as file:
                file.write(str(completion.request.prompt).rpartition("<CON> ")[2].split()[0] + "\n")
            yield completion


def main(source: str, out: str, log: str, most: str, shots: str) -> None:
    blocks.BLOCK = BLOCK
    config = AugmentConfig(synthesizer="scripted", format="published", shots=int(shots), verify=False)
    augment_data(Path(source), Path(out), config, engine=Mortal(Path(log), int(most)))


def serve() -> None:
    """One fork for each line."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            main(*json.loads(line))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
