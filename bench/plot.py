#!/usr/bin/env python3
"""Draws the reports of the benchmarks: each kernel report as a chart of its own, all engine reports together.

    bench/plot.py                                     # bench/results/*.json -> bench/results/*.svg
    bench/plot.py --out charts rms_norm.json          # these files, elsewhere
    bench/plot.py --out docs/images bench/results/sim_*.json    # simulations: lines over the request rate, or bars

Needs matplotlib. A peer's figures come from an optional file, --peers FILE:
    {"throughput": {"qwen3-0.6b nano-vllm": {"vLLM 0.25.1": 23400}}, "tpot_ms": {"qwen3-0.6b 512/128 x1": {"vLLM 0.25.1": 1.67}}}
"""
import argparse
import json
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402  (after the choice of the backend)

RESULTS = pathlib.Path(__file__).resolve().parent / "results"
COLOURS = ["#3b6ea5", "#d98032", "#5a9e6f", "#8d6bb0", "#b5544d", "#7f7f7f", "#c2a43a", "#4aa3a8"]
GREY = "#b8bec6"


def kind_of(report):
    if isinstance(report.get("rows"), list) and "benchmark" in report:
        return "kernel"
    if isinstance(report.get("simulations"), list):
        return "sim"
    for field, kind in {"output_throughput": "throughput", "latencies": "latency", "phases_ms": "startup"}.items():
        if field in report:
            return kind
    return None


def device_of(report):
    name = report.get("device_name") or (report["device"] if report.get("device") not in ("cpu", "cuda") else None)
    return name or report.get("cpu", "unknown device")


def figure(num_bars, title, note):
    fig, axes = plt.subplots(figsize=(9, 1.1 + 0.28 * max(num_bars, 3)), layout="constrained")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    fig.supxlabel(note, x=0.01, ha="left", fontsize=7, color="#666666")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="#e3e6ea")
    axes.set_axisbelow(True)
    return fig, axes


def label_bars(axes, labels):
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def save(fig, path):
    fig.savefig(path, metadata={"Date": None})
    plt.close(fig)
    print(path)


def amount(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def kernel_note(report):
    c = report.get("ceilings", {})
    parts = [f"read {c['read_gbps']:,.0f} GB/s" if c.get("read_gbps") else "",
             f"copy {c['copy_gbps']:,.0f} GB/s" if c.get("copy_gbps") else "",
             f"bf16 {c['bf16_tflops']:,.0f} TFLOP/s" if c.get("bf16_tflops") else ""]
    measured = ", ".join(part for part in parts if part)
    return f"{device_of(report)}, commit {report.get('git_commit', '?')}; ceilings of the same run: {measured or 'none'}"


def draw_kernel(report, path):
    rows = report["rows"]
    has_share = any(row.get("share_of_ceiling") for row in rows)
    variants = list(dict.fromkeys(row.get("variant") or row["op"] for row in rows))
    colour = {variant: COLOURS[i % len(COLOURS)] for i, variant in enumerate(variants)}
    fig, axes = figure(len(rows), report["benchmark"], kernel_note(report))
    for i, row in enumerate(rows):
        length = 100 * row["share_of_ceiling"] if has_share else row["cold"]["median_us"]
        axes.barh(i, length, height=0.7, color=colour[row.get("variant") or row["op"]])
        rate = f"{row['tflops']:,.0f} TFLOP/s" if row.get("ceiling") == "compute" else f"{row['gbps']:,.0f} GB/s"
        axes.text(length, i, f" {amount(row['cold']['median_us'])} us, {rate}", va="center", fontsize=7)
    label_bars(axes, [" ".join(filter(None, [row["op"] if len(variants) > 1 else "", row.get("variant", ""), row["shape"],
                                             row["dtype"]])) for row in rows])
    axes.set_xlabel("share of the measured ceiling [%], cold" if has_share else "cold [us]", fontsize=8)
    axes.set_xlim(0, max(115, 1.15 * axes.dataLim.x1) if has_share else None)
    if has_share:
        axes.axvline(100, color="#444444", linewidth=0.8)
    if len(variants) > 1:
        handles = [plt.Rectangle((0, 0), 1, 1, color=colour[variant]) for variant in variants]
        axes.legend(handles, variants, fontsize=7, frameon=False, loc="lower right")
    save(fig, path)


def engine_note(reports):
    return "; ".join(sorted({f"{device_of(r)}, commit {r.get('git_commit', '?')}" for r in reports}))


def throughput_name(report):
    if report.get("dataset") == "random":
        return f"{report['model']} {report['num_prompts']} x {report['input_len']}/{report['output_len']}"
    return f"{report['model']} {report.get('dataset', '')}"


def latency_name(report):
    return f"{report['model']} {report['input_len']}/{report['output_len']} x{report['batch_size']}"


def draw_compared(reports, peers, name_of, value_of, limit_of, title, unit, path):
    """Groups of bars: nvl, then its peers, with the physical limit as a line."""
    bars, labels = [], []
    for report in reports:
        name = name_of(report)
        bars.append((value_of(report), limit_of(report), COLOURS[0]))
        labels.append(f"{name}  nvl")
        for peer, value in sorted(peers.get(name, {}).items(), key=lambda item: item[0]):
            bars.append((value, None, GREY))
            labels.append(peer)
    fig, axes = figure(len(bars), title, engine_note(reports))
    for i, (value, limit, colour) in enumerate(bars):
        axes.barh(i, value, height=0.7, color=colour)
        axes.text(value, i, f" {amount(value)}", va="center", fontsize=7)
        if limit:
            axes.plot([limit, limit], [i - 0.45, i + 0.45], color="#b5544d", linewidth=2)
            axes.text(limit, i - 0.5, f"limit {amount(limit)}", ha="center", va="bottom", fontsize=6, color="#b5544d")
    label_bars(axes, labels)
    axes.set_xlabel(unit, fontsize=8)
    axes.set_xlim(0, 1.12 * max(max(value, limit or 0) for value, limit, _ in bars))
    save(fig, path)


def draw_startup(reports, path):
    fig, axes = figure(len(reports) + 2, "From process start to first token", engine_note(reports))
    names = {"main": "process", "opened": "config and header", "first_layer": "device, first layer", "weights": "weights",
             "engine": "KV cache, graphs", "first_token": "first token"}
    for i, report in enumerate(reports):
        left = 0
        for p, (key, name) in enumerate(names.items()):
            value = report["phases_ms"][key]
            axes.barh(i, value, left=left, height=0.6, color=COLOURS[p], label=name if i == 0 else None)
            left += value
        axes.text(left, i, f" {1e3 * report['time_to_first_token_s']:,.0f} ms", va="center", fontsize=7)
    label_bars(axes, [f"{report['model']} ({report['model_bytes'] / 1e9:.2f} GB, {report['device']})" for report in reports])
    axes.set_xlabel("ms, medians", fontsize=8)
    axes.legend(fontsize=7, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.4, -0.25))
    axes.set_xlim(0, 1.12 * axes.dataLim.x1)
    save(fig, path)


def draw_sim(report, path):
    """Throughput and 99th percentiles of nvl-sim: over the request rate if that varies, else a bar for each simulation."""
    panels = [("output_throughput", "output tokens/s"), ("p99_ttft_ms", "TTFT p99 [ms]"), ("p99_itl_ms", "ITL p99 [ms]")]
    varied, all_of = report["varied"], report["simulations"]
    rate = varied.index("rate") if "rate" in varied else None
    groups = {}
    for s in all_of:
        name = ", ".join(v for i, v in enumerate(s["varied"]) if i != rate)
        groups.setdefault(name, []).append(s)
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.4 if rate is not None else 1.3 + 0.24 * len(all_of)), layout="constrained")
    for axis, (field, title) in zip(axes, panels):
        axis.set_title(title, loc="left", fontsize=9)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.grid(color="#e3e6ea", axis="both" if rate is not None else "x")
        axis.set_axisbelow(True)
        if rate is not None:
            for i, (name, sims) in enumerate(groups.items()):
                axis.plot([s["request_rate"] for s in sims], [s.get(field) for s in sims], marker="o", markersize=3,
                          color=COLOURS[i % len(COLOURS)], label=name)
            axis.set_xlabel("requests/s", fontsize=8)
            if field != "output_throughput":
                axis.set_yscale("log")
        else:
            values = [s.get(field, 0) for s in all_of]
            axis.barh(range(len(values)), values, height=0.7, color=COLOURS[0])
            for i, value in enumerate(values):
                axis.text(value, i, f" {amount(value)}", va="center", fontsize=7)
            label_bars(axis, [", ".join(s["varied"]) for s in all_of] if axis is axes[0] else [""] * len(values))
            axis.set_xlim(0, 1.2 * max(values))
    if rate is not None and len(groups) > 1:
        axes[0].legend(fontsize=7, frameon=False)
    fig.supxlabel(f"nvl-sim, {report['model']}, H200 cost model", x=0.01, ha="left", fontsize=7, color="#666666")
    save(fig, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="reports; default: bench/results/*.json")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS, help="folder of the charts")
    parser.add_argument("--peers", type=pathlib.Path, default=RESULTS / "peers.json", help="figures of other engines, if it is there")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    peers = json.loads(args.peers.read_text()) if args.peers.exists() else {}
    plt.rcParams.update({"font.family": "sans-serif", "svg.hashsalt": "nvl"})

    engines = {"throughput": [], "latency": [], "startup": []}
    for file in args.files or sorted(RESULTS.rglob("*.json")):
        if file.resolve() == args.peers.resolve():
            continue
        report = json.loads(file.read_text())
        kind = kind_of(report) if isinstance(report, dict) else None
        if kind == "kernel":
            draw_kernel(report, args.out / f"{file.stem}.svg")
        elif kind == "sim":
            draw_sim(report, args.out / f"{file.stem}.svg")
        elif kind:
            engines[kind].append(report)
        elif args.files:
            sys.exit(f"{file}: no report of nvl-bench or of a kernel benchmark")
    if engines["throughput"]:
        draw_compared(engines["throughput"], peers.get("throughput", {}), throughput_name, lambda r: r["output_throughput"],
                      lambda r: r.get("limit_output_throughput"), "Throughput", "output tokens/s", args.out / "throughput.svg")
    for field, title in (("ttft_ms", "Time to first token"), ("tpot_ms", "Time per output token")):
        reports = [r for r in engines["latency"] if f"median_{field}" in r]
        if reports:
            draw_compared(reports, peers.get(field, {}), latency_name, lambda r, f=field: r[f"median_{f}"],
                          lambda r, f=field: r.get(f"limit_{f}"), title, "ms, median", args.out / f"{field[:4]}.svg")
    if engines["startup"]:
        draw_startup(engines["startup"], args.out / "startup.svg")


if __name__ == "__main__":
    main()
