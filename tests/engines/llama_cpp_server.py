"""A process of its own that serves a GGUF file with llama.cpp on loopback, until its stdin ends.

    python llama_cpp_server.py MODEL.gguf

Prints the address when it is ready.
"""

from __future__ import annotations

import sys


def main() -> None:
    import xllamacpp.xllamacpp as xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_ctx, params.n_parallel, params.warmup = 2048, 2, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
