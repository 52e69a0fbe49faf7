"""What the golden-file scripts share: exact float64 evaluation of a transformers model, the golden records, the tiny tokenizer.

Transformers computes RMSNorm, softmax and RoPE angles in float32 whatever the model's type is. `float64_everywhere` turns those
casts into float64 ones, so that a reference is good to about 1e-12 and what a test measures is the error of the code under test.
"""
import json

import numpy as np
import tokenizers
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch.overrides import TorchFunctionMode

NUM_TOP = 8          # logits of the best ids, kept for every position
NUM_GREEDY = 32      # tokens of each greedy continuation
VOCAB_SIZE = 288     # 256 bytes, 24 merges, 8 special tokens
NUM_ORDINARY = 280   # ids below are text
BOS, EOS, PAD = 280, 281, 282
SPECIAL_TOKENS = ["<|begin|>", "<|end|>", "<|pad|>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<|tool|>", "<|unused|>"]
MERGES = ["t h", "i n", "e r", "a n", "Ġ t", "Ġ a", "h e", "o n", "r e", "Ġt he", "e n", "o r", "Ġ s", "in g", "e s", "a t",
          "i t", "Ġ i", "an d", "Ġ w", "i s", "Ġ o", "o u", "l l"]
CHATML = ("{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
          "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


class float64_everywhere(TorchFunctionMode):  # noqa: N801 (used like a context manager)
    """Inside this mode every request for float32 gives float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        widen = lambda v: torch.float64 if v is torch.float32 else v  # noqa: E731
        return func(*[widen(a) for a in args], **{k: widen(v) for k, v in (kwargs or {}).items()})


def load_float64(model_class, config, state):
    """A transformers model with the tensors of `state` (name -> torch tensor), all of it in float64."""
    config._attn_implementation = "eager"
    default = torch.get_default_dtype()
    with float64_everywhere():
        torch.set_default_dtype(torch.float64)
        try:
            model = model_class(config)
        finally:
            torch.set_default_dtype(default)
        model.tie_weights()
        result = model.load_state_dict({k: v.double() for k, v in state.items()}, strict=False)
        tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
        if set(result.missing_keys) - tied or result.unexpected_keys:
            raise SystemExit(f"weights do not fit: {result}")
        model.tie_weights()
        model = model.double().eval()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and tensor.dtype != torch.float64:
            raise SystemExit(f"{name} is {tensor.dtype}")
    return model


def logits_of(model, ids):
    """float64 logits [len(ids), vocab_size] without a cache."""
    with torch.no_grad(), float64_everywhere():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()


def greedy(model, ids, steps=NUM_GREEDY):
    """(continuation, margins): each next id is the arg max of a full forward pass; margin = best logit - second best."""
    tokens, margins = list(ids), []
    for _ in range(steps):
        row = logits_of(model, tokens)[-1]
        first, second = np.argsort(-row)[:2]
        margins.append(float(row[first] - row[second]))
        tokens.append(int(first))
    return tokens[len(ids):], margins


def rounded(array, digits=6):
    return np.round(np.asarray(array, dtype=np.float64), digits).tolist()


def prompt_record(model, ids, columns, full):
    logits = logits_of(model, ids)
    top = np.argsort(-logits, axis=1)[:, :NUM_TOP]
    continuation, margins = greedy(model, ids)
    peak = logits.max(axis=1, keepdims=True)
    record = {
        "ids": list(ids),
        "greedy_ids": continuation,
        "greedy_margins": rounded(margins),
        "top_ids": top.tolist(),
        "top_logits": rounded(np.take_along_axis(logits, top, axis=1)),
        "column_logits": rounded(logits[:, columns]),
        "logsumexp": rounded(peak[:, 0] + np.log(np.exp(logits - peak).sum(axis=1))),
    }
    if full:
        record["logits"] = rounded(logits)
    return record


def made_with():
    import transformers
    return {"transformers": transformers.__version__, "torch": torch.__version__.split("+")[0], "numpy": np.__version__,
            "tokenizers": tokenizers.__version__}


def write_golden(path, golden):
    """JSON with one field of a prompt a line, so that a change can be read in a diff."""
    head = {k: v for k, v in golden.items() if k != "prompts"}
    lines = [json.dumps(head, separators=(",", ":"))[:-1] + ',"prompts":[']
    for i, prompt in enumerate(golden["prompts"]):
        fields = [f'"{k}":{json.dumps(v, separators=(",", ":"))}' for k, v in prompt.items()]
        lines.append("{" + ",\n ".join(fields) + ("}," if i + 1 < len(golden["prompts"]) else "}"))
    path.write_text("\n".join(lines) + "\n]}\n", encoding="utf-8")
    json.loads(path.read_text(encoding="utf-8"))


def tiny_vocab():
    """Tokens by id: the 256 bytes in GPT-2's printable spelling and byte order, then the merges, then the special tokens."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelling, extra = {}, 0
    for byte in range(256):
        if byte in printable:
            spelling[byte] = chr(byte)
        else:
            spelling[byte] = chr(256 + extra)
            extra += 1
    tokens = [spelling[b] for b in range(256)] + [m.replace(" ", "") for m in MERGES] + SPECIAL_TOKENS
    assert len(tokens) == VOCAB_SIZE == len(set(tokens)) and NUM_ORDINARY == 256 + len(MERGES)
    return tokens


def tiny_tokenizer():
    """A byte-level BPE of VOCAB_SIZE tokens with GPT-2's pre-tokenizer: enough to drive a program end to end."""
    tokens = tiny_vocab()
    tok = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens[:NUM_ORDINARY])},
                               merges=[tuple(m.split(" ")) for m in MERGES]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    assert tok.token_to_id("<|end|>") == EOS and tok.get_vocab_size() == VOCAB_SIZE
    return tok
