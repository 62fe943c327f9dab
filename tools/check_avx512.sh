#!/bin/sh -e
# Runs the tests of the CPU kernels on those for AVX-512, emulated, on a machine that has AVX2 alone: tools/check_avx512.sh OUT
# Shows that they give the right numbers, and nothing of their speed. Takes 10 minutes on two cores.
out=${1:?folder for a copy of the package}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
out=$(cd "$out" && pwd) # the tests also import the package from other folders
cp -r src/localmix "$out"
rm -f "$out"/localmix/kernels/_native*
LOCALMIX_EMULATE_AVX512=1 "$python" setup.py -q build_ext --build-lib "$out" --build-temp "$out/objects"
for set in avx512 avx512_bf16; do
    LOCALMIX_INSTRUCTION_SET=$set PYTHONPATH=$out "$python" -m pytest -q -n auto tests/kernels/test_native.py
done
