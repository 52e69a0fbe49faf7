#!/usr/bin/env python3
"""Makes tests/data/smollm2/golden.json: what SmolLM2-135M-Instruct (Q4_1 GGUF) gives when its weights are dequantised.

    pip install torch transformers tokenizers gguf jinja2 numpy
    python3 tests/golden/make_smollm2_goldens.py .data/models/SmolLM2-135M-Instruct.Q4_1.gguf

Weights: the gguf package. Tokenizer: Hugging Face `tokenizers` with the pipeline that `pre = smollm` stands for, every
digit alone and then GPT-2's split, special tokens parsed (transformers' own conversion of this file leaves the digits
out). Template: jinja2. Logits: transformers in float64. The format is described in tests/data/smollm2/README.md.
"""
import importlib.metadata
import pathlib
import sys
import time

import gguf
import jinja2
import numpy as np
import torch
from gguf import quants
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import tiny_models_lib as lib
from make_tiny_gguf import TENSOR_NAMES, deinterleave

OUT = pathlib.Path(__file__).resolve().parents[1] / "data" / "smollm2" / "golden.json"
STEPS = 48
NUM_TOP = 50
NUM_STEP_TOP = 5
NUM_COLUMNS = 256

LONG = ("The lighthouse stood at the end of the causeway, and every evening at 18:45 the keeper climbed its 212 steps to light the lamp. "
        "He counted them aloud, because his grandfather had counted them, and because the sound kept him company. In winter the wind "
        "took the numbers away before he could hear them; in summer they came back to him from the gallery, a little late. ")

CHATS = [
    ("chat_capital", [("user", "What is the capital of France?")]),
    ("chat_sum", [("user", "What is 17 + 25? Answer with the number only.")]),
    ("chat_poem", [("user", "Write a haiku about autumn rain.")]),
    ("chat_system", [("system", "You are a pirate. Answer in one sentence."), ("user", "How do I boil an egg?")]),
    ("chat_turns", [("user", "My name is Zoë and I live in Kraków."), ("assistant", "Nice to meet you, Zoë!"),
                    ("user", "Where do I live?")]),
    ("chat_code", [("user", "Write a Python function that returns the n-th Fibonacci number.\n\n```python\ndef fib(n):\n```")]),
    ("chat_list", [("user", "List three primary colors.\n1. Red\n2.")]),
    ("chat_long", [("user", "Summarise this text in two sentences.\n\n" + LONG * 6)]),
]
TEXTS = [
    ("one_token", "The"),
    ("story", "Once upon a time, in a small village by the sea, there lived"),
    ("fact", "The chemical symbol for gold is"),
    ("digits", "Pi is 3.14159265358979 and e is 2.71828, so 3.14159 + 2.71828 ="),
    ("digits_after_space", "Items:\n\n2.  first\n\n10.   second\n\t33 third\n"),
    ("python", "import numpy as np\n\n\ndef softmax(x):\n    e = np.exp(x - x.max())\n    return"),
    ("cpp", "#include <vector>\n\ntemplate <class T>\nT sum(const std::vector<T>& v) {\n\tT s{};\n\tfor (const T& x : v)"),
    ("json", '{"name": "Ada", "born": 1815, "fields": ["mathematics", "computing"], "notes":'),
    ("german", "Die Würde des Menschen ist unantastbar. Sie zu achten und zu schützen ist"),
    ("russian", "Москва — столица России. Санкт-Петербург —"),
    ("chinese_japanese", "你好，世界！こんにちは世界。안녕하세요"),
    ("emoji", "I ❤️ pizza 🍕 and 👩‍👩‍👧‍👦 families 🇫🇷. My favourite emoji is"),
    ("whitespace", "   leading spaces,\ttabs\t\tand   \n\n\n   newlines \r\n  trailing   "),
    ("contractions", "I'll say they've said it's what she'd want, don't you? WE'LL SEE, isn’t it"),
    ("special_parsed", "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"),
    ("repeated", "buffalo " * 40),
    ("long", LONG * 3 + "One night the lamp"),
]


def make_tokenizer(meta):
    tokens = meta("tokenizer.ggml.tokens")
    merges = [tuple(m.split(" ")) for m in meta("tokenizer.ggml.merges")]
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                 pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tok.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, meta("tokenizer.ggml.token_type")) if kind == gguf.TokenType.CONTROL]
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    assert tok.get_vocab_size() == len(tokens)
    return tok


def make_model(reader, meta):
    config = LlamaConfig(
        vocab_size=len(meta("tokenizer.ggml.tokens")), hidden_size=meta("llama.embedding_length"),
        intermediate_size=meta("llama.feed_forward_length"), num_hidden_layers=meta("llama.block_count"),
        num_attention_heads=meta("llama.attention.head_count"), num_key_value_heads=meta("llama.attention.head_count_kv"),
        max_position_embeddings=meta("llama.context_length"), rms_norm_eps=float(meta("llama.attention.layer_norm_rms_epsilon")),
        rope_parameters={"rope_type": "default", "rope_theta": float(meta("llama.rope.freq_base"))}, tie_word_embeddings=True)
    theirs = {v: k for k, v in TENSOR_NAMES.items()}
    state = {}
    for tensor in reader.tensors:
        data = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        stem, kind = tensor.name.rsplit(".", 1)
        if stem.endswith("attn_q") or stem.endswith("attn_k"):
            data = deinterleave(data, config.num_attention_heads if stem.endswith("q") else config.num_key_value_heads)
        if stem.startswith("blk."):
            _, layer, name = stem.split(".")
            name = f"model.layers.{layer}.{theirs[name]}"
        else:
            name = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[stem]
        state[f"{name}.{kind}"] = torch.from_numpy(np.ascontiguousarray(data))
    return lib.load_float64(LlamaForCausalLM, config, state)


def next_logits(model, ids, cache):
    with torch.no_grad(), lib.float64_everywhere():
        out = model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return out.logits[0, -1].numpy()


def best(row, count):
    top = np.argsort(-row)[:count]
    return top.tolist(), lib.rounded(row[top], 5)


def record(model, ids, columns):
    cache = DynamicCache(config=model.config)
    row = next_logits(model, ids, cache)
    top_ids, top_logits = best(row, NUM_TOP)
    peak = row.max()
    result = {"prompt_ids": ids, "top_ids": top_ids, "top_logits": top_logits, "column_logits": lib.rounded(row[columns], 5),
              "logsumexp": round(float(peak + np.log(np.exp(row - peak).sum())), 5)}
    steps = {"greedy_ids": [], "greedy_margins": [], "step_top_ids": [], "step_top_logits": []}
    for _ in range(STEPS):
        step_ids, step_logits = best(row, NUM_STEP_TOP)
        steps["greedy_ids"].append(step_ids[0])
        steps["greedy_margins"].append(round(float(np.diff(np.sort(row)[-2:])[0]), 5))
        steps["step_top_ids"].append(step_ids)
        steps["step_top_logits"].append(step_logits)
        row = next_logits(model, step_ids[:1], cache)
    return {**result, **steps}


def main(path):
    reader = gguf.GGUFReader(path)
    meta = lambda key: reader.fields[key].contents()  # noqa: E731
    tok = make_tokenizer(meta)
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(meta("tokenizer.chat_template"))
    model = make_model(reader, meta)
    columns = sorted(np.random.Generator(np.random.PCG64(2)).choice(model.config.vocab_size, NUM_COLUMNS, replace=False).tolist())
    cases = [{"name": n, "kind": "chat", "messages": [{"role": r, "content": c} for r, c in m]} for n, m in CHATS]
    for case in cases:
        case["text"] = template.render(messages=case["messages"], add_generation_prompt=True)
    cases += [{"name": n, "kind": "raw", "text": t} for n, t in TEXTS]
    prompts = []
    for case in cases:
        start = time.monotonic()
        ids = tok.encode(case["text"], add_special_tokens=False).ids
        made = {**case, **record(model, ids, columns)}
        made["greedy_text"] = tok.decode(made["greedy_ids"], skip_special_tokens=True)
        prompts.append(made)
        margin = min(made["greedy_margins"])
        print(f"{case['name']}: {len(ids)} ids, least margin {margin:.4f}, {time.monotonic() - start:.1f} s: "
              f"{made['greedy_text'][:60]!r}", flush=True)
    # One path again without a cache, all steps at once.
    check = prompts[0]
    again = lib.logits_of(model, check["prompt_ids"] + check["greedy_ids"][:-1])[-STEPS:]
    expected = np.take_along_axis(again, np.array(check["step_top_ids"]), axis=1)
    assert np.abs(expected - np.array(check["step_top_logits"])).max() < 2e-5
    OUT.parent.mkdir(parents=True, exist_ok=True)
    lib.write_golden(OUT, {"schema": 1, "model": "SmolLM2-135M-Instruct.Q4_1.gguf",
                           "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                           "made_with": {"script": "tests/golden/make_smollm2_goldens.py",
                                         "gguf": importlib.metadata.version("gguf"), **lib.made_with()},
                           "vocab_size": model.config.vocab_size, "tolerance": 5e-2, "clear_margin": 0.2, "columns": columns,
                           "prompts": prompts})
    print(f"{OUT.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    torch.set_num_threads(2)
    main(sys.argv[1])
