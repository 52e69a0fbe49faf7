"""Writes tests/data/tokenizer/*: what the reference tokenizers make of real vocabularies.

Needs tokenizers, tiktoken, sentencepiece, gguf, jinja2 and the fetched files (scripts/fetch_model, scripts/fetch_vocabularies):
    python tests/golden/make_tokenizer_goldens.py [name ...]

<name>.json holds the ids of every text in tokenizer_strings.TABLE, and CRC-32 values of the ids of random texts and of all
code points: a block's ids as little-endian int32, each text's ids followed by -1.
"""
import base64
import json
import pathlib
import struct
import sys
import zlib

import gguf
import sentencepiece
import tiktoken
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from tokenizer_strings import TABLE, Random, code_point_text, code_points, random_text  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "tests/data/tokenizer"
VOCAB = ROOT / ".data/vocab"
SMOLLM2 = ROOT / ".data/models/SmolLM2-135M-Instruct.Q4_1.gguf"

NUM_RANDOM = 100000
RANDOM_BLOCK = 2000
CODE_POINT_BLOCK = 16384

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def gguf_vocab(path):
    fields = gguf.GGUFReader(path).fields
    return {key.split(".")[-1]: fields[key].contents() for key in fields if key.startswith("tokenizer.ggml")}


def add_tokens(tokenizer, vocab):
    types = vocab["token_type"]
    special = [AddedToken(t, special=True, normalized=False) for t, k in zip(vocab["tokens"], types) if k in (2, 3)]
    plain = [AddedToken(t, special=False, normalized=False) for t, k in zip(vocab["tokens"], types) if k == 4]
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)
    return tokenizer


def byte_level(path, pre_tokenizer, normalizer=None, ignore_merges=False):
    """The published pipeline over the vocabulary and merges of a GGUF file."""
    vocab = gguf_vocab(path)
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocab["tokens"])},
                                     merges=[tuple(m.split(" ")) for m in vocab["merges"]], ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    return add_tokens(tokenizer, vocab)


def llama2(path):
    """Llama 2's tokenizer.json as transformers derives it: merges from scores, legacy blank before every text."""
    vocab = gguf_vocab(path)
    tokens, types, scores = vocab["tokens"], vocab["token_type"], vocab["scores"]
    ids = {t: i for i, t in enumerate(tokens)}
    merges = []
    for i, token in enumerate(tokens):
        if types[i] != 1:
            continue
        pairs = [(token[:k], token[k:]) for k in range(1, len(token))]
        pairs = [(a, b) for a, b in pairs if a in ids and b in ids and types[ids[a]] == 1 and types[ids[b]] == 1]
        merges += [(scores[i], pair) for pair in sorted(pairs, key=lambda p: (ids[p[0]], ids[p[1]]))]
    merges.sort(key=lambda m: -m[0])
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[m[1] for m in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return add_tokens(tokenizer, vocab)


def hugging_face(tokenizer):
    return {
        "encode": lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
        "encode_batch": lambda texts: [e.ids for e in tokenizer.encode_batch_fast(texts, add_special_tokens=False)],
        "decode": lambda ids: tokenizer.decode(ids, skip_special_tokens=True),
        "decode_special": lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        "tokenizer": tokenizer,
    }


def qwen_tiktoken():
    ranks = {}
    for line in open(VOCAB / "qwen/qwen.tiktoken", "rb"):
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    special = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    encoding = tiktoken.Encoding("qwen", pat_str=QWEN2, mergeable_ranks=ranks, special_tokens=special)
    return {"encode": lambda text: encoding.encode(text, allowed_special="all")}


def tekken(name):
    data = json.loads((VOCAB / "mistral_common" / name).read_text())
    num_special = data["config"]["default_num_special_tokens"]
    kept = data["vocab"][: data["config"]["default_vocab_size"] - num_special]
    ranks = {base64.b64decode(t["token_bytes"]): t["rank"] for t in kept}
    encoding = tiktoken.Encoding("tekken", pat_str=data["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    return {"encode": lambda text: [i + num_special for i in encoding.encode(text)]}


def sentencepiece_model(name):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(VOCAB / "mistral_common" / name))
    return {"encode": processor.encode}


LLAMA_CPP = VOCAB / "llama.cpp"
byte_level_step = lambda use_regex=True: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)  # noqa: E731
split = lambda pattern: pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level_step(False)])  # noqa: E731

ORACLES = {
    "smollm2": lambda: hugging_face(byte_level(SMOLLM2, pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level_step()]))),
    "llama3": lambda: hugging_face(byte_level(LLAMA_CPP / "ggml-vocab-llama-bpe.gguf", split(LLAMA3), ignore_merges=True)),
    "qwen2": lambda: hugging_face(byte_level(LLAMA_CPP / "ggml-vocab-qwen2.gguf", split(QWEN2), normalizers.NFC())),
    "llama2": lambda: hugging_face(llama2(LLAMA_CPP / "ggml-vocab-llama-spm.gguf")),
    "qwen_tiktoken": qwen_tiktoken,
    "tekken_240718": lambda: tekken("tekken_240718.json"),
    "tekken_240911": lambda: tekken("tekken_240911.json"),
    "mistral_v1": lambda: sentencepiece_model("tokenizer.model.v1"),
    "mistral_v2": lambda: sentencepiece_model("mistral_instruct_tokenizer_240216.model.v2"),
    "mistral_v3": lambda: sentencepiece_model("mistral_instruct_tokenizer_240323.model.v3"),
    "mistral_v7": lambda: sentencepiece_model("mistral_instruct_tokenizer_241114.model.v7"),
}


def checksum(encode_batch, texts):
    crc = 0
    for ids in encode_batch(list(texts)):
        ids = ids + [-1]
        crc = zlib.crc32(struct.pack(f"<{len(ids)}i", *ids), crc)
    return crc


def make(name):
    oracle = ORACLES[name]()
    encode = oracle["encode"]
    encode_batch = oracle.get("encode_batch", lambda texts: [encode(t) for t in texts])
    cases = []
    for text in TABLE:
        case = {"text": text, "ids": encode(text)}
        if "decode" in oracle:
            case["decoded"] = oracle["decode"](case["ids"])
            with_special = oracle["decode_special"](case["ids"])
            if with_special != case["decoded"]:
                case["decoded_special"] = with_special
            oracle["tokenizer"].encode_special_tokens = True
            as_text = encode(text)
            oracle["tokenizer"].encode_special_tokens = False
            if as_text != case["ids"]:
                case["ids_as_text"] = as_text
        cases.append(case)
    random = Random(12345)
    blocks = []
    for _ in range(NUM_RANDOM // RANDOM_BLOCK):
        blocks.append(checksum(encode_batch, [random_text(random) for _ in range(RANDOM_BLOCK)]))
    points = code_points()
    planes = [checksum(encode_batch, map(code_point_text, points[i : i + CODE_POINT_BLOCK])) for i in range(0, len(points), CODE_POINT_BLOCK)]
    golden = {"cases": cases, "random_block": RANDOM_BLOCK, "random": blocks, "code_point_block": CODE_POINT_BLOCK, "code_points": planes}
    lines = ",\n".join(json.dumps(c, ensure_ascii=True) for c in cases)
    rest = {k: v for k, v in golden.items() if k != "cases"}
    (OUT / f"{name}.json").write_text('{"cases": [\n' + lines + "\n],\n" + json.dumps(rest)[1:] + "\n")
    print(name, len(cases), "texts", flush=True)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    random_data = {"fragments": __import__("tokenizer_strings").FRAGMENTS, "ranges": __import__("tokenizer_strings").RANGES}
    (OUT / "random_texts.json").write_text(json.dumps(random_data, ensure_ascii=True) + "\n")
    for name in sys.argv[1:] or ORACLES:
        make(name)
