"""What a user would pick instead: TransNormerLLM and LLaMA written for PyTorch (torch.compile, autocast bf16, fused AdamW),
the linear attention by fla or by the authors' Triton kernel. Prints tokens/s on one GPU and model FLOP/s.

Needs torch, triton, einops and the packages lightning_attn and flash-linear-attention.

usage: peer_train.py kind,size,attention,B,N ...     e.g.  tnl,1B,fla,8,2048  tnl,1B,lightning2,8,2048  llama,1B,sdpa,8,2048
"""
import torch, torch.nn as nn, torch.nn.functional as F, sys, time, math
from lightning_attn.ops import lightning_attn_func
from lightning_attn.utils import _build_slope_tensor
from fla.ops.simple_gla import chunk_simple_gla
torch.set_float32_matmul_precision("high")
dev = "cuda"
CFG = {"385M": (1024, 24, 8, 2816), "1B": (2048, 16, 16, 5632), "7B": (4096, 30, 32, 11264)}
V = 64000

def srms(x): 
    y = x.float(); return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

class TNLBlock(nn.Module):
    def __init__(s, d, h, f, l, L, att):
        super().__init__(); s.h, s.att = h, att
        s.qkvu = nn.Linear(d, 4*d, bias=False); s.o = nn.Linear(d, d, bias=False)
        s.w12 = nn.Linear(d, 2*f, bias=False); s.w3 = nn.Linear(f, d, bias=False)
        sl = _build_slope_tensor(h).float() * (1 - l/(L-1) + 1e-5)
        s.register_buffer("slope", sl)
        s.lrpe = l == 0
        if s.lrpe: s.theta = nn.Parameter(10000**(-2/(d//h)*torch.arange(d//h//2).float()).repeat(1))
    def forward(s, x):
        b, n, d = x.shape
        q, k, v, u = s.qkvu(srms(x)).chunk(4, -1)
        q, k = F.silu(q), F.silu(k)
        hd = d // s.h
        q, k, v = (t.reshape(b, n, s.h, hd) for t in (q, k, v))
        if s.att == "fla":
            o = chunk_simple_gla(q, k, v, g_gamma=-s.slope.flatten(), scale=1.0)[0].reshape(b, n, d)
        else:
            o = lightning_attn_func(q.transpose(1, 2).contiguous(), k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous(), s.slope).transpose(1, 2).reshape(b, n, d)
        x = x + s.o(srms(o) * u)
        a, c = s.w12(srms(x)).chunk(2, -1)
        return x + s.w3(a * c)

class LlamaBlock(nn.Module):
    def __init__(s, d, h, f, l, L, att):
        super().__init__(); s.h = h
        s.qkv = nn.Linear(d, 3*d, bias=False); s.o = nn.Linear(d, d, bias=False)
        s.w12 = nn.Linear(d, 2*f, bias=False); s.w3 = nn.Linear(f, d, bias=False)
        s.n1 = nn.RMSNorm(d); s.n2 = nn.RMSNorm(d)
    def forward(s, x, cs):
        b, n, d = x.shape
        q, k, v = (t.reshape(b, n, s.h, -1).transpose(1, 2) for t in s.qkv(s.n1(x)).chunk(3, -1))
        def rope(t):
            a, c = t.chunk(2, -1); co, si = cs
            return torch.cat((a*co - c*si, a*si + c*co), -1).to(t.dtype)
        o = F.scaled_dot_product_attention(rope(q), rope(k), v, is_causal=True).transpose(1, 2).reshape(b, n, d)
        x = x + s.o(o)
        a, c = s.w12(s.n2(x)).chunk(2, -1)
        return x + s.w3(F.silu(a) * c)

class LM(nn.Module):
    def __init__(s, kind, size, att):
        super().__init__(); d, L, h, f = CFG[size]; s.kind, s.hd = kind, d//h
        s.emb = nn.Embedding(V, d); s.head = nn.Linear(d, V, bias=False)
        s.blocks = nn.ModuleList((TNLBlock if kind == "tnl" else LlamaBlock)(d, h, f, l, L, att) for l in range(L))
        for p in s.parameters():
            if p.dim() > 1: nn.init.normal_(p, std=0.02)
    def forward(s, t, y):
        x = s.emb(t).to(torch.bfloat16)
        if s.kind == "tnl":
            for b in s.blocks: x = b(x)
        else:
            n = t.shape[1]; inv = 10000**(-torch.arange(0, s.hd, 2, device=t.device).float()/s.hd)
            ang = torch.arange(n, device=t.device).float()[:, None]*inv; cs = (ang.cos(), ang.sin())
            for b in s.blocks: x = b(x, cs)
        return F.cross_entropy(s.head(srms(x)).flatten(0, 1).float(), y.flatten())

def run(kind, size, att, B, N, steps=8):
    torch._dynamo.reset(); torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    m = LM(kind, size, att).to(dev)
    P = sum(p.numel() for p in m.parameters()); Pne = P - m.emb.weight.numel()
    opt = torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True)
    f = torch.compile(m)
    t = torch.randint(0, V, (B, N+1), device=dev)
    def step():
        with torch.autocast("cuda", torch.bfloat16): loss = f(t[:, :-1], t[:, 1:])
        loss.backward(); torch.nn.utils.clip_grad_norm_(m.parameters(), 1.0, foreach=True); opt.step(); opt.zero_grad(set_to_none=True); return loss
    try:
        for _ in range(4): l = step()
        torch.cuda.synchronize(); ts = []
        for _ in range(steps):
            t0 = time.perf_counter(); step(); torch.cuda.synchronize(); ts.append(time.perf_counter()-t0)
        ts.sort(); dt = ts[len(ts)//2]; tok = B*N/dt
        d, L, h, ff = CFG[size]
        att_fl = (12*L*d*N/2 if kind == "llama" else 12*L*d*(d//h)) 
        fl = 6*Pne + att_fl
        print(f"{kind:5s} {size} {att:10s} B{B} N{N}: {tok:9.0f} tok/s  {fl*tok/1e12:6.1f} TFLOP/s  mfu989 {fl*tok/989e12*100:5.1f}%  peak {torch.cuda.max_memory_allocated()/2**30:5.1f} GiB params {P/1e9:.2f}B loss {l.item():.3f}", flush=True)
    except Exception as e:
        print(kind, size, att, B, N, "FAILED", str(e)[:300].replace("\n", " "), flush=True)
    del m, opt, f

for a in sys.argv[1:]:
    kind, size, att, B, N = a.split(","); run(kind, size, att, int(B), int(N))
