"""Stand-ins for the fused Ascend operators: they check what the documentation demands, note the call and compute the
documented result with CPU operators, so that the Ascend branches run here as far as a CPU allows."""

import numpy as np
import pytest


@pytest.fixture
def ascend(ms_runtime, monkeypatch):
    """Build Cells as on Ascend; the dict holds, a primitive, the keyword view of its last call."""
    import mindspore as ms
    from mindspore import ops

    calls = {}

    def rms_norm(x, gamma, epsilon=1e-6):
        assert x.dtype == gamma.dtype and 0 < epsilon <= 1
        calls["rms_norm"] = {"x": x.shape, "gamma": gamma.shape, "epsilon": epsilon}
        scale = ops.rsqrt((x * x).mean(-1, keep_dims=True) + epsilon)
        return x * scale * gamma, scale

    def swiglu(x, dim=-1):
        calls["swiglu"] = {"x": x.shape, "dim": dim}
        gate, up = ops.split(x, x.shape[dim] // 2, dim)
        return ops.silu(gate) * up

    def rotary(x, cos, sin, mode=0):
        assert x.ndim == cos.ndim == sin.ndim == 4 and x.dtype == cos.dtype == sin.dtype
        # layout BSND with a 1S1D table
        assert cos.shape == sin.shape == (1, x.shape[1], 1, x.shape[3]) and x.shape[3] < 896
        calls.setdefault("rotary", []).append({"x": x.shape, "mode": mode})
        first, second = ops.split(x, x.shape[-1] // 2, -1)
        return x * cos + ops.concat((-second, first), -1) * sin

    def flash(query, key, value, head_num, **named):
        calls["flash"] = {"query": query.shape, "key": key.shape, "head_num": head_num, **named}
        ends = named["actual_seq_qlen"].asnumpy()
        assert named["input_layout"] == "TND" and named["sparse_mode"] in (2, 3) and named["next_tokens"] == 0
        assert (np.diff(ends) >= 0).all() and len(ends) <= 1024
        if ends[-1] != query.shape[0]:
            raise RuntimeError("actual_seq_qlen must end at T1")
        out, group = np.zeros(query.shape, np.float32), query.shape[1] // key.shape[1]
        q, k, v = query.asnumpy(), key.asnumpy(), value.asnumpy()
        hidden = named["attn_mask"].asnumpy()
        for start, stop in zip([0, *ends[:-1]], ends, strict=True):
            size = stop - start
            for head in range(query.shape[1] if size else 0):
                scores = q[start:stop, head] @ k[start:stop, head // group].T * named["scalar_value"]
                scores = np.where(hidden[:size, :size] == 1, -np.inf, scores)
                weights = np.exp(scores - scores.max(-1, keepdims=True))
                out[start:stop, head] = weights / weights.sum(-1, keepdims=True) @ v[start:stop, head // group]
        return ms.Tensor(out)

    monkeypatch.setattr(ops, "rms_norm", rms_norm)
    monkeypatch.setattr(ops, "swiglu", swiglu)
    monkeypatch.setattr(ops, "rotary_position_embedding", rotary)
    monkeypatch.setattr(ops, "flash_attention_score", flash)
    monkeypatch.setitem(ms_runtime._state, "device", "Ascend")
    ms.set_context(mode=ms.PYNATIVE_MODE)
    yield calls
    ms.set_context(mode=ms.GRAPH_MODE)
