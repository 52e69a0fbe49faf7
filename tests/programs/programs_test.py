#!/usr/bin/env python3
"""Drives one built program of nvl: output, exit status, and one line on standard error when something is wrong.

    programs_test.py --program build/cpu/bin/nvl-generate --data tests/data --fetched .data generate
"""
import argparse
import json
import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

ARGS = None


def run(*words, stdin=b"", env=None):
    """Exit status, standard output and standard error of the program under test."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NVL_") and k != "OMP_NUM_THREADS"}
    done = subprocess.run([ARGS.program, *map(str, words)], input=stdin if isinstance(stdin, bytes) else stdin.encode(),
                          capture_output=True, env={**clean, **(env or {})}, timeout=120)
    return done.returncode, done.stdout.decode("utf-8", "surrogateescape"), done.stderr.decode("utf-8", "surrogateescape")


def spelled(ids):
    return " ".join(map(str, ids))


class ProgramTest(unittest.TestCase):
    maxDiff = None

    @property
    def tiny(self):
        return ARGS.data / "tiny_models"

    @property
    def smollm2(self):
        path = ARGS.fetched / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
        if not path.exists():
            self.skipTest("the SmolLM2 file is not there (scripts/fetch_model)")
        return path

    def ok(self, *words, stdin=b"", env=None):
        status, out, err = run(*words, stdin=stdin, env=env)
        self.assertEqual((status, err), (0, ""), words)
        return out

    def fails(self, *words, says=(), stdin=b"", env=None):
        status, out, err = run(*words, stdin=stdin, env=env)
        self.assertEqual(status, 1, (words, out, err))
        self.assertEqual(err.count("\n"), 1, err)
        self.assertTrue(err.startswith(f"{pathlib.Path(ARGS.program).name}: error: "), err)
        for part in [says] if isinstance(says, str) else says:
            self.assertIn(part, err)
        return err

    def check_common(self, needs_input=()):
        """What every program does alike."""
        out = self.ok("--help")
        self.assertIn("--model PATH", out)
        self.assertLessEqual(max(map(len, out.splitlines())), 110)
        self.assertRegex(self.ok("--version"), r"^nvl-\w+ \d+\.\d+\.\d+\n$")
        self.fails(*needs_input, says="--model")
        self.fails("--model", says="needs a value")
        self.fails("--modle", "x", says="did you mean --model?")
        self.fails("-m", "no/such/file.gguf", *needs_input, says=["no/such/file.gguf", "No such file"])
        self.check_broken_models(*needs_input)

    def check_broken_models(self, *words):
        whole = (self.tiny / "gguf" / "qwen3.gguf").read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "broken.gguf"
            for content in [b"", b"GGUF", b"GGUF" + b"\xff" * 60, whole[:40], whole[: len(whole) // 3],
                            b"GGUF\x07\0\0\0" + whole[8:]]:
                path.write_bytes(content)
                self.fails(*words, "-m", path, says="broken.gguf")
            self.fails(*words, "-m", folder, says=folder)


class Generate(ProgramTest):
    def golden(self, model):
        return json.loads((self.tiny / model / "golden.json").read_text())["prompts"]

    def json_lines(self, *words, **more):
        return [json.loads(line) for line in self.ok(*words, "--json", **more).splitlines()]

    def test_common(self):
        self.check_common(("-p", "x"))

    def test_greedy_ids_are_those_of_the_reference(self):
        for model in ["qwen3", "llama_mha", "mistral"]:
            for prompt in self.golden(model):
                unsure = [i for i, margin in enumerate(prompt["greedy_margins"]) if margin < 1e-3]
                steps = unsure[0] if unsure else len(prompt["greedy_ids"])
                if steps == 0:
                    continue
                [done] = self.json_lines("-m", self.tiny / model, "--dtype", "float32", "--prompt-ids", spelled(prompt["ids"]),
                                         "-n", steps, "--temp", 0, "--ignore-eos")
                self.assertEqual(done["prompt_ids"], prompt["ids"])
                self.assertEqual(done["output_ids"], prompt["greedy_ids"][:steps])

    def test_json_object_of_a_prompt(self):
        [done] = self.json_lines("-m", self.tiny / "qwen3", "-p", "hello", "-n", 5, "--seed", 7, "--logprobs", 2,
                                 "--ignore-eos")
        self.assertEqual(list(done), ["prompt_ids", "output_ids", "text", "finish_reason", "timings", "num_cached_tokens",
                                      "seed", "logprobs"])
        self.assertEqual(done["finish_reason"], "length")
        self.assertEqual((len(done["output_ids"]), done["seed"], done["num_cached_tokens"]), (5, 7, 0))
        self.assertEqual(set(done["timings"]), {"queue_ms", "ttft_ms", "tpot_ms", "e2e_ms"})
        self.assertGreaterEqual(done["timings"]["e2e_ms"], done["timings"]["ttft_ms"])
        self.assertEqual([entry["id"] for entry in done["logprobs"]], done["output_ids"])
        for entry in done["logprobs"]:
            self.assertEqual(len(entry["top"]), 2)
            self.assertLessEqual(entry["logprob"], entry["top"][0][1] + 1e-6)

    def test_a_seed_makes_sampling_repeatable(self):
        def ids(seed):
            [done] = self.json_lines("-m", self.tiny / "qwen3", "-p", "hello", "-n", 24, "--temp", 1.5, "--seed", seed)
            return done["output_ids"]
        self.assertEqual(ids(1), ids(1))
        self.assertNotEqual(ids(1), ids(2))

    def test_replicas_give_what_one_engine_gives(self):
        lines = "\n".join(json.dumps({"prompt_ids": list(range(3 + i, 40 + 5 * i))}) for i in range(8))
        options = ("-m", self.tiny / "qwen3", "-n", 12, "--temp", 0, "--ignore-eos", "--prompts-file", "-")
        one = self.json_lines(*options, stdin=lines)
        for more in [("-dp", 2), ("-dp", 4, "--router", "round-robin"), ("--data-parallel-size", 3, "--router", "prefix-affinity")]:
            many = self.json_lines(*options, *more, stdin=lines)
            self.assertEqual([done["output_ids"] for done in many], [done["output_ids"] for done in one])
        self.assertEqual(self.ok("-m", self.tiny / "qwen3", "-p", "hello", "-n", 6, "--temp", 0, "-dp", 2),
                         self.ok("-m", self.tiny / "qwen3", "-p", "hello", "-n", 6, "--temp", 0))
        prompt = ("-m", self.tiny / "qwen3", "-p", "hello")
        self.fails(*prompt, "-dp", 0, says="--data-parallel-size is 0")
        self.fails(*prompt, "-dp", 2, "--router", "best", says=["--router is \"best\"", "least-tokens"])
        self.fails(*prompt, "--router", "round-robin", says="needs --data-parallel-size above 1")
        self.fails(*prompt, "-dp", 2, "--temp", -1, says="temperature is -1")
        self.fails(*prompt, "-dp", 2, "--num-blocks", -1, says="num_blocks is -1")

    def test_a_model_in_parts_gives_what_the_whole_gives(self):
        lines = "\n".join(json.dumps({"prompt_ids": list(range(3 + i, 40 + 5 * i))}) for i in range(8))
        options = ("-m", self.tiny / "qwen3", "-n", 12, "--temp", 0, "--ignore-eos", "--prompts-file", "-")
        one = self.json_lines(*options, stdin=lines)
        for parts in [("-tp", 2), ("-pp", 2), ("-tp", 2, "--pipeline-parallel-size", 2), ("--tensor-parallel-size", 2, "-dp", 2)]:
            many = self.json_lines(*options, *parts, stdin=lines)
            self.assertEqual([done["output_ids"] for done in many], [done["output_ids"] for done in one])
        prompt = ("-m", self.tiny / "qwen3", "-p", "hello")
        self.fails(*prompt, "-tp", 0, says="--tensor-parallel-size is 0")
        self.fails(*prompt, "-tp", 3, says=["tensor_parallel_size is 3", "query heads"])
        self.fails(*prompt, "-pp", 64, says=["pipeline_parallel_size is 64", "layers"])
        self.fails(*prompt, "-pp", 2, "--scheduler", "prefill-first", says="compiled with --scheduler token-budget")

    def test_several_answers_to_a_prompt(self):
        options = ("-m", self.tiny / "qwen3", "-p", "hello", "-n", 6, "--temp", 1.5, "--seed", 3, "--ignore-eos")
        [one] = self.json_lines(*options)
        [three] = self.json_lines(*options, "--n", 3)
        self.assertEqual(one["output_ids"], three["output_ids"])
        self.assertEqual(len(three["others"]), 2)
        answers = [three, *three["others"]]
        self.assertEqual(len({tuple(answer["output_ids"]) for answer in answers}), 3)
        [best] = self.json_lines(*options, "--best-of", 3)
        self.assertNotIn("others", best)
        self.assertIn(best["output_ids"], [answer["output_ids"] for answer in answers])
        text = self.ok(*options, "--n", 3)
        self.assertEqual(text, "".join(f"[1.{i}]\n{answer['text']}" + ("" if answer["text"].endswith("\n") else "\n")
                                       for i, answer in enumerate(answers, 1)))

    def test_beams_are_those_of_the_reference(self):
        cases = json.loads((self.tiny / "beams.json").read_text())["cases"]
        for case in [c for c in cases if c["model"] == "qwen2"][:3]:
            prompt = self.golden(case["model"])[case["prompt"]]
            stop = [word for token in case["stop_ids"] for word in ("--stop-token-id", token)]
            [done] = self.json_lines("-m", self.tiny / case["model"], "--dtype", "float32", "--prompt-ids", spelled(prompt["ids"]),
                                     "-n", case["max_tokens"], "--ignore-eos", "--beam-width", case["width"], "--n", case["width"],
                                     "--length-penalty", case["length_penalty"], "--early-stopping", case["early_stopping"], *stop)
            self.assertEqual([done["output_ids"], *(other["output_ids"] for other in done["others"])], case["tokens"])
            self.assertLess(done["cumulative_logprob"], 0)

    def test_many_prompts_give_what_each_gives_alone(self):
        ids = [[1, 2, 3], list(range(10, 60)), [5], list(range(40, 200))]
        lines = "\n".join(json.dumps({"prompt_ids": i}) for i in ids) + "\n\n"
        options = ("-m", self.tiny / "qwen3", "-n", 20, "--temp", 0)
        together = self.json_lines(*options, "--prompts-file", "-", stdin=lines)
        self.assertEqual([done["prompt_ids"] for done in together], ids)
        for done, prompt in zip(together, ids):
            [alone] = self.json_lines(*options, "--prompt-ids", json.dumps(prompt))
            self.assertEqual(done["output_ids"], alone["output_ids"])

    def test_lines_of_a_prompts_file_take_four_forms(self):
        lines = ('"hello"\r\n{"prompt": "hello"}\n\n{"messages": [{"role": "user", "content": "hello"}]}\n'
                 '{"prompt_ids": [262, 279, 111]}')
        text, same, chat, ids = self.json_lines("-m", self.tiny / "qwen3", "--prompts-file", "-", "-n", 4, "--temp", 0,
                                                stdin=lines)
        self.assertEqual(text["output_ids"], same["output_ids"])
        self.assertEqual(text["prompt_ids"], ids["prompt_ids"])
        self.assertGreater(len(chat["prompt_ids"]), len(text["prompt_ids"]))
        [alone] = self.json_lines("-m", self.tiny / "qwen3", "--chat", "-p", "hello", "-n", 4, "--temp", 0)
        self.assertEqual(chat["prompt_ids"], alone["prompt_ids"])

    def test_a_prompt_file_is_taken_byte_for_byte(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"hello\n")
            file.flush()
            [from_file] = self.json_lines("-m", self.tiny / "qwen3", "-f", file.name, "-n", 1)
        [from_stdin] = self.json_lines("-m", self.tiny / "qwen3", "-f", "-", "-n", 1, stdin="hello\n")
        [from_word] = self.json_lines("-m", self.tiny / "qwen3", "-p", "hello\n", "-n", 1)
        self.assertEqual(from_file["prompt_ids"], from_word["prompt_ids"])
        self.assertEqual(from_stdin["prompt_ids"], from_word["prompt_ids"])

    def test_options_come_from_the_environment_too(self):
        env = {"NVL_MODEL": str(self.tiny / "qwen3"), "NVL_MAX_TOKENS": "3", "NVL_JSON": "1", "NVL_IGNORE_EOS": "true"}
        self.assertEqual(len(json.loads(self.ok("-p", "hello", env=env))["output_ids"]), 3)
        self.assertEqual(len(json.loads(self.ok("-p", "hello", "-n", 4, env=env))["output_ids"]), 4)
        self.fails("-p", "hello", env={**env, "NVL_MAX_TOKENS": "few"}, says="NVL_MAX_TOKENS is \"few\"")

    def test_bad_values_are_refused_by_name(self):
        model = ("-m", self.tiny / "qwen3", "-p", "hello")
        for words, says in [(("--temp", "-1"), "temperature is -1"), (("--temp", "nan"), "--temperature is \"nan\""),
                            (("--temp", "1e308"), "must be a number"), (("--top-p", "0"), "top_p is 0"),
                            (("--top-p", "2"), "top_p is 2"), (("--min-p", "-1"), "min_p is -1"),
                            (("--repetition-penalty", "0"), "repetition_penalty is 0"), (("-n", "0"), "max_tokens is 0"),
                            (("-n", "-1"), "max_tokens is -1"), (("-n", "9223372036854775808"), "--max-tokens"),
                            (("--stop", ""), "stop string"), (("--threads", "-1"), "num_threads"),
                            (("--dtype", "int3"), "auto, float32, bfloat16 or float16"),
                            (("--dtype", "float16"), "float16 is not compiled in"), (("--device", "cuda"), "CUDA"),
                            (("--device", "tpu"), "cpu or cuda"), (("-c", "2"), "max_model_len"),
                            (("--logprobs", "2"), "--json"), (("--kv-cache-memory-bytes", "1"), "KV cache"),
                            (("--num-blocks", "1", "-n", "200"), "KV blocks"), (("--system", "x"), "--chat"),
                            (("--n", "0"), "n is 0"), (("--best-of", "500"), "best_of is 500"),
                            (("--beam-width", "99"), "beam_width is 99"), (("--early-stopping", "x"), "no, yes or never"),
                            (("--prompt-ids", "1"), "more than one prompt"), (("word",), "word")]:
            with self.subTest(words=words):
                self.fails(*model, *words, says=says)

    def test_bad_prompts_are_refused_with_their_place(self):
        model = ("-m", self.tiny / "qwen3")
        self.fails(*model, says="no prompt")
        self.fails(*model, "-p", "", says="empty")
        self.fails(*model, "-f", "no/such/file", says=["no/such/file", "No such file"])
        self.fails(*model, "-f", self.tiny, says="directory")
        self.fails(*model, "--prompt-ids", "1 two", says="token 2 is \"two\"")
        self.fails(*model, "--prompt-ids", "1 99999", says="prompt_ids[1] is 99999")
        self.fails(*model, "--prompt-ids", spelled([1] * 20000), says="max_model_len")
        self.fails(*model, "--prompts-file", "-", says="no prompt")
        for line in ["{", "7", "{}", '{"prompt": 1}', '{"prompt": "a", "prompt_ids": [1]}', '{"prompt_ids": []}',
                     '{"prompt_ids": [99999]}', '{"prompt_ids": [-1]}', '{"messages": [{"role": "user"}]}', '{"messages": []}',
                     '{"messages": [{"role": "ghost", "content": ""}]}', '"\\ud800"', "[" * 100000]:
            with self.subTest(line=line[:50]):
                self.fails(*model, "--prompts-file", "-", stdin=f'"good"\n\n{line}\n', says="standard input line 3")

    def test_output_that_cannot_be_written_is_an_error(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([ARGS.program, "-m", self.tiny / "qwen3", "-p", "hello", "-n", "2"], stdout=full,
                                  stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertIn(b"standard output cannot be written", done.stderr)

    def test_the_real_model_streams_sensible_text(self):
        out = self.ok("-m", self.smollm2, "--chat", "-p", "What is the capital of France?", "-n", 24, "--temp", 0)
        self.assertIn("Paris", out)
        process = subprocess.Popen([ARGS.program, "-m", self.smollm2, "-p", "1, 2, 3,", "-n", "40", "--temp", "0"],
                                   stdout=subprocess.PIPE)
        pieces = []
        while piece := os.read(process.stdout.fileno(), 4096):
            pieces.append(piece)
        process.stdout.close()
        self.assertEqual(process.wait(), 0)
        self.assertGreater(len(pieces), 3, "text came all at once")
        self.assertIn("4, 5, 6", b"".join(pieces).decode())

    def test_a_stop_string_cuts_the_text_before_it(self):
        options = ("-m", self.smollm2, "-p", "1, 2, 3,", "-n", 40, "--temp", 0)
        [done] = self.json_lines(*options, "--stop", "6")
        self.assertEqual((done["text"], done["finish_reason"], done["stop_reason"]), (" 4, 5, ", "stop", "6"))
        [kept] = self.json_lines(*options, "--stop", "6", "--include-stop-str-in-output")
        self.assertEqual(kept["text"], " 4, 5, 6")
        self.assertEqual(self.ok(*options, "--stop", "6"), " 4, 5, \n")

    def test_a_progress_bar_is_drawn_on_a_terminal_only(self):
        controller, terminal = pty.openpty()
        done = subprocess.run([ARGS.program, "-m", self.tiny / "qwen3", "-p", "hello", "-n", "2"], stdout=subprocess.PIPE,
                              stderr=terminal, timeout=60, env={**os.environ, "TERM": "xterm", "NO_COLOR": "1"})
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(controller, 4096):
                shown += piece
        except OSError:  # how Linux says that the other side is closed
            pass
        os.close(controller)
        self.assertEqual(done.returncode, 0)
        self.assertIn(b"loading", shown)
        self.assertIn(b"tokens/s", shown)
        self.assertNotIn(b"\033[2m", shown, "NO_COLOR was set")


class Chat(ProgramTest):
    def test_common(self):
        self.check_common()

    def test_a_pipe_holds_a_conversation(self):
        status, out, err = run("-m", self.smollm2, "--temp", 0, "-n", 24,
                               stdin="My name is Zoe.\n\nWhat is my name?\n/reset\nHello\n/exit\nignored\n")
        self.assertEqual(status, 0)
        notes = [line for line in err.splitlines() if line.startswith("[TTFT ")]
        self.assertEqual(len(notes), 3, err)
        self.assertIn("Zoe", out)
        self.assertTrue(all("tokens/s" in note for note in notes))
        cached = [int(note.split(" of them cached")[0].split()[-1]) for note in notes]
        self.assertEqual(cached[0], 0)
        self.assertGreater(cached[1], 16, "the second turn finds the first one in the prefix cache")

    def test_commands_are_not_sent_to_the_model(self):
        status, out, err = run("-m", self.tiny / "qwen3", stdin="/help\n/nonsense\n/reset\n/quit\n")
        self.assertEqual((status, out), (0, ""))
        self.assertIn("/reset", err)
        self.assertIn("/nonsense is no command", err)

    def test_a_line_that_ends_with_a_backslash_goes_on(self):
        def prompt_tokens(text):
            _, _, err = run("-m", self.tiny / "qwen3", "-n", 1, stdin=text)
            return [int(line.split(";")[1].split()[0]) for line in err.splitlines()]
        self.assertEqual(len(prompt_tokens("a\\\nb\n")), 1)
        self.assertEqual(len(prompt_tokens("a\nb\n")), 2)

    def test_a_conversation_that_is_too_long_ends_a_pipe_with_an_error(self):
        self.fails("-m", self.tiny / "qwen3", "-c", "4", stdin="hello\n", says="max_model_len")

    def test_control_c_stops_the_answer_and_not_the_program(self):
        process = subprocess.Popen([ARGS.program, "-m", self.smollm2, "--ignore-eos", "-n", "4000", "--temp", "0"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdin.write(b"Tell me a story.\n")
        process.stdin.flush()
        os.read(process.stdout.fileno(), 1)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(b"/exit\n", timeout=60)
        self.assertEqual(process.returncode, 0)
        self.assertIn(b", stopped]", err)


class Tokenize(ProgramTest):
    def test_common(self):
        self.check_common()

    def test_text_goes_to_ids_and_back(self):
        for model in [self.tiny / "qwen3", self.tiny / "gguf" / "llama_mixed.gguf"]:
            for text in ["hello", "hello\n", " a\tb\r\n", "", "naïve 你好 🙂", "a" * 5000]:
                ids = self.ok("-m", model, stdin=text)
                self.assertTrue(ids.endswith("\n") and ids.count("\n") == 1)
                self.assertEqual(self.ok("-m", model, "--decode", stdin=ids), text)

    def test_a_line_is_a_text_with_jsonl(self):
        texts = ["hello", "two\nlines", "", "你好"]
        ids = self.ok("-m", self.tiny / "qwen3", "--jsonl", stdin="".join(json.dumps(text) + "\n" for text in texts))
        self.assertEqual(len(ids.splitlines()), len(texts))
        for line, text in zip(ids.splitlines(), texts):
            self.assertEqual(line + "\n", self.ok("-m", self.tiny / "qwen3", stdin=text))
        back = self.ok("-m", self.tiny / "qwen3", "--jsonl", "--decode", stdin=ids)
        self.assertEqual([json.loads(line) for line in back.splitlines()], texts)

    def test_special_tokens_are_text_with_no_special(self):
        parsed = self.ok("-m", self.smollm2, stdin="<|im_end|>").split()
        self.assertEqual(parsed, ["2"])
        as_text = self.ok("-m", self.smollm2, "--no-special", stdin="<|im_end|>")
        self.assertNotIn("2", as_text.split())
        self.assertEqual(self.ok("-m", self.smollm2, "--decode", stdin=as_text), "<|im_end|>")
        self.assertEqual(self.ok("-m", self.smollm2, "--decode", "--no-special", stdin="28 2 28"), ",,")

    def test_a_megabyte_of_one_character_takes_less_than_a_second(self):
        for text in ["a" * 1000000, " " * 1000000, "你" * 333333]:
            start = time.monotonic()
            out = self.ok("-m", self.smollm2, stdin=text)
            elapsed = time.monotonic() - start
            self.assertGreater(len(out.split()), 1000)
            self.assertLess(elapsed, 3.0, "a second, and room for a busy machine")

    def test_bad_input_is_refused_with_its_place(self):
        model = ("-m", self.tiny / "qwen3")
        self.fails(*model, "--decode", stdin="1 2 x", says="token 3 is \"x\"")
        self.fails(*model, "--decode", stdin="1 99999", says="99999")
        self.fails(*model, "--jsonl", stdin='"a"\n{}\n', says="line 2")
        self.fails(*model, "--jsonl", stdin='"a"\n"b\n', says="line 2")
        self.fails(*model, "--jsonl", "--decode", stdin="1\n-1\n", says="line 2")


class Logits(ProgramTest):
    def test_common(self):
        self.check_common(("-p", "x"))

    def test_logits_are_those_of_the_reference(self):
        for model in ["qwen3", "llama_mha", "mistral"]:
            golden = json.loads((self.tiny / model / "golden.json").read_text())
            for prompt in golden["prompts"]:
                out = self.ok("-m", self.tiny / model, "--dtype", "float32", "--prompt-ids", spelled(prompt["ids"]), "--top", 3)
                lines = [json.loads(line) for line in out.splitlines()]
                self.assertEqual([line["position"] for line in lines], list(range(len(prompt["ids"]))))
                for line, logits in zip(lines, prompt["top_logits"]):
                    for (_, logit), wanted in zip(line["top"], logits):
                        self.assertAlmostEqual(logit, wanted, delta=golden["tolerance"])

    def test_last_is_the_last_line_of_all(self):
        options = ("-m", self.tiny / "qwen3", "-p", "hello world, hello", "--top", 4)
        lines = self.ok(*options).splitlines()
        self.assertGreater(len(lines), 3)
        self.assertEqual(self.ok(*options, "--last").splitlines(), lines[-1:])
        tops = [pair[1] for pair in json.loads(lines[-1])["top"]]
        self.assertEqual(tops, sorted(tops, reverse=True))

    def test_bad_input_is_refused(self):
        model = ("-m", self.tiny / "qwen3")
        self.fails(*model, "-p", "x", "--top", 0, says="--top is 0")
        self.fails(*model, "--prompt-ids", "99999", says="prompt_ids[0] is 99999")
        self.fails(*model, "--prompt-ids", "", says="prompt_ids")
        self.fails(*model, says="no prompt")


class Quickstart(ProgramTest):
    def test_it_answers_two_prompts(self):
        self.assertEqual(self.ok(self.tiny / "qwen3").count("---\n"), 2)

    def test_a_missing_model_is_one_line_and_status_1(self):
        self.fails("no/such/file.gguf", says="no/such/file.gguf")


class Async(ProgramTest):
    def test_each_line_gets_its_answer(self):
        lines = ["".join(chr(ord("a") + (7 * i + j) % 26) for j in range(9)) for i in range(20)]
        out = self.ok(self.tiny / "qwen3", stdin="\n".join(lines) + "\n\n")
        self.assertEqual(len(re.findall(r" ?\[(stop|length)\]\n", out)), 20)
        for line in lines:
            self.assertIn(line, out)

    def test_a_missing_model_is_one_line_and_status_1(self):
        self.fails("no/such/file.gguf", says="no/such/file.gguf")


class Bench(ProgramTest):
    def report(self, *words):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "report.json"
            out = self.ok(*words, "--output-json", file)
            self.assertEqual(os.listdir(folder), ["report.json"])
            return out, json.loads(file.read_text())

    def test_help_and_commands(self):
        self.assertIn("throughput", self.ok("--help"))
        self.assertIn("--num-iters-warmup", self.ok("latency", "--help"))
        self.assertIn("--random-range-ratio", self.ok("throughput", "--help"))
        self.assertIn("--checkpoint-dir", self.ok("startup", "--help"))
        self.fails(says="latency or throughput or startup")
        self.fails("speed", says="latency or throughput or startup")
        self.fails("--input-len", "3", "latency", says="behind the command")
        self.check_broken_models("latency")

    def test_latency_report(self):
        out, report = self.report("latency", "--random-weights", "tiny", "--input-len", 40, "--output-len", 6, "--batch-size", 3,
                                  "--num-iters", 4, "--threads", 2)
        for field, value in {"batch_size": 3, "input_len": 40, "output_len": 6, "num_threads": 2, "num_iters": 4,
                             "model": "tiny", "dtype": "float32"}.items():
            self.assertEqual(report[field], value, field)
        self.assertEqual(len(report["latencies"]), 4)
        self.assertAlmostEqual(report["avg_latency"], sum(report["latencies"]) / 4, places=9)
        self.assertEqual(list(report["percentiles"]), ["10", "25", "50", "75", "90", "99"])
        self.assertEqual(sorted(report["percentiles"].values()), list(report["percentiles"].values()))
        # A batch takes what its first tokens and the rest take.
        for total, prefill, decode in zip(report["latencies"], report["all_prefill_tokens_per_s"],
                                          report["all_decode_tokens_per_s"]):
            self.assertAlmostEqual(total, 3 * 40 / prefill + 3 * 5 / decode, places=9)
        for name in ["ttft_ms", "tpot_ms", "e2el_ms"]:
            self.assertGreater(report["median_" + name], 0)
            self.assertLessEqual(report["p10_" + name], report["p99_" + name])
        for word in ["| quantity", "cpu: ", "git_commit: ", "command: nvl-bench latency"]:
            self.assertIn(word, out)

    def test_one_output_token_has_no_decode_rate(self):
        _, report = self.report("latency", "--random-weights", "tiny", "--input-len", 8, "--output-len", 1, "--num-iters", 1)
        self.assertEqual(report["all_decode_tokens_per_s"], [])
        self.assertGreater(report["prefill_tokens_per_s"], 0)

    def test_the_nano_vllm_load_is_run_whole(self):
        out, report = self.report("throughput", "--random-weights", "tiny", "--dataset", "nano-vllm", "--verify", 2,
                                  "--verify-output-len", 4, "--peak-bandwidth", 1, "--peak-tflops", 10)
        for field, value in {"dataset": "nano-vllm", "num_prompts": 256, "total_input": 142827, "total_output": 133966,
                             "temperature": 0.6, "cached_tokens": 0, "num_runs": 1, "fresh_ids": False}.items():
            self.assertEqual(report[field], value, field)
        self.assertGreaterEqual(report["steps"], 1024)
        self.assertAlmostEqual(report["output_throughput"], 133966 / report["duration"], places=4)
        # Each step of a running sequence gives one token, and a prompt may take several steps.
        self.assertGreaterEqual(report["mean_batch"] * report["steps"], 133966 - 1e-3)
        # 2 layers x 2 x 2 heads x 16 x 4 bytes a token; the sum over requests is that of Qwen3-0.6B's 13.85 TB.
        self.assertEqual(report["kv_read_bytes"], 13853760356352 / 114688 * 512)
        self.assertAlmostEqual(report["share_of_limit"], report["output_throughput"] / report["limit_output_throughput"], places=9)
        for word in ["exposed host time", "share of it [%]", "output tokens/s", "2 requests, 8 of 8 greedy tokens"]:
            self.assertIn(word, out)

    def test_runs_with_fresh_ids_and_with_the_same(self):
        load = ("--random-weights", "tiny", "--num-prompts", 4, "--input-len", 40, "--output-len", 6)
        _, report = self.report("throughput", *load, "--num-runs", 3, "--num-warmups", 2)
        self.assertEqual((len(report["warmups"]), len(report["runs"])), (2, 3))
        durations = sorted(run["duration"] for run in report["runs"])
        self.assertEqual(report["duration"], durations[1])
        self.assertEqual([run["cached_tokens"] for run in report["warmups"] + report["runs"]], [0] * 5)
        self.assertTrue(report["fresh_ids"])

    def test_answers_are_checked_before_a_speed_is_printed(self):
        tiny = ("--random-weights", "tiny", "--dtype", "bfloat16", "--input-len", 40, "--output-len", 6)
        for command in ["latency", "throughput"]:
            out, report = self.report(command, *tiny, "--verify", 5)
            verified = report["verified"]
            self.assertEqual((verified["requests"], verified["tokens"]), (5, 30))
            self.assertLess(verified["worst_regret"], verified["regret_limit"] / 2)
            self.assertGreater(verified["decisive_tokens"], 5)
            self.assertIn("5 requests", out)
            out, report = self.report(command, *tiny)
            self.assertIsNone(report["verified"])
            self.assertIn("were not checked", out)
            with tempfile.TemporaryDirectory() as folder:
                file = pathlib.Path(folder) / "report.json"
                status, out, err = run(command, *tiny, "--verify", 5, "--verify-control", "--output-json", file)
                self.assertEqual((status, out, os.listdir(folder)), (1, "", []))
                self.assertRegex(err, "^nvl-bench: error: the results are wrong, so no speed is printed: [0-9]+ of 30 greedy tokens")
        self.fails("latency", *tiny, "--verify-control", says="--verify-control needs")
        self.fails("latency", "-m", self.tiny / "qwen3", "--verify", 2, "--verify-control", says="--verify-control needs")
        out, report = self.report("latency", "-m", self.tiny / "qwen3", "--verify", 3, "--input-len", 20, "--output-len", 5)
        self.assertEqual(report["verified"]["same_tokens"], 15)

    def test_startup_report(self):
        with tempfile.TemporaryDirectory() as folder:
            made = pathlib.Path(folder) / "made"
            out, report = self.report("startup", "--random-weights", "tiny", "--num-iters", 3, "--input-len", 30, "--verify", 2,
                                      "--checkpoint-dir", made)
            self.assertEqual(sorted(os.listdir(made)), ["config.json", "model.safetensors"])
            self.assertEqual(report["model_bytes"], sum(file.stat().st_size for file in made.iterdir()))
            self.assertEqual((report["model"], report["dtype"], report["num_iters"], report["input_len"]), ("tiny", "float32", 3, 30))
            # Two answers of 32 tokens, and the first token of each process.
            self.assertEqual((report["verified"]["requests"], report["verified"]["tokens"]), (2 + 3, 2 * 32 + 3))
            self.assertEqual(len(report["all_time_to_first_token_s"]), 3)
            self.assertEqual(report["time_to_first_token_s"], sorted(report["all_time_to_first_token_s"])[1])
            self.assertEqual(list(report["phases_ms"]), ["main", "opened", "first_layer", "weights", "engine", "first_token"])
            self.assertTrue(all(value > 0 for value in report["phases_ms"].values()), report["phases_ms"])
            self.assertIn("process start to first token", out)
            # What was written is a model for every program.
            _, report = self.report("startup", "-m", made, "--num-iters", 1, "--input-len", 30)
            self.assertEqual(report["model"], "made")
            _, report = self.report("latency", "-m", made, "--input-len", 30, "--output-len", 4, "--num-iters", 1)
            self.assertEqual(report["dtype"], "float32")
        before = set(pathlib.Path(tempfile.gettempdir()).glob("nvl-bench-*"))
        self.report("startup", "--random-weights", "tiny", "--num-iters", 1, "--dtype", "bfloat16")
        self.assertEqual(set(pathlib.Path(tempfile.gettempdir()).glob("nvl-bench-*")), before)

    def test_throughput_report(self):
        out, report = self.report("throughput", "--model", self.tiny / "gguf" / "qwen3.gguf", "--num-prompts", 9,
                                  "--input-len", 20, "--output-len", 10, "--random-range-ratio", 0.5)
        self.assertEqual((report["completed"], report["failed"]), (9, 0))
        self.assertTrue(9 * 10 <= report["total_input"] <= 9 * 30)
        self.assertTrue(9 * 5 <= report["total_output"] <= 9 * 15)
        self.assertAlmostEqual(report["request_throughput"], 9 / report["duration"], places=6)
        total = report["total_input"] + report["total_output"]
        self.assertAlmostEqual(report["output_throughput"], report["total_output"] / report["duration"], places=4)
        self.assertAlmostEqual(report["total_token_throughput"], total / report["duration"], places=4)
        self.assertIn("requests/s", out)

    def test_a_seed_gives_the_same_load(self):
        def load(seed):
            _, report = self.report("throughput", "--random-weights", "tiny", "--num-prompts", 5, "--input-len", 20,
                                    "--output-len", 9, "--random-range-ratio", 0.9, "--seed", seed)
            return report["total_input"], report["total_output"]
        self.assertEqual(load(3), load(3))
        self.assertNotEqual(load(3), load(4))

    def test_bad_loads_are_refused(self):
        tiny = ("throughput", "--random-weights", "tiny")
        self.fails(*tiny, "--dataset", "novels", says=["--dataset is \"novels\"", "nano-vllm, random"])
        self.fails(*tiny, "--request-rate", 0, says="--request-rate")
        self.fails(*tiny, "--think-time", -1, says="--think-time")
        self.fails(*tiny, "--dataset", "nano-vllm", "--input-len", 5, says="--dataset nano-vllm fixes its lengths")
        self.fails("throughput", "-m", self.tiny / "qwen3", "--dataset", "nano-vllm", says=["ids up to 10000", "--dataset random"])
        for option, value in [("--num-runs", 0), ("--num-warmups", -1), ("--verify", -1), ("--verify-input-len", 0),
                              ("--verify-output-len", 0), ("--peak-bandwidth", -1), ("--peak-tflops", -2)]:
            self.fails(*tiny, option, value, says=option)
        self.fails("startup", "-m", "x", "--checkpoint-dir", "y", says="--checkpoint-dir is where")
        self.fails("startup", "-m", "no/such/model", says="no/such/model")

    def test_bad_values_are_refused(self):
        self.fails("latency", says="--model")
        self.fails("latency", "--random-weights", "huge", says="smollm2-135m")
        tiny = ("--random-weights", "tiny")
        self.fails("latency", *tiny, "-m", "x", says="one of them")
        for command, option, value in [("latency", "--input-len", 0), ("latency", "--output-len", -1), ("latency", "--batch-size", 0),
                                       ("latency", "--num-iters", 0), ("latency", "--num-iters-warmup", -1),
                                       ("throughput", "--num-prompts", 0), ("throughput", "--random-range-ratio", 1)]:
            self.fails(command, *tiny, option, value, says=option)
        self.fails("latency", *tiny, "--input-len", 4096, says="4096")
        self.fails("throughput", *tiny, "--input-len", 40, "--output-len", 40, "--random-range-ratio", 0.5, "--num-blocks", 5,
                   says="KV blocks")
        self.fails("latency", *tiny, "--output-json", "/no/such/folder/x.json", says="/no/such/folder/x.json")


class Sim(ProgramTest):
    def report(self, *words):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "sim.json"
            out = self.ok(*words, "--output-json", file)
            return out, json.loads(file.read_text())

    def test_a_simulation_is_repeatable_and_conserves_tokens(self):
        words = ("--trace", "nano-vllm,chat", "--num-prompts", 40, "--request-rate", 20, "--scheduler", "prefill-first,token-budget",
                 "--prefix-cache", "hash,none")
        out, first = self.report(*words)
        self.assertEqual(self.report(*words)[1]["simulations"], first["simulations"])
        self.assertEqual(first["varied"], ["trace", "scheduler", "cache"])
        self.assertEqual(len(first["simulations"]), 8)
        self.assertEqual(out.count("| nano-vllm"), 4)
        for simulation in first["simulations"]:
            self.assertEqual((simulation["live_blocks"], simulation["failed"]), (0, 0))
            if simulation["trace"] == "nano-vllm":
                self.assertEqual((simulation["completed"], simulation["total_input"], simulation["total_output"]),
                                 (256, 142827, 133966))
            else:
                self.assertEqual(simulation["prefix_hit_rate"] > 0, simulation["prefix_cache"] == "hash")

    def test_the_headline_benchmark_is_predicted(self):
        _, report = self.report("--trace", "nano-vllm")
        (simulation,) = report["simulations"]
        self.assertAlmostEqual(simulation["output_throughput"] / 28200, 1, delta=0.02)  # measured on an H200
        self.assertLess(simulation["kv_wasted"], 0.01)

    def test_a_cost_model_comes_from_a_log_and_goes_back_in(self):
        head = "run,start_s,us,seqs,tokens,samples,decodes,decode_kv_tokens,prefill_kv_tokens,prefill_pairs,copies,transfers,waiting,running"
        with tempfile.TemporaryDirectory() as folder:
            log, cost = pathlib.Path(folder) / "steps.csv", pathlib.Path(folder) / "cost.json"
            rows = [f"1,{i * 2e-3},2000,{n},{n},{n},{n},{n * 300},0,0,0,0,0,{n}" for i, n in enumerate(range(1, 60))]
            log.write_text("\n".join(["# model qwen3-0.6b", head, *rows]) + "\n")
            self.assertIn("decodes only", self.ok("--fit", log, "--fit-output", cost))
            _, slow = self.report("--cost", cost, "--num-prompts", 20)
            _, fast = self.report("--num-prompts", 20)
            self.assertGreater(slow["simulations"][0]["p50_tpot_ms"], 1.2 * fast["simulations"][0]["p50_tpot_ms"])
            log.write_text("no log\n")
            self.fails("--fit", log, says="steps.csv")
            cost.write_text("{}")
            self.fails("--cost", cost, says="weight_bytes_per_s")

    def test_wrong_options_are_one_line_and_status_1(self):
        self.fails("--trace", "novels", says=["novels", "nano-vllm, random"])
        self.fails("--scheduler", "magic", says=["magic", "prefill-first, token-budget"])
        self.fails("--scheduler", "token-budget", "--order", "longest-prefix", "--prefix-cache", "none", says="do not go with")
        self.fails("--scheduler", "prefill-first", "--order", "priority", says="goes with")
        self.fails("--model", "huge", says="qwen3-0.6b")
        self.fails("--block-size", "a,16", says="--block-size")
        self.fails("--output-json", "/no/such/folder/x.json", says="/no/such/folder/x.json")


class Plan(ProgramTest):
    def report(self, *words):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "plan.json"
            out = self.ok(*words, "--output-json", file)
            self.assertEqual(os.listdir(folder), ["plan.json"])
            return out, json.loads(file.read_text())

    def test_common(self):
        self.check_common()

    def test_a_known_model(self):
        out, plan = self.report("-m", "qwen3-0.6b")
        self.assertEqual((plan["parameters"], plan["dtype"], plan["gpu"]), (596049920, "bfloat16", "h200"))
        memory = plan["memory"]
        self.assertEqual((memory["weight_bytes"], memory["kv_bytes_per_token"]), (1192099840, 114688))
        self.assertEqual(memory["kv_bytes"], memory["num_blocks"] * 16 * 114688)
        self.assertEqual(memory["total_bytes"], sum(memory[key] for key in ["weight_bytes", "kv_bytes", "activation_bytes",
                                                                            "logits_bytes", "workspace_bytes", "graph_bytes"]))
        self.assertEqual([row["length"] for row in plan["contexts"]], [1024, 2048, 4096, 8192, 16384, 32768, 40960])
        for row in plan["contexts"]:
            self.assertEqual(row["sequences_that_fit"], memory["num_blocks"] // row["blocks"])
            self.assertEqual(row["sequences_that_run"], min(row["sequences_that_fit"], 64))
        self.assertEqual(len(plan["variants"]), 8)
        self.assertEqual(plan["variants"][0]["memory"], memory)
        self.assertEqual(plan["variants"][0]["limit_output_throughput"], plan["load"]["limit_output_throughput"])
        self.assertLess(plan["load"]["expected_output_throughput"], plan["load"]["limit_output_throughput"])
        self.assertEqual(plan["variants"][7]["memory"]["kv_bytes_per_token"], 114688 // 16)
        for line in ["| weights ", "1192099840", "114688 bytes a token", "a calculation", "| fp8 "]:
            self.assertIn(line, out)

    def test_files_need_no_weights(self):
        _, of_directory = self.report("-m", self.tiny / "qwen3")
        _, of_config = self.report("-m", self.tiny / "qwen3" / "config.json")
        _, of_gguf = self.report("-m", self.tiny / "gguf" / "qwen3.gguf")
        self.assertEqual(of_directory["memory"], of_config["memory"])
        self.assertEqual(of_directory["memory"]["weight_bytes"], of_gguf["memory"]["weight_bytes"])
        self.assertEqual(of_config["model"], "config.json")

    def test_options(self):
        words = ["-m", "llama-3.1-8b", "--gpu", "l40s"]
        _, plain = self.report(*words)
        _, given = self.report(*words, "--kv-cache-dtype", "fp8", "--tensor-parallel-size", 2, "--max-num-seqs", 8, "--context", 100,
                               "--context", 5000, "--input-len", 30, "--output-len", 70, "--max-num-batched-tokens", 512)
        self.assertEqual(given["memory"]["kv_bytes_per_token"] * 4, plain["memory"]["kv_bytes_per_token"])
        self.assertEqual([row["length"] for row in given["contexts"]], [100, 5000])
        self.assertEqual(given["load"]["concurrent_requests"], 8)
        _, memory = self.report(*words, "--gpu-memory", "40G", "--used-gpu-memory", "1G", "--gpu-memory-utilization", 0.5,
                                "--block-size", 32, "--num-sms", 100, "--dtype", "float16")
        self.assertLessEqual(memory["memory"]["total_bytes"], 19 << 30)
        self.assertGreater(memory["memory"]["total_bytes"], (19 << 30) - (32 << 20))
        _, fast = self.report(*words, "--peak-bandwidth", 100, "--peak-tflops", 100000)
        self.assertLess(fast["load"]["limit_duration_s"], 0.1 * plain["load"]["limit_duration_s"])
        _, slow = self.report(*words, "--tp-size", 2, "--all-reduce-us", 1000, "--link-bandwidth", 1)
        self.assertGreater(slow["contexts"][0]["limit_tpot_alone_ms"], 64)
        _, eager = self.report(*words, "--enforce-eager")
        self.assertEqual(eager["memory"]["graph_bytes"], 0)

    def test_what_does_not_fit(self):
        out = self.ok("-m", "smollm2-135m")  # nine heads
        self.assertIn("cannot be divided so", out)
        small = ["-m", "llama-3.1-8b", "--gpu-memory", "12G"]
        self.assertIn("does not fit", self.ok(*small, "--tp-size", 2))
        status, out, err = run(*small)
        self.assertEqual((status, err.count("\n")), (1, 1))
        self.assertIn("no room for a KV cache", err)
        self.assertEqual(out.count("does not fit"), 2)  # alone; what fits on several GPUs is shown

    def test_errors(self):
        model = ["-m", "qwen3-0.6b"]
        self.fails("-m", "qwen3-600b", says=["qwen3-600b", "qwen3-0.6b"])
        self.fails(*model, "--gpu", "h300", says=["--gpu is \"h300\"", "h200"])
        self.fails(*model, "--dtype", "float32", says="auto, bfloat16 or float16")
        self.fails(*model, "--kv-cache-dtype", "int3", says="auto or fp8")
        self.fails(*model, "--tp-size", 3, says=["tensor_parallel_size is 3", "16 query heads"])
        self.fails(*model, "--block-size", 24, says="power of two")
        self.fails(*model, "--gpu-memory-utilization", 2, says="gpu_memory_utilization is 2")
        self.fails(*model, "--max-model-len", 50000, says="max_model_len")
        self.fails(*model, "--peak-bandwidth", -1, says="--peak-bandwidth is -1.000: must be positive")
        self.fails(*model, "--all-reduce-us", -1, says="must not be negative")
        self.fails(*model, "--num-sms", 0, says="--num-sms is 0")
        self.fails(*model, "--context", 50000, says=["--context is 50000", "40960"])
        self.fails(*model, "--input-len", 0, says="--input-len is 0")
        self.fails(*model, "--input-len", 40000, "--output-len", 1000, says="41000 tokens together")
        self.fails(*model, "--output-json", "/no/such/folder/x.json", says="/no/such/folder/x.json")


class Ranks(ProgramTest):
    LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "OMPI_", "PMI", "SLURM_", "LWS_", "TORCHELASTIC_")
    HERE = {"NVL_SECRET": "a secret of the tests", "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2"}

    def start(self, **env):
        clean = {k: v for k, v in os.environ.items() if not k.startswith(self.LAUNCHERS)}
        return subprocess.Popen([ARGS.program], env={**clean, **env}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    @staticmethod
    def free_port():
        with socket.create_server(("127.0.0.1", 0)) as server:
            return str(server.getsockname()[1])

    def test_two_processes_find_each_other(self):
        env = {**self.HERE, "MASTER_PORT": self.free_port()}
        ranks = [self.start(**env, RANK=str(r)) for r in range(2)]
        (out, err), (_, other_err) = [rank.communicate(timeout=120) for rank in ranks]
        self.assertEqual([err, other_err], ["", ""])
        self.assertIn(f"rank 0 at 127.0.0.1:{env['MASTER_PORT']}\n", out)
        self.assertEqual(out.count("all-reduce of "), 5)

    def test_another_secret_is_one_line_and_status_1(self):
        env = {**self.HERE, "MASTER_PORT": self.free_port()}
        host = self.start(**env, RANK="0")
        guest = self.start(**{**env, "NVL_SECRET": "another one of the tests"}, RANK="1")
        _, err = guest.communicate(timeout=120)
        host.kill()  # it would wait for its rank 1
        host.communicate()
        self.assertEqual((guest.returncode, err.count("\n")), (1, 1), err)
        self.assertIn("has another secret", err)

    def test_half_an_environment_is_one_line_and_status_1(self):
        rank = self.start(RANK="0")
        _, err = rank.communicate(timeout=120)
        self.assertEqual((rank.returncode, err.count("\n")), (1, 1), err)
        self.assertIn("WORLD_SIZE", err)


def main():
    global ARGS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", required=True)
    parser.add_argument("--data", required=True, type=pathlib.Path, help="tests/data")
    parser.add_argument("--fetched", required=True, type=pathlib.Path, help="where downloaded models are")
    parser.add_argument("suite", choices=["generate", "chat", "tokenize", "logits", "quickstart", "async", "bench", "plan", "sim", "ranks"])
    ARGS, rest = parser.parse_known_args()
    ARGS.program = str(pathlib.Path(ARGS.program).resolve())
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(globals()[ARGS.suite.capitalize()])
    result = unittest.TextTestRunner(verbosity=2 if "-v" in rest else 1).run(suite)
    sys.exit(not result.wasSuccessful())


if __name__ == "__main__":
    main()
