"""The checkpoint benchmark: the model it names, a save that is really made and waited for."""

from mindspore_impl.checkpoint import Background, latest
from mindspore_impl.curriculum.configuration import compose
from mindspore_impl.speed import checkpoint as benchmark


def test_it_trains_a_model_of_the_teachers_size():
    teacher = compose(["model@models.teacher=tiny_teacher"]).models["teacher"]
    names = "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads".split()
    assert all(getattr(teacher, name) == getattr(benchmark.SIZES, name) for name in names)


def test_the_whole_state_is_saved(ms_runtime, tmp_path):
    _, save, size = benchmark.training()  # compiles nothing yet
    with Background() as background:
        save(background, tmp_path)
    found = latest(tmp_path / "small")
    assert found.weights_path.stat().st_size + found.optimizer_path.stat().st_size > size > 10 << 20
