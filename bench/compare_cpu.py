#!/usr/bin/env python3
"""Trains one model by PyTorch and by Fulmen on the same cores, in turns, and prints the ratio of their tokens/s.

The model is TransNormerLLM without LRPE: 8 layers, hidden 512, 8 heads, glu 1408, vocabulary 8192, tied embedding, 32 M
parameters; 4 x 512 tokens a step, fp32, AdamW, clip 1. PyTorch trains it in the chunked form of linear attention, which is
the fastest of the forms that it has no kernel for.

  bench/compare_cpu.py                     with the python3 that runs it
  bench/compare_cpu.py --compile           also torch.compile
  PYTHON=/path/to/python bench/compare_cpu.py   another PyTorch for the peer
"""
import argparse
import json
import math
import os
import statistics
import subprocess
import sys

LAYERS, HIDDEN, HEADS, GLU, VOCABULARY, BATCH, LENGTH = 8, 512, 8, 1408, 8192, 4, 512
CHUNK = 64


def build_peer(torch):
    nn, functional = torch.nn, torch.nn.functional

    def normalise(x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    class Decay:
        """The tables of one layer: decay inside a chunk, from its start, to its end, over all of it."""

        def __init__(self, layer):
            depth = 1 - layer / (LAYERS - 1) + 1e-5
            slope = torch.tensor([2 ** (-8 * (h + 1) / HEADS) * depth for h in range(HEADS)]).view(HEADS, 1, 1)
            step = torch.arange(CHUNK, dtype=torch.float32)
            distance = step.view(-1, 1) - step.view(1, -1)
            self.inside = torch.where(distance >= 0, torch.exp(-slope * distance.clamp(min=0)), torch.zeros(()))
            self.query = torch.exp(-slope * (step + 1).view(1, -1, 1))
            self.key = torch.exp(-slope * (CHUNK - 1 - step).view(1, -1, 1))
            self.whole = torch.exp(-slope * CHUNK)

    def attention(q, k, v, decay):
        batch, heads, length, width = q.shape
        q, k, v = (t.reshape(batch, heads, length // CHUNK, CHUNK, width) for t in (q, k, v))
        inside = ((q @ k.mT) * decay.inside.unsqueeze(1)) @ v
        updates = (k * decay.key.unsqueeze(1)).mT @ v
        queries = q * decay.query.unsqueeze(1)
        state, across = torch.zeros(batch, heads, width, width), []
        for c in range(length // CHUNK):
            across.append(queries[:, :, c] @ state)
            state = decay.whole * state + updates[:, :, c]
        return (inside + torch.stack(across, 2)).reshape(batch, heads, length, width)

    class Layer(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.qkvu = nn.Linear(HIDDEN, 4 * HIDDEN, bias=False)
            self.out = nn.Linear(HIDDEN, HIDDEN, bias=False)
            self.expand = nn.Linear(HIDDEN, 2 * GLU, bias=False)
            self.contract = nn.Linear(GLU, HIDDEN, bias=False)
            self.decay = Decay(layer)

        def forward(self, x):
            batch, length, _ = x.shape
            q, k, v, u = self.qkvu(normalise(x)).chunk(4, -1)
            q, k, v = (t.view(batch, length, HEADS, -1).transpose(1, 2) for t in (functional.silu(q), functional.silu(k), v))
            o = attention(q, k, v, self.decay).transpose(1, 2).reshape(batch, length, HIDDEN)
            x = x + self.out(normalise(o) * u)
            a, b = self.expand(normalise(x)).chunk(2, -1)
            return x + self.contract(a * b)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
            self.layers = nn.ModuleList(Layer(i) for i in range(LAYERS))
            for p in self.parameters():
                nn.init.normal_(p, std=0.02)

        def forward(self, tokens, targets):
            x = self.embedding(tokens) * math.sqrt(HIDDEN)
            for layer in self.layers:
                x = layer(x)
            logits = normalise(x) @ self.embedding.weight.T
            return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    return Model()


def run_peer(threads, steps, compiled):
    import time

    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(2048, 512), torch.randn(512, 2048)
    best = min(_timed(lambda: a @ b, time) for _ in range(10))
    model = build_peer(torch)
    parameters = sum(p.numel() for p in model.parameters())
    loss_of = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    stream = torch.randint(0, VOCABULARY, (BATCH, LENGTH + 1))

    def step():
        loss = loss_of(stream[:, :-1], stream[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for _ in range(2):
        step()
    seconds = statistics.median(_timed(step, time) for _ in range(steps))
    print(json.dumps({"name": f"PyTorch {torch.__version__}{' compiled' if compiled else ''}", "parameters": parameters,
                      "tokens_per_second": BATCH * LENGTH / seconds, "gemm_gflops": 2 * 2048 * 2048 * 512 / best / 1e9}))


def _timed(work, time):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def last_json(command, environment):
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fulmen", default="build/cpu/bin/fulmen")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3, help="how often the two take turns")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--peer-only", choices=["eager", "compiled"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer_only:
        run_peer(arguments.threads, arguments.steps, arguments.peer_only == "compiled")
        return

    python = os.environ.get("PYTHON", sys.executable)
    # Debian's OpenBLAS does not know some recent processors, and takes them for older models: say what this processor has.
    peer_environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads))
    with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as cpu:
        flags = cpu.read()
        if "avx512f" in flags:
            peer_environment["OPENBLAS_CORETYPE"] = "SkylakeX"
        elif "avx2" in flags:
            peer_environment["OPENBLAS_CORETYPE"] = "Haswell"
    own_environment = dict(os.environ, OMP_NUM_THREADS=str(arguments.threads))
    two_environment = dict(os.environ, OMP_NUM_THREADS=str(max(1, arguments.threads // 2)), OMPI_ALLOW_RUN_AS_ROOT="1",
                           OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")
    bench = [arguments.fulmen, "bench", "step", "--json", "--steps", str(arguments.steps)]
    contenders = {"fulmen": (bench, own_environment),
                  "fulmen, 2 ranks": (["mpirun", "--bind-to", "none", "-n", "2"] + bench + ["--set", "train.micro_batch=2"], two_environment)}
    for mode in ["eager", "compiled"] if arguments.compile else ["eager"]:
        contenders[mode] = ([python, os.path.abspath(__file__), "--peer-only", mode, "--threads", str(arguments.threads), "--steps",
                             str(arguments.steps)], peer_environment)
    results = {name: [] for name in contenders}
    for round_number in range(arguments.rounds):
        for name, (command, environment) in contenders.items():
            result = last_json(command, environment)
            results[name].append(result)
            print(f"round {round_number + 1}  {result.get('name', name):28} {result['tokens_per_second']:8.0f} tokens/s", flush=True)

    def median(name, key="tokens_per_second"):
        return statistics.median(r[key] for r in results[name])

    fulmen = median("fulmen")
    print(f"\nmedians of {arguments.rounds} rounds, {arguments.threads} threads")
    print(f"fulmen, 1 rank               {fulmen:8.0f} tokens/s, {100 * median('fulmen', 'utilisation'):.1f} % of its products' rate "
          f"({median('fulmen', 'gemm_flops_per_second') / 1e9:.0f} GFLOP/s)")
    print(f"fulmen, 2 ranks data parallel {median('fulmen, 2 ranks'):7.0f} tokens/s, {median('fulmen, 2 ranks') / fulmen:.2f} of one rank's")
    for mode in ["eager", "compiled"]:
        if mode in results:
            print(f"{results[mode][0]['name']:28} {median(mode):8.0f} tokens/s; fulmen is {fulmen / median(mode):.2f} times as fast "
                  f"(its own product 2048 x 2048 x 512: {median(mode, 'gemm_gflops'):.0f} GFLOP/s)")


if __name__ == "__main__":
    main()
