"""The texts that the tokenizer goldens are made of: a table, and a generator of random texts that
tests/host/io/tokenizer_golden_test.cpp repeats step by step (same numbers, same order)."""

MASK = (1 << 64) - 1

TABLE = [
    "", " ", "  ", "   ", "a", "é", "\n", "\n\n", "\n\n\n\t", "\t", "\t\n", " \n", "\n ", "\r\n", "\r\n\r\n", "\r", "\u000b\u000c",
    "Hello", " Hello", "  Hello", "   Hello", "Hello ", "Hello  ", "Hello   \n", "Hello world", "Hello, world!", "Hello World!!!",
    "The quick brown fox jumps over the lazy dog.", "HELLO WORLD", "hElLo", "camelCaseIdentifier", "snake_case_name", "SCREAMING_SNAKE",
    "I'm you're he's it'd we'll they've don't", "I'M YOU'RE HE'S IT'D WE'LL THEY'VE DON'T", "'s't're've'm'll'd", "' s", "''", "it\u2019s", "'\u017f 'S 'ſ", "x'K",
    "0", "1", "12", "123", "1234", "12345", "1234567890", "3.14159", "1,000,000", "2.", "\n\n2.", "  3", "   42", "a1b2c3", "v1.2.3-rc4", "0x1F", "1e-9",
    "½ ² ³ ¹ ¼", "Ⅷ ⅷ", "①②③", "٠١٢٣", "०१२३", "１２３", "一二三", "𝟘𝟙𝟚", "10𝟚a",
    "def f(x):\n    return x + 1\n", "for (int i = 0; i < n; ++i) {\n\t\ta[i] = i * i;\n}\n", "#include <vector>\n", "<div class=\"a\">&nbsp;</div>",
    "{\"key\": [1, 2.5, null, true]}", "SELECT * FROM t WHERE a='b';", "a = b == c != d <= e", "x->y::z<T>&&", "/* comment */ // more", "`code` **bold** _it_",
    "https://example.com/a?b=c&d=%20#frag", "user@example.com", "C:\\path\\to\\file.txt", "/usr/local/bin", "!!!", "...", "……", "?!", "----", "====", "____", "~~~~",
    "\"quoted\" 'single' “double” ‘typographic’", "(parens) [brackets] {braces}", "$100 €50 £20 ¥10 ₿1", "50% ±3 ×4 ÷2 ≤5 ≠6 ∞",
    "ich heiße Jürgen und wohne in Köln", "c'est déjà l'été à Paris, garçon", "El niño comió piña", "São João não é pão", "Zażółć gęślą jaźń", "Příliš žluťoučký kůň",
    "Съешь же ещё этих мягких французских булок", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία", "Պարզ հայերեն", "ქართული ენა", "עברית שלום", "العربية مرحبا بالعالم",
    "فارسی: سلام‌دنیا", "हिन्दी नमस्ते दुनिया", "বাংলা ভাষা", "தமிழ் மொழி", "తెలుగు భాష", "ಕನ್ನಡ", "മലയാളം", "සිංහල", "ไทยสวัสดีชาวโลก", "ພາສາລາວ", "မြန်မာဘာသာ", "ភាសាខ្មែរ",
    "བོད་སྐད་", "አማርኛ ሰላም", "ᏣᎳᎩ", "ᠮᠣᠩᠭᠣᠯ", "日本語のテキスト、カタカナ。", "ひらがな", "中文文本，测试。", "繁體中文測試", "한국어 텍스트", "한국어", "𠀀𠀁", "我想在apple工作1314151天～",
    "Tiếng Việt có dấu", "Türkçe İıĞğ", "ǅ ǈ ǋ ǲ", "ﬀ ﬁ ﬂ ﬃ", "ÅÅÅ", "Å", "é é", "résumé résumé", "ñ", "ộ ộ ộ", "Ω Ω", "각 각", "가가", "q̣̇ q̣̇", "a\u0300\u0301\u0302\u0303\u0304", "\u0301", " \u0301a", "\u0344", "\u0958 \u2adc \ufb1d",
    "😀", "😀😃😄", " 😀 ", "👍🏽", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪🇫🇷", "❤️", "☺", "1️⃣", "😶‍🌫️ (multiple emojis concatenated) ✅", "🫠🫨🪿",
    "\u00a0", "a\u00a0b", "\u2003em\u2003space", "\u3000全角", "\u180e\u180ea", "a\u180eb", "\u200b", "a\u200bb", "\u200d", "\ufeff", "\ufeffBOM", "\u2028\u2029", "\u0085", "\u1680x", "\u202fx", "soft\u00adhyphen",
    "\x00", "a\x00b", "\x01\x02\x03", "\x04\x06\x13\x14\x16\x1d", "x\x04y", "\x1b[31mred\x1b[0m", "\x7f", "\u0080\u009f", "\ufffd", "\ufffe\uffff", "\U0010ffff", "\U000e0001\U000e0061",
    "\u1c89\u1c8a", "\ua7cb\ua7dc", "\U000105c0", "\U00010d40\U00010d41", "\U00010d4e", "\U0001ccf0", "\U0001e4f0\U0001e4d0", "\U0002ebf0", "\U00031350\U000323af", "\u0897a", "\U0001cc00",
    "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n", "a<|im_end|>b", "<|im_start|><|im_start|>", " <|im_start|> ", "<|im_start", "<|im_start|", "|im_start|>", "<<|im_start|>>", "<|im_start|>system\nYou are<|im_end|>\n<|im_start|>assistant\n",
    "<s>", "</s>", "<unk>", "<s>Hello</s>", "[INST] Hi [/INST]", "<0x0A>", "<0xE2>", "▁", "▁▁a", "a▁b", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>user<|end_header_id|>", "<repo_name>x", "<file_sep>", "<filename>y<gh_stars>", "<jupyter_start>",
    "a" * 100, " " * 100, "\n" * 40, "_" * 70, "1" * 50, "ab" * 50, "=" * 81, "中" * 40, "é" * 30, "😀" * 12, "\t" * 17, " \n" * 9, "a " * 30, "aA" * 20, "...\n\n...", "Aa" * 8 + "1" * 8 + "!" * 8,
    "            indented\n        less\n    done", "trailing   ", "mixed \t \n \r\n end", "word\n\n  next", "a\n\n\nb", "x  \n  y", "(  )", " .", " ,", " '", "  .", "a  .", "\n.", "\n'", "1 2  3   4",
    "Ünïcödé ÀÉÎÕÜ", "ǅungla", "ẞß", "ſ", "İstanbul", "ıIiİ", "Straße", "ΑΣ ας", "ʰʱʲ", "ⓐⓑⓒ", "ª º", "µ", "℃ ℉", "ﷺ", "㍿", "Ⅻ", "𝒜𝓑𝔠", "𐐀𐐨", "𓀀𓁀", "🀄🃏",
]

FRAGMENTS = [
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", " \n", "'s", "'t", "'re", "'VE", "'ll", "'", "\"", "the", " the", "The", " and", "ing", "tion", "un", " of", "er", "Hello", "world",
    "0", "1", "42", "2024", "1000000", ".", ",", "!", "?", "...", "-", "--", "_", "/", "//", "\\", "(", ")", "[", "]", "{", "}", "<", ">", "=", "==", "+", "*", "&", "|", "#", "@", "$", "%", "^", "~", "`", ":", ";",
    "\u0301", "\u0323", "\u0308", "\u00e9", "\u00c5", "\u212b", "\u1e69", "\uac01", "\u1100\u1161", "\u11a8", "\u0915\u094d\u0937", "\u0e01\u0e33", "\u200d", "\ufe0f", "\u00a0", "\u2009", "\u3000", "\u180e", "\u200b", "\u0085",
    "\U0001f600", "\U0001f468\u200d\U0001f469", "\U0001f3fd", "\u4e2d", "\u6587", "\u3042", "\u30a2", "\u0434\u0430", "\u0627\u0644", "\u05d0", "\u03b1", "\u017f", "\u0130", "\u01c5", "\u00bd", "\u2167", "\u0664", "\uff11", "\ufffd", "\x00", "\x04", "\x1d",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "\u2581", "<0x0A>",
]

# First and last code points of what single characters are drawn from.
RANGES = [
    (0x20, 0x7E), (0x00, 0x1F), (0xA0, 0xFF), (0x100, 0x24F), (0x250, 0x36F), (0x370, 0x52F), (0x530, 0x6FF), (0x700, 0x9FF), (0xA00, 0xDFF), (0xE00, 0x11FF),
    (0x1200, 0x1AFF), (0x1B00, 0x1FFF), (0x2000, 0x20FF), (0x2100, 0x2BFF), (0x2C00, 0x2FFF), (0x3000, 0x33FF), (0x3400, 0x9FFF), (0xA000, 0xABFF), (0xAC00, 0xD7FF), (0xE000, 0xFFFF),
    (0x10000, 0x10FFF), (0x11000, 0x12FFF), (0x13000, 0x18FFF), (0x1B000, 0x1D1FF), (0x1D200, 0x1EFFF), (0x1F000, 0x1FBFF), (0x20000, 0x323FF), (0xE0000, 0xE01FF), (0x40000, 0x10FFFF),
]


class Random:
    """xorshift64* (Vigna 2016)."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        x = self.state
        x ^= x >> 12
        x = (x ^ (x << 25)) & MASK
        x ^= x >> 27
        self.state = x
        return (((x * 0x2545F4914F6CDD1D) & MASK) >> 33) % n


def random_text(random):
    parts = []
    for _ in range(random.below(20)):
        kind = random.below(8)
        if kind < 3:
            parts.append(FRAGMENTS[random.below(len(FRAGMENTS))])
        elif kind < 5:
            parts.append(chr(0x20 + random.below(0x5F)))
        elif kind < 6:
            low, high = RANGES[random.below(len(RANGES))]
            parts.append(chr(low + random.below(high - low + 1)))
        elif kind < 7:
            low, high = RANGES[random.below(len(RANGES))]
            c = chr(low + random.below(high - low + 1))
            parts.append(c * (1 + random.below(4)))
        else:
            parts.append(" " * (1 + random.below(5)))
    return "".join(parts)


def code_point_text(c):
    """Every code point in the neighbourhoods that pre-tokenizers tell apart."""
    s = chr(c)
    return s + " " + s + "a" + s + s + "1" + s + ".\u0301" + s + "\n" + s


def code_points():
    """All that Unicode 16 assigns, but for private use: blocks up to the last Han extension, and the tags."""
    return [c for c in range(0x323B0) if not 0xD800 <= c <= 0xF8FF] + list(range(0xE0000, 0xE01F0))
