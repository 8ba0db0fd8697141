"""A session against the training graph, and what it refuses."""

import importlib.machinery
import sys
import types

import numpy as np
import pytest

from mindspore_impl.errors import UserError
from mindspore_impl.export.build import default_prompts, export_package
from mindspore_impl.export.options import ExportOptions
from mindspore_impl.export.package import graph_ports, open_package
from mindspore_impl.export.session import MindSporeGraphs, open_session
from tests.export.conftest import BUCKETS, CACHE, PROMPTS, full_logits, in_this_process
from tests.model.small_models import SHAPES, build, small_options


@pytest.fixture(scope="module")
def session(ms_runtime, packages):
    return open_session(packages["fp32"][0], engine="mindspore")


def prefill(session, ids):
    return session.prefill(np.array([ids], np.int32), np.array([len(ids)]))


def greedy(session, ids, count):
    found = [int(prefill(session, ids).argmax())]
    while len(found) < count:
        found.append(int(session.decode(np.array(found[-1:]), np.array([len(ids) + len(found) - 1])).argmax()))
    return found


def test_greedy_text_is_that_of_the_training_graph(session, model):
    for prompt in PROMPTS:
        found = greedy(session, prompt, 24)
        wanted = full_logits(model, prompt + found).argmax(axis=1)[len(prompt) - 1 : -1]
        assert len(found) == 24 and found == wanted.tolist()


def test_logits_are_those_of_the_training_graph(session, model):
    for prompt in PROMPTS:
        found = [prefill(session, prompt)[0]]
        ids = prompt + [3, 70, 9, 9, 0]
        for place in range(len(prompt), len(ids)):
            found.append(session.decode(np.array([ids[place]]), np.array([place]))[0])
        wanted = full_logits(model, ids)[len(prompt) - 1 :]
        assert np.abs(np.array(found) - wanted).max() <= 1e-5


def test_a_new_prompt_forgets_the_last(session):
    alone = prefill(session, PROMPTS[0])
    step = session.decode(np.array([3]), np.array([len(PROMPTS[0])]))
    prefill(session, PROMPTS[1])
    session.decode(np.array([4]), np.array([len(PROMPTS[1])]))
    np.testing.assert_array_equal(prefill(session, PROMPTS[0]), alone)
    np.testing.assert_array_equal(session.decode(np.array([3]), np.array([len(PROMPTS[0])])), step)


def test_padding_is_never_seen(session):
    """The same prompt, wider and full of other ids behind its end."""
    wide = np.full((1, 20), 77, np.int32)
    wide[0, : len(PROMPTS[0])] = PROMPTS[0]
    np.testing.assert_array_equal(session.prefill(wide, np.array([len(PROMPTS[0])])), prefill(session, PROMPTS[0]))
    assert session.padded(5) == 12 and session.padded(13) == 24 and session.slots == CACHE


def test_refusals(session, packages):
    with pytest.raises(UserError, match="prompt of 25 tokens is longer than the largest bucket 24"):
        prefill(session, [3] * 25)
    for ids in ([], [-1], [session.vocab_size]):
        with pytest.raises(UserError, match="the prompt must hold ids from 0 to"):
            session.prefill(np.array([ids], np.int32).reshape(1, -1), np.array([len(ids)]))
    with pytest.raises(UserError, match="one sequence at a time, found 2"):
        session.prefill(np.ones((2, 4), np.int32), np.array([4, 4]))
    prefill(session, PROMPTS[0])
    session.decode(np.array([3]), np.array([CACHE - 1]))
    with pytest.raises(UserError, match="cache of 96 tokens is full"):
        session.decode(np.array([3]), np.array([CACHE]))
    with pytest.raises(ValueError, match="needs a prefill"):
        open_session(packages["fp32"][0]).decode(np.array([3]), np.array([0]))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_narrow_weights_stay_near(packages, precision):
    row = packages[precision][1]["packages"][precision]
    worst, limit = max(row["max_logits_difference"].values()), {"fp16": 0.02, "int8": 0.2}[precision]
    assert 1e-4 < worst < limit * row["largest_logit"]
    assert row["top1_agreement"] > 0.9 and row["kl_nats"] < 0.02


@pytest.mark.parametrize("shape", ["untied_wide_head", pytest.param("o_bias_only", marks=pytest.mark.slow)])
def test_other_shapes(ms_runtime, tokenizer, tmp_path, shape):
    options = small_options(**SHAPES[shape], vocab_size=tokenizer.vocab_size)
    settings = ExportOptions("fp32", 24, [16], compare=[], parity_tokens=3)
    report = export_package(
        tmp_path / "p", options, lambda: (build(options), "x"), tokenizer, PROMPTS[:1], settings, in_this_process
    )
    assert max(report["packages"]["fp32"]["max_logits_difference"].values()) <= 2e-5


class FakeLite(types.ModuleType):
    """Records the calls of the documented mindspore_lite API; its graphs count, and hand caches on plus one."""

    def __init__(self, package, wrong=None):
        super().__init__("mindspore_lite")
        self.calls, outer = [], self
        self.ModelType = types.SimpleNamespace(MINDIR="MINDIR")

        class Tensor:
            def __init__(self, shape):
                self.shape, self.array = list(shape), None

            def set_data_from_numpy(self, array):
                assert list(array.shape) == self.shape
                self.array = array

            def get_data_to_numpy(self):
                return self.array

        class Context:
            def __init__(self):
                self.target, self.ascend = None, types.SimpleNamespace(device_id=None)

        class Model:
            def build_from_file(self, path, kind, context):
                self.name = path.rsplit("/", 1)[-1].removesuffix(".mindir")
                outer.calls.append(("build", self.name, kind, context.target, context.ascend.device_id))
                ports = graph_ports(package.model, package.precision, package.cache_length, self.name)
                self.inputs = [Tensor(wrong or port.shape) for port in ports[0]]
                self.ports = ports

            def get_inputs(self):
                return self.inputs

            def predict(self, inputs):
                outer.calls.append(("predict", self.name, [tensor.array.ravel()[0] for tensor in inputs[:3]]))
                outputs = [Tensor(port.shape) for port in self.ports[1]]
                given = [tensor.array for tensor in inputs[2:]] or [
                    np.zeros(p.shape, p.dtype) for p in self.ports[1][1:]
                ]
                outputs[0].array = np.eye(1, package.model.vocab_size, 5, np.float16)
                for tensor, array in zip(outputs[1:], given, strict=True):
                    tensor.array = array + 1
                return outputs

        self.Tensor, self.Context, self.Model = Tensor, Context, Model


@pytest.fixture
def lite(package, monkeypatch):
    def install(wrong=None):
        fake = FakeLite(open_package(package), wrong)
        fake.__spec__ = importlib.machinery.ModuleSpec("mindspore_lite", None)
        monkeypatch.setitem(sys.modules, "mindspore_lite", fake)
        (package / "lite").mkdir(exist_ok=True)
        for name in ("prefill_12", "prefill_24", "decode"):
            (package / "lite" / f"{name}.mindir").write_bytes(b"converted")
        return fake

    return install


def test_lite_runs_the_converted_graphs(ms_runtime, package, lite):
    fake = lite()
    found = greedy(open_session(package), PROMPTS[0], 3)
    builds = [call for call in fake.calls if call[0] == "build"]
    assert builds == [("build", name, "MINDIR", ["ascend"], 0) for name in ("prefill_12", "prefill_24", "decode")]
    assert found == [5, 5, 5]
    steps = [call for call in fake.calls if call[0] == "predict"]
    assert [name for _, name, _ in steps] == ["prefill_12", "decode", "decode"]
    assert steps[0][2] == [PROMPTS[0][0], len(PROMPTS[0]) - 1]
    assert steps[1][2] == [5, 6, 1.0] and steps[2][2] == [5, 7, 2.0]  # token, place, cache of the step before


def test_lite_graph_of_another_package(ms_runtime, package, lite):
    lite(wrong=(7,))
    with pytest.raises(UserError, match=r"lite/prefill_12\.mindir: its inputs are .*convert it again"):
        open_session(package)


def test_lite_is_taken_only_when_it_is_whole_and_installed(ms_runtime, package, lite, monkeypatch):
    lite()
    (package / "lite" / "decode.mindir").unlink()
    assert isinstance(open_session(package).graphs, MindSporeGraphs)
    with pytest.raises(UserError, match=r"no lite/decode\.mindir"):
        open_session(package, engine="lite")
    lite()
    monkeypatch.delitem(sys.modules, "mindspore_lite")
    with pytest.raises(UserError, match="no mindspore_lite here"):
        open_session(package, engine="lite")


def test_chat_runs_on_a_package(ms_runtime, packages, tokenizer):
    from mindspore_impl import SamplingOptions, chat, generate, load_model, load_tokenizer

    folder = packages["fp32"][0]
    sampling = SamplingOptions(temperature=0.0, max_new_tokens=5)
    conversation = chat(load_model(folder), load_tokenizer(folder), sampling)
    assert conversation.decoder.slots == CACHE and conversation.tokenizer.sha256 == tokenizer.sha256
    assert BUCKETS[-1] >= 17
    list(conversation.ask("list a b c apply sort"))
    assert len(conversation.messages) == 2
    (answer,) = generate(conversation.decoder, conversation.tokenizer, ["list a b c apply sort"], sampling)
    assert answer.answer == conversation.messages[1].content


@pytest.mark.slow
def test_greedy_text_of_a_larger_model(ms_runtime, tokenizer, tmp_path):
    """Eight layers of 512, about 27 million parameters, all precisions, each in a process of its own."""
    from mindspore_impl.model.options import ModelOptions
    from mindspore_impl.model.pangu import PanguForCausalLM

    options = ModelOptions(
        tokenizer.vocab_size, 512, 1536, 8, 8, 4, rope_theta=4e6, max_position_embeddings=256, initializer_range=0.06
    )
    settings = ExportOptions("fp32", 128, [64], compare=["fp32", "fp16", "int8"])
    report = export_package(
        tmp_path / "p", options, lambda: (PanguForCausalLM(options, seed=1), "x"), tokenizer,
        default_prompts(tokenizer, 2), settings,
    )  # fmt: skip
    rows = report["packages"]
    assert rows["fp32"]["greedy_tokens_equal"] == [64, 64]
    assert max(rows["fp32"]["max_logits_difference"].values()) <= 1e-5 * max(1.0, rows["fp32"]["largest_logit"])
    assert (
        rows["int8"]["bytes"]["weights"]
        < 0.6 * rows["fp16"]["bytes"]["weights"]
        < 0.32 * rows["fp32"]["bytes"]["weights"]
    )
    weights = rows["fp32"]["bytes"]["weights"]
    memory = rows["fp32"]["process_memory_bytes"]
    assert memory["both_graphs"] - memory["one_graph"] < 0.7 * weights  # the second graph brings no weights of its own
