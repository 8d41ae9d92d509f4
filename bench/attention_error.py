#!/usr/bin/env python3
"""Errors of linear attention in bf16 against a double-precision reference: Fulmen's and flash-linear-attention's, on the same inputs.

usage: attention_error.py PATH/TO/attention_outputs [SEED...]     needs torch, triton and fla; the program is a target of the
cuda preset. Prints ||x - reference|| / ||reference|| of the output and of each gradient, and whether Fulmen's is the smaller.
Exits with 1 when any is larger.
"""
import os
import subprocess
import sys
import tempfile

import torch
from fla.ops.simple_gla import chunk_simple_gla

SHAPES = [(4, 4096, 4, 128), (1, 16384, 4, 128), (2, 2048, 8, 128), (2, 1000, 8, 64)]
SEEDS = [1, 2, 3]
NAMES = ("o", "dq", "dk", "dv")
CHUNK = 64


def chunks_of(x):
    """[batch, length, heads, width] to double precision [batch, heads, chunks, CHUNK, width], zeros behind the end."""
    x = torch.nn.functional.pad(x.double(), (0, 0, 0, 0, 0, -x.shape[1] % CHUNK))
    return x.unflatten(1, (-1, CHUNK)).permute(0, 3, 1, 2, 4)


def attend(q, k, v, decay):
    """The chunk form of o_i = sum over j <= i of decay^(i - j) (q_i k_j) v_j; on time reversed, of its transpose. decay is [heads, 1, 1, 1]."""
    t = torch.arange(CHUNK, device=q.device, dtype=torch.float64)
    distance = t[:, None] - t[None, :]
    mask = torch.where(distance >= 0, decay ** distance.clamp(min=0), 0)
    updates = (k * decay ** (CHUNK - 1 - t)[:, None]).transpose(-1, -2) @ v
    states = torch.empty_like(updates)   # before each chunk
    state = torch.zeros_like(updates[:, :, 0])
    for i in range(updates.shape[2]):
        states[:, :, i] = state
        state = decay[:, 0] ** CHUNK * state + updates[:, :, i]
    return (q @ k.transpose(-1, -2) * mask) @ v + decay ** (t + 1)[:, None] * (q @ states)


def reference(q, k, v, d_o, slope):
    """dq is the same sum with (d_o, v, k) for (q, k, v); dk and dv are sums over later tokens, so over reversed time."""
    length = q.shape[1]
    q, k, v, d_o = (chunks_of(x) for x in (q, k, v, d_o))
    decay = torch.exp(-slope)[:, None, None, None]
    back = lambda x: x.flip(2, 3)
    results = (attend(q, k, v, decay), attend(d_o, v, k, decay), back(attend(back(v), back(d_o), back(q), decay)),
               back(attend(back(k), back(q), back(d_o), decay)))
    return tuple(x.permute(0, 2, 3, 1, 4).flatten(1, 2)[:, :length] for x in results)


def fulmen(program, q, k, v, d_o, slope):
    with tempfile.TemporaryDirectory() as folder:
        for name, x in {"query": q, "key": k, "value": v, "d_output": d_o}.items():
            x.cpu().contiguous().view(torch.int16).numpy().tofile(os.path.join(folder, name + ".bf16"))
        slope.cpu().numpy().tofile(os.path.join(folder, "slope.fp64"))
        subprocess.run([program, folder] + [str(n) for n in q.shape], check=True)
        read = lambda name: torch.from_file(os.path.join(folder, name + ".bf16"), dtype=torch.int16, size=q.numel()).view(torch.bfloat16).view(q.shape).clone()
        return tuple(read(name).to(q.device) for name in ("output", "d_query", "d_key", "d_value"))


def fla(q, k, v, d_o, slope):
    q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
    o, _ = chunk_simple_gla(q, k, v, g_gamma=-slope.float(), scale=1.0)
    return (o.detach(),) + torch.autograd.grad(o, (q, k, v), d_o)


def compare(program, shape, seed):
    """How many of Fulmen's errors are larger than fla's."""
    torch.manual_seed(seed)
    q, k, v, d_o = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    slope = torch.tensor([2.0 ** (-8.0 * (h + 1) / shape[2]) for h in range(shape[2])], dtype=torch.float64, device="cuda")
    expected = reference(q, k, v, d_o, slope)
    errors = [[float((x.double() - r).norm() / r.norm()) for x, r in zip(results, expected)]
              for results in (fulmen(program, q, k, v, d_o, slope), fla(q, k, v, d_o, slope))]
    larger = 0
    for name, ours, theirs in zip(NAMES, *errors):
        good = ours <= theirs   # a NaN is not
        larger += not good
        print(f"{'x'.join(map(str, shape)):>16} seed {seed}  {name:2}  fulmen {ours:.4e}  fla {theirs:.4e}  {ours / theirs:.4f}  {'no larger' if good else 'LARGER'}", flush=True)
    return larger


def main(program, seeds):
    larger = sum(compare(program, shape, seed) for shape in SHAPES for seed in seeds)
    print(f"{larger} of {len(SHAPES) * len(seeds) * len(NAMES)} errors are larger than fla's")
    return 1 if larger else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], [int(s) for s in sys.argv[2:]] or SEEDS))
