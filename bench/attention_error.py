#!/usr/bin/env python3
"""Errors of linear attention in bf16 against a double-precision reference: Fulmen's and flash-linear-attention's, on the same inputs.

usage: attention_error.py PATH/TO/attention_outputs      needs torch, triton and fla; the program is a target of the cuda preset
Prints ||x - reference|| / ||reference|| of the output and of each gradient.
"""
import os
import subprocess
import sys
import tempfile

import torch
from fla.ops.simple_gla import chunk_simple_gla

SHAPES = [(2, 1000, 8, 128), (4, 4096, 4, 128), (2, 2048, 8, 64)]


def reference(q, k, v, d_o, slope):
    """The chunk form in double precision, its gradients by autograd."""
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    batch, length, heads, width = q.shape
    state = torch.zeros(batch, heads, width, v.shape[-1], dtype=torch.float64, device=q.device)
    outputs = []
    for begin in range(0, length, 64):
        a, b, c = (x[:, begin:begin + 64].transpose(1, 2) for x in (q, k, v))
        m = a.shape[2]
        t = torch.arange(m, device=q.device, dtype=torch.float64)
        mask = torch.exp(-slope[:, None, None] * (t[:, None] - t[None, :]).clamp(min=0)) * (t[:, None] >= t[None, :])
        outputs.append((a @ b.transpose(-1, -2) * mask) @ c + torch.exp(-slope[:, None] * (t + 1))[..., None] * (a @ state))
        state = torch.exp(-slope * m)[:, None, None] * state + (torch.exp(-slope[:, None] * (m - 1 - t))[..., None] * b).transpose(-1, -2) @ c
    o = torch.cat(outputs, dim=2).transpose(1, 2)
    return (o.detach(),) + torch.autograd.grad(o, (q, k, v), d_o.double())


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


def main():
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))
    for shape in SHAPES:
        q, k, v, d_o = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(4))
        slope = torch.tensor([2.0 ** (-8.0 * (h + 1) / shape[2]) for h in range(shape[2])], dtype=torch.float64, device="cuda")
        expected = reference(q, k, v, d_o, slope)
        for name, results in (("fulmen", fulmen(sys.argv[1], q, k, v, d_o, slope)), ("fla", fla(q, k, v, d_o, slope))):
            errors = [float((x.double() - r).norm() / r.norm()) for x, r in zip(results, expected)]
            print(f"{'x'.join(map(str, shape)):>16} {name:7}" + "".join(f"  {n} {e:.3e}" for n, e in zip(("o", "dq", "dk", "dv"), errors)), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
