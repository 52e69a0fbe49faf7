#!/usr/bin/env python3
"""Writes tests/data/quant/<TYPE>.bin: what the `gguf` package (the reference implementation) makes of quantised blocks.

Each file is 4 blocks of random bytes with sane scales, followed by their dequantised elements as little-endian float32.
Run from anywhere: python3 tests/golden/make_quant_goldens.py   (needs: pip install gguf numpy)
"""
import pathlib

import gguf
import numpy as np

OUT = pathlib.Path(__file__).resolve().parent.parent / "data" / "quant"
NUM_BLOCKS = 4

# Byte offsets of the fp16 fields of a block; everything else may be any bit pattern.
FP16_FIELDS = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
}


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(20240229)
    for name, fields in FP16_FIELDS.items():
        qtype = gguf.GGMLQuantizationType[name]
        _, block_bytes = gguf.GGML_QUANT_SIZES[qtype]
        blocks = rng.integers(0, 256, size=(NUM_BLOCKS, block_bytes), dtype=np.uint8)
        for offset in fields:
            scales = rng.normal(0.0, 0.1, NUM_BLOCKS).astype(np.float16)
            blocks[:, offset:offset + 2] = scales.view(np.uint8).reshape(NUM_BLOCKS, 2)
        values = gguf.quants.dequantize(blocks, qtype).astype("<f4")
        (OUT / f"{name}.bin").write_bytes(blocks.tobytes() + values.tobytes())


if __name__ == "__main__":
    main()
