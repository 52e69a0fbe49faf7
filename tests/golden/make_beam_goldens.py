#!/usr/bin/env python3
"""Makes tests/data/tiny_models/beams.json: what beam search of Hugging Face transformers finds on the tiny models.

    pip install torch transformers safetensors tokenizers numpy
    python3 tests/golden/make_beam_goldens.py

Each case is searched in float64 and in float32 and kept only if both find the same, so that no near tie decides it. Stop tokens
are chosen among those that the search itself meets, so that hypotheses end at different lengths.
"""
import collections
import json
import pathlib

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

import tiny_models_lib as lib

ROOT = pathlib.Path(__file__).resolve().parent.parent / "data" / "tiny_models"
EARLY = {"no": False, "yes": True, "never": "never"}
# width, length penalty, early stopping, most tokens, how many of the tokens met are stop tokens
SETTINGS = [(2, 1.0, "no", 8, 0), (4, 1.0, "no", 14, 2), (4, 0.0, "yes", 14, 3), (3, 2.0, "never", 16, 2), (5, -1.0, "no", 14, 2)]


def search(model, ids, case):
    stop = case["stop_ids"]
    with torch.no_grad():
        out = model.generate(
            input_ids=torch.tensor([ids]), num_beams=case["width"], num_return_sequences=case["width"], do_sample=False,
            max_new_tokens=case["max_tokens"], length_penalty=case["length_penalty"], early_stopping=EARLY[case["early_stopping"]],
            eos_token_id=stop or None, pad_token_id=lib.PAD, repetition_penalty=1.0, return_dict_in_generate=True, output_scores=True)
    lengths = (out.beam_indices >= 0).sum(dim=1).tolist()
    return [row[len(ids):len(ids) + n].tolist() for row, n in zip(out.sequences, lengths)], out.sequences_scores.tolist()


def cases_of(folder, prompts):
    state = {}
    for file in sorted(folder.glob("*.safetensors")):
        state.update(load_file(str(file)))
    exact = lib.load_float64(AutoModelForCausalLM.from_config, AutoConfig.from_pretrained(folder), state)
    single = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for model in (exact, single):
        model.generation_config.eos_token_id = None
    for i, (width, penalty, early, max_tokens, num_stop) in enumerate(SETTINGS):
        prompt = i % len(prompts)
        ids = prompts[prompt]["ids"]
        case = {"model": folder.name, "prompt": prompt, "width": width, "length_penalty": penalty, "early_stopping": early,
                "max_tokens": max_tokens, "stop_ids": []}
        if num_stop:
            met = collections.Counter(t for tokens in search(single, ids, case)[0] for t in tokens[2:])
            case["stop_ids"] = sorted(t for t, _ in met.most_common(num_stop))
        with lib.float64_everywhere():
            tokens, scores = search(exact, ids, case)
        again, rough = search(single, ids, case)
        if tokens != again or len(set(map(tuple, tokens))) != width or np.abs(np.subtract(scores, rough)).max() > 1e-3:
            print(f"{folder.name}: case {i} is left out: float32 decides otherwise")
            continue
        if min(np.abs(np.diff(scores))) < 1e-4:
            print(f"{folder.name}: case {i} is left out: two scores are nearly equal")
            continue
        yield {**case, "tokens": tokens, "scores": lib.rounded(scores)}


def main():
    cases = []
    for folder in sorted(p.parent for p in ROOT.glob("*/config.json")):
        prompts = json.loads((folder / "golden.json").read_text())["prompts"]
        cases += cases_of(folder, prompts)
    head = {"schema": 1, "made_with": {"script": "tests/golden/make_beam_goldens.py", **lib.made_with()}}
    lines = [json.dumps(head, separators=(",", ":"))[:-1] + ',"cases":[']
    lines.append(",\n".join(json.dumps(case, separators=(",", ":")) for case in cases))
    (ROOT / "beams.json").write_text("\n".join(lines) + "\n]}\n", encoding="utf-8")
    short = sum(len(t) < c["max_tokens"] for c in cases for t in c["tokens"])
    print(f"{len(cases)} cases, {sum(c['width'] for c in cases)} hypotheses, {short} of them ended by a stop token")


if __name__ == "__main__":
    torch.set_num_threads(1)
    disable_progress_bar()
    main()
