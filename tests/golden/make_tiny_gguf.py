#!/usr/bin/env python3
"""Makes tests/data/tiny_models/gguf/: the tiny models as GGUF files. Run after make_tiny_models.py.

    pip install torch transformers safetensors tokenizers gguf numpy
    python3 tests/golden/make_tiny_gguf.py

NAME.gguf of a directory NAME beside it holds the same float32 weights, so NAME/golden.json holds for it too. llama_mixed.gguf has
a tensor of each block type; its golden file is what transformers computes from the weights as the gguf package dequantises them.
"""
import math
import pathlib

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Q
from gguf import quants
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

import tiny_models_lib as lib
from make_tiny_models import (FULL_LOGITS, MIN_DISTINCT, MIN_MARGIN, MODELS, NUM_COLUMNS, ROOT, make_prompts, make_weights,
                              read_config)

FOLDER = ROOT / "gguf"
TENSOR_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
                "self_attn.o_proj": "attn_output",
                "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
                "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
                "post_attention_layernorm": "ffn_norm"}
MIXED_SEED = 20000
MIXED_TYPES = {"token_embd": Q.Q8_0, "output": Q.Q6_K,
               "blk.0.attn_q": Q.Q4_0, "blk.0.attn_k": Q.F16, "blk.0.attn_v": Q.BF16, "blk.0.attn_output": Q.Q4_1,
               "blk.0.ffn_gate": Q.Q5_0, "blk.0.ffn_up": Q.Q5_1, "blk.0.ffn_down": Q.Q8_0,
               "blk.1.attn_q": Q.Q4_K, "blk.1.attn_k": Q.Q5_K, "blk.1.attn_v": Q.Q6_K, "blk.1.attn_output": Q.Q4_1,
               "blk.1.ffn_gate": Q.Q4_K, "blk.1.ffn_up": Q.Q5_K, "blk.1.ffn_down": Q.Q6_K}


def gguf_name(name):
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name]
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{TENSOR_NAMES[stem]}.{kind}"


def interleave(rows, heads):
    """Rows of a rotary projection from halves (i, i + d/2) to neighbours (2i, 2i + 1), as GGUF files of Llama models have it."""
    d = rows.shape[0] // heads
    return rows.reshape(heads, 2, d // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def deinterleave(rows, heads):
    d = rows.shape[0] // heads
    return rows.reshape(heads, d // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def f16_bytes(values):
    return np.asarray(values, dtype=np.float16)[..., None].view(np.uint8)


def quantise_with_minimum(x, bits):
    """Q4_K and Q5_K: 256 elements in 8 runs of 32; element = d * scale * q - dmin * minimum, two numbers of 6 bits a run."""
    runs = x.reshape(-1, 8, 32)
    low = np.minimum(runs.min(axis=2), 0)
    step = (runs.max(axis=2) - low) / (2**bits - 1)
    d = np.float16(step.max(axis=1, keepdims=True) / 63)
    dmin = np.float16(-low.min(axis=1, keepdims=True) / 63)
    scale = np.clip(np.ceil(step / np.maximum(np.float32(d), 1e-12)), 0, 63).astype(np.uint8)
    minimum = np.clip(np.ceil(-low / np.maximum(np.float32(dmin), 1e-12)), 0, 63).astype(np.uint8)
    step = np.float32(d) * scale
    q = np.round((runs + (np.float32(dmin) * minimum)[..., None]) / np.maximum(step, 1e-12)[..., None])
    q = np.clip(q, 0, 2**bits - 1).astype(np.uint8)
    packed = np.concatenate([scale[:, :4] | (scale[:, 4:] >> 4) << 6, minimum[:, :4] | (minimum[:, 4:] >> 4) << 6,
                             (scale[:, 4:] & 15) | (minimum[:, 4:] & 15) << 4], axis=1)
    nibbles = (q[:, 0::2] & 15) | (q[:, 1::2] & 15) << 4  # two runs share 32 bytes
    parts = [f16_bytes(d[:, 0]), f16_bytes(dmin[:, 0]), packed]
    if bits == 5:
        parts.append(np.bitwise_or.reduce((q >> 4) << np.arange(8, dtype=np.uint8)[None, :, None], axis=1))
    return np.concatenate([*parts, nibbles.reshape(len(runs), 128)], axis=1)


def quantise_q6_k(x):
    """256 elements in 16 runs of 16; element = d * scale * (q - 32), a signed byte of scale a run."""
    runs = x.reshape(-1, 16, 16)
    peak = np.take_along_axis(runs, np.abs(runs).argmax(axis=2)[..., None], axis=2)[..., 0]
    step = -peak / 32  # the value furthest from 0 becomes q = 0
    d = np.float16(np.abs(step).max(axis=1, keepdims=True) / 127)
    scale = np.clip(np.round(step / np.maximum(np.float32(d), 1e-12)), -128, 127)
    step = np.float32(d) * scale
    q = np.round(runs / np.where(step == 0, 1, step)[..., None]) + 32
    q = np.clip(q, 0, 63).astype(np.uint8).reshape(-1, 2, 4, 32)  # [blocks, halves, quarters of a half, 32]
    low = (q[:, :, :2] & 15) | (q[:, :, 2:] & 15) << 4
    high = np.bitwise_or.reduce((q >> 4) << np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None], axis=2)
    n = len(runs)
    signed = scale.astype(np.int8).view(np.uint8)
    return np.concatenate([low.reshape(n, 128), high.reshape(n, 64), signed, f16_bytes(d[:, 0])], axis=1)


def encode(x, kind):
    """The bytes of `x` [rows, columns] as the file stores them."""
    if kind in (Q.Q4_K, Q.Q5_K):
        return quantise_with_minimum(x, 4 if kind == Q.Q4_K else 5).reshape(x.shape[0], -1)
    if kind == Q.Q6_K:
        return quantise_q6_k(x).reshape(x.shape[0], -1)
    return quants.quantize(x, kind)


def write_header(writer, config, scaling):
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_dim)
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if scaling == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
    tokens = lib.tiny_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * lib.NUM_ORDINARY + [gguf.TokenType.CONTROL] * len(lib.SPECIAL_TOKENS))
    writer.add_token_merges(lib.MERGES)
    writer.add_bos_token_id(lib.BOS)
    writer.add_eos_token_id(lib.EOS)
    writer.add_pad_token_id(lib.PAD)
    writer.add_add_bos_token(False)
    writer.add_chat_template(lib.CHATML)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def rope_factors(config):
    """llama3 scaling as GGUF stores it: by how much each pair's frequency is divided, in a tensor rope_freqs.weight."""
    p, d = config.rope_parameters, config.head_dim
    factors = []
    for i in range(d // 2):
        wavelength = 2 * math.pi * p["rope_theta"] ** (2 * i / d)
        low, high = p["low_freq_factor"], p["high_freq_factor"]
        blend = (p["original_max_position_embeddings"] / wavelength - low) / (high - low)
        blend = min(max(blend, 0.0), 1.0)
        factors.append(1 / (blend + (1 - blend) / p["factor"]))
    return np.array(factors, dtype=np.float32)


def same_weights(name, arch, scaling=None):
    config = read_config(MODELS[name]["config"])
    state = {}
    for file in sorted((ROOT / name).glob("*.safetensors")):
        state.update(load_file(file))
    writer = gguf.GGUFWriter(FOLDER / f"{name}.gguf", arch)
    write_header(writer, config, scaling)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if scaling == "rope_freqs":
        writer.add_tensor("rope_freqs.weight", rope_factors(config))
    for key, tensor in state.items():
        data = tensor.float().numpy()
        if arch == "llama" and ("q_proj" in key or "k_proj" in key):
            data = interleave(data, config.num_attention_heads if "q_proj" in key else config.num_key_value_heads)
        writer.add_tensor(gguf_name(key), np.ascontiguousarray(data))
    finish(writer)


def mixed():
    config = LlamaConfig(vocab_size=lib.VOCAB_SIZE, hidden_size=256, intermediate_size=256, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, head_dim=64, max_position_embeddings=256, rms_norm_eps=1e-5,
                         rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, tie_word_embeddings=False)
    for seed in range(MIXED_SEED, MIXED_SEED + 100):
        stored, state = {}, {}
        for key, tensor in make_weights(config, seed).items():
            data, name = tensor.numpy(), gguf_name(key)
            heads = 2 if "q_proj" in key else 1 if "k_proj" in key else 0
            kind = MIXED_TYPES.get(name.removesuffix(".weight"), Q.F32)
            stored[name] = (kind, encode(interleave(data, heads) if heads else data, kind))
            plain = quants.dequantize(stored[name][1], kind).astype(np.float32)
            plain = deinterleave(plain, heads) if heads else plain
            error = np.abs(plain - data).max() / np.abs(data).max()
            if error > 0.1:
                raise SystemExit(f"{name} {kind.name}: quantised {error} away")
            state[key] = torch.from_numpy(np.ascontiguousarray(plain))
        model = lib.load_float64(LlamaForCausalLM, config, state)
        prompts = make_prompts(seed)
        paths = [lib.greedy(model, ids) for ids in prompts]
        if all(min(m) > MIN_MARGIN and max(p) < lib.NUM_ORDINARY and len(set(p)) >= MIN_DISTINCT for p, m in paths):
            break
    else:
        raise SystemExit("llama_mixed: no seed fits")
    writer = gguf.GGUFWriter(FOLDER / "llama_mixed.gguf", "llama")
    write_header(writer, config, None)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for name, (kind, data) in stored.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    finish(writer)
    columns = np.random.Generator(np.random.PCG64(7)).choice(lib.VOCAB_SIZE, NUM_COLUMNS, replace=False).tolist()
    golden = {"schema": 1, "model": "llama_mixed",
              "made_with": {"script": "tests/golden/make_tiny_gguf.py", "seed": seed, **lib.made_with()},
              "vocab_size": lib.VOCAB_SIZE, "tolerance": 2e-4, "columns": columns,
              "prompts": [lib.prompt_record(model, ids, columns, len(ids) in FULL_LOGITS) for ids in prompts]}
    lib.write_golden(FOLDER / "llama_mixed.golden.json", golden)
    print(f"llama_mixed: seed {seed}, least margin {min(min(m) for _, m in paths):.4f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    same_weights("llama3_scaled", "llama", "rope_freqs")
    same_weights("llama_linear", "llama", "linear")
    same_weights("qwen2", "qwen2")
    same_weights("qwen3", "qwen3")
    mixed()
    for made in sorted(FOLDER.iterdir()):
        made.chmod(0o644)
        print(f"{made.name}: {made.stat().st_size / 1024:.0f} KiB")
