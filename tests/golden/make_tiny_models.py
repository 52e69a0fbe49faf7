#!/usr/bin/env python3
"""Makes tests/data/tiny_models/<name>/: tiny random models as Hugging Face directories, and golden.json beside each.

    pip install torch transformers safetensors tokenizers numpy
    python3 tests/golden/make_tiny_models.py [name ...]

Weights come from numpy's PCG64 and a seed, logits from transformers in float64 (see tiny_models_lib.py). For each model seeds are
tried until the greedy paths are clear (every margin above MIN_MARGIN, no end-of-sequence id, no short loop) and until
every feature that the model is there for changes its logits by more than MIN_EFFECT: a reader that ignores it cannot pass.
The format of golden.json is described in tests/data/tiny_models/README.md.
"""
import json
import pathlib
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

import tiny_models_lib as lib

ROOT = pathlib.Path(__file__).resolve().parents[1] / "data" / "tiny_models"
PROMPT_LENGTHS = [1, 15, 16, 17, 40, 70]  # around a block of 16 tokens, beyond every window, a partial last block
FULL_LOGITS = {1, 15}                     # prompt lengths whose every logit is kept
NUM_COLUMNS = 12                          # fixed ids whose logits are kept at every position
MIN_MARGIN = 5e-3
MIN_EFFECT = 0.05
MIN_DISTINCT = 8                          # different ids in each greedy continuation


def base(model_type, architecture, **changes):
    """config.json as published checkpoints before transformers 5 have it (torch_dtype, rope_theta, rope_scaling)."""
    config = {"architectures": [architecture], "model_type": model_type, "vocab_size": lib.VOCAB_SIZE, "hidden_size": 64,
              "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
              "hidden_act": "silu", "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
              "tie_word_embeddings": True, "bos_token_id": lib.BOS, "eos_token_id": lib.EOS, "torch_dtype": "float32",
              "use_cache": True}
    config.update(changes)
    return {k: v for k, v in config.items() if v is not ...}


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
YARN_FULL = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 3.0, "beta_slow": 0.5,
             "attention_factor": 1.3, "truncate": False, "rope_theta": 1000000.0}

# name -> config, changes that must matter, and how it is stored. `...` leaves a key out.
MODELS = {
    "llama3_scaled": dict(
        config=base("llama", "LlamaForCausalLM", rope_theta=500000.0, rope_scaling=LLAMA3, head_dim=16),
        effects=[{"rope_scaling": {**LLAMA3, "factor": 4.0}}, {"rope_scaling": {**LLAMA3, "low_freq_factor": 2.0}},
                 {"rope_scaling": {**LLAMA3, "high_freq_factor": 2.0}},
                 {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 32}}, {"rope_scaling": None}]),
    "llama_linear": dict(
        config=base("llama", "LlamaForCausalLM", rope_scaling={"type": "linear", "factor": 4.0}, head_dim=32, hidden_size=48,
                    num_attention_heads=2, num_key_value_heads=1, intermediate_size=88, tie_word_embeddings=False,
                    rms_norm_eps=0.05),
        effects=[{"rope_scaling": None}, {"rms_norm_eps": 1e-5}], shards=2),
    "llama_yarn": dict(
        config=base("llama", "LlamaForCausalLM", rope_scaling=YARN, head_dim=32, num_attention_heads=2, num_key_value_heads=1,
                    max_position_embeddings=128),
        effects=[{"rope_scaling": None}, {"rope_scaling": {**YARN, "factor": 8.0}},
                 {"rope_scaling": {**YARN, "attention_factor": 1.0}}, {"rope_scaling": {**YARN, "truncate": False}}]),
    "llama_mha": dict(  # as first published: no head_dim, no num_key_value_heads, no rope_theta
        config=base("llama", "LlamaForCausalLM", tie_word_embeddings=False, num_key_value_heads=..., rope_theta=...,
                    hidden_size=48, num_attention_heads=3, intermediate_size=100),
        effects=[{"rope_theta": 500000.0}]),
    "llama_mqa": dict(
        config=base("llama", "LlamaForCausalLM", num_key_value_heads=1, torch_dtype="bfloat16"),
        effects=[], dtype=torch.bfloat16),
    "llama_bias": dict(
        config=base("llama", "LlamaForCausalLM", hidden_size=48, num_attention_heads=3, num_key_value_heads=3, head_dim=16,
                    attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
        effects=[], zeroed=["self_attn.q_proj.bias", "self_attn.v_proj.bias", "self_attn.o_proj.bias", "mlp.gate_proj.bias",
                            "mlp.up_proj.bias", "mlp.down_proj.bias"]),
    "qwen2": dict(
        config=base("qwen2", "Qwen2ForCausalLM", rope_theta=1000000.0, use_sliding_window=False, sliding_window=32,
                    max_window_layers=1, rms_norm_eps=1e-6, eos_token_id=lib.EOS),
        effects=[{"use_sliding_window": True}], zeroed=["self_attn.q_proj.bias", "self_attn.v_proj.bias"]),
    "qwen2_window": dict(  # the first layer sees everything, the second 12 tokens
        config=base("qwen2", "Qwen2ForCausalLM", hidden_size=48, num_attention_heads=3, num_key_value_heads=1,
                    use_sliding_window=True, sliding_window=12, max_window_layers=1, tie_word_embeddings=False),
        effects=[{"use_sliding_window": False}, {"max_window_layers": 0}, {"sliding_window": 11}, {"sliding_window": 13}]),
    "qwen3": dict(  # config.json as transformers 5 writes it (dtype, rope_parameters); head_dim is not hidden/heads
        config=base("qwen3", "Qwen3ForCausalLM", hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
                    intermediate_size=80, rms_norm_eps=1e-6, attention_bias=False, torch_dtype=..., dtype="float32",
                    rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                    layer_types=["full_attention", "full_attention"], sliding_window=None, use_sliding_window=False),
        effects=[{"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}],
        zeroed=["self_attn.q_norm.weight", "self_attn.k_norm.weight"],
        generation={"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}),
    "qwen3_yarn": dict(
        config=base("qwen3", "Qwen3ForCausalLM", hidden_size=48, num_attention_heads=3, num_key_value_heads=1, head_dim=32,
                    intermediate_size=80, attention_bias=False, torch_dtype=..., dtype="float32", rope_theta=...,
                    rope_parameters=YARN_FULL, tie_word_embeddings=False),
        effects=[{"rope_parameters": {**YARN_FULL, **c}} for c in
                 ({"factor": 6.0}, {"beta_fast": 2.0}, {"beta_slow": 0.25}, {"attention_factor": 1.2}, {"truncate": True})]),
    "mistral": dict(
        config=base("mistral", "MistralForCausalLM", hidden_size=48, num_attention_heads=2, num_key_value_heads=1, head_dim=64,
                    sliding_window=12, tie_word_embeddings=False, torch_dtype="bfloat16"),
        effects=[{"sliding_window": None}, {"sliding_window": 11}, {"sliding_window": 13}], dtype=torch.bfloat16, shards=2),
}

# Standard deviation of a weight times sqrt(columns). The layers outweigh the embedding in the residual stream, so that a
# tied head does not just repeat the last token; queries and keys are large enough for attention to be sharp.
GAINS = {"q_proj": 1.4, "k_proj": 1.4, "v_proj": 1.0, "o_proj": 1.3, "gate_proj": 1.4, "up_proj": 1.2, "down_proj": 1.3}


def make_weights(config, seed):
    rng = np.random.Generator(np.random.PCG64(seed))
    state = {}
    for name, tensor in sorted(AutoModelForCausalLM.from_config(config).state_dict().items()):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        noise = torch.from_numpy(rng.standard_normal(tuple(tensor.shape)).astype(np.float32))
        if name.endswith("bias"):
            state[name] = 0.3 * noise
        elif "q_norm" in name or "k_norm" in name:
            state[name] = 1.3 + 0.3 * noise
        elif "norm" in name:
            state[name] = 1.0 + 0.2 * noise
        elif "embed_tokens" in name or "lm_head" in name:
            state[name] = 0.35 * noise
            state[name][lib.NUM_ORDINARY:] *= 0.3  # special tokens are seldom the best
        else:
            state[name] = noise * (GAINS[name.split(".")[-2]] / tensor.shape[1] ** 0.5)
    return state


def read_config(raw):
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(raw))
        return AutoConfig.from_pretrained(folder)


def make_prompts(seed):
    rng = np.random.Generator(np.random.PCG64(seed + 10**6))
    return [rng.integers(0, lib.NUM_ORDINARY, n).tolist() for n in PROMPT_LENGTHS]


def load(raw, state):
    return lib.load_float64(AutoModelForCausalLM.from_config, read_config(raw), state)


def effects_matter(spec, state, prompt, reference):
    variants = [(c, load({**spec["config"], **c}, state)) for c in spec["effects"]]
    for suffix in spec.get("zeroed", []):
        neutral = {k: (torch.ones_like(v) if "norm" in suffix else torch.zeros_like(v)) if k.endswith(suffix) else v
                   for k, v in state.items()}
        variants.append((suffix, load(spec["config"], neutral)))
    for what, model in variants:
        effect = np.abs(lib.logits_of(model, prompt) - reference).max()
        if effect < 1e-6:
            raise SystemExit(f"{what} has no effect on this configuration")
        if effect < MIN_EFFECT:
            print(f"    {what} changes logits by only {effect:.4f}")
            return False
    return True


def save(folder, name, spec, state, golden):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    write = lambda file, data: (folder / file).write_text(json.dumps(data, indent=1) + "\n")  # noqa: E731
    write("config.json", spec["config"])
    write("generation_config.json", {"bos_token_id": lib.BOS, "eos_token_id": [lib.EOS, lib.SPECIAL_TOKENS.index("<|im_end|>") +
                                     lib.NUM_ORDINARY], "pad_token_id": lib.PAD, **spec.get("generation", {})})
    lib.tiny_tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    write("tokenizer_config.json", {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>",
                                    "add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": lib.CHATML})
    shards = spec.get("shards", 1)
    if shards == 1:
        save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    else:
        weight_map, names = {}, sorted(state)
        for i in range(shards):
            file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = names[i * len(names) // shards:(i + 1) * len(names) // shards]
            save_file({n: state[n] for n in part}, str(folder / file), metadata={"format": "pt"})
            weight_map.update({n: file for n in part})
        total = sum(t.numel() * t.element_size() for t in state.values())
        write("model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    lib.write_golden(folder / "golden.json", golden)
    for file in folder.iterdir():
        file.chmod(0o644)


def make(name, spec):
    raw = spec["config"]
    config = read_config(raw)
    for attempt in range(400):
        seed = 1000 * (1 + list(MODELS).index(name)) + attempt
        state = {k: v.to(spec.get("dtype", torch.float32)).contiguous() for k, v in make_weights(config, seed).items()}
        model = load(raw, state)
        prompts = make_prompts(seed)
        reference = lib.logits_of(model, prompts[-1])
        if reference.std() < 1 or not effects_matter(spec, state, prompts[-1], reference):
            continue
        paths = []
        for ids in prompts:  # cheap rejection before the records are made
            ids_out, margins = lib.greedy(model, ids)
            if min(margins) < MIN_MARGIN or max(ids_out) >= lib.NUM_ORDINARY or len(set(ids_out)) < MIN_DISTINCT:
                break
            paths.append(min(margins))
        if len(paths) == len(prompts):
            break
    else:
        raise SystemExit(f"{name}: no seed fits")
    columns = np.random.Generator(np.random.PCG64(7)).choice(lib.VOCAB_SIZE, NUM_COLUMNS, replace=False).tolist()
    golden = {"schema": 1, "model": name,
              "made_with": {"script": "tests/golden/make_tiny_models.py", "seed": seed, **lib.made_with()},
              "vocab_size": lib.VOCAB_SIZE, "tolerance": 2e-4, "columns": columns,
              "prompts": [lib.prompt_record(model, ids, columns, len(ids) in FULL_LOGITS) for ids in prompts]}
    save(ROOT / name, name, spec, state, golden)

    # The files as transformers itself reads them, in float32: the same function, and the room that the tolerance leaves.
    again = AutoModelForCausalLM.from_pretrained(ROOT / name, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        error = np.abs(again(input_ids=torch.tensor([prompts[-1]])).logits[0].numpy() - reference).max()
    if error > golden["tolerance"] / 2:
        raise SystemExit(f"{name}: float32 is {error} away from float64")
    size = sum(f.stat().st_size for f in (ROOT / name).iterdir())
    print(f"{name}: seed {seed}, logit std {reference.std():.2f}, least margin {min(paths):.4f}, float32 error {error:.1e}, "
          f"{size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bar()
    for wanted in sys.argv[1:] or MODELS:
        make(wanted, MODELS[wanted])
