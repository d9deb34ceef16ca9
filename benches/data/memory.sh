#!/bin/sh
# Peak memory of the loader over 1,000 and over 100,000 samples: `memory.sh 'wds:/tmp/photos/*.tar'`.
set -eu
cargo build --release -p benches --example loader_memory
for samples in 1000 100000; do
    "${CARGO_TARGET_DIR:-target}/release/examples/loader_memory" "$1" "$samples"
done
