"""Build a package: estimate, reference, weights, graphs, parity; it is published only when it is verified."""

import dataclasses
import gc
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mindspore_impl import files, runtime
from mindspore_impl.data.list_programs import generate
from mindspore_impl.data.options import ListProgramsSet
from mindspore_impl.errors import UserError
from mindspore_impl.export import mindir, package, parity
from mindspore_impl.export.options import ExportOptions
from mindspore_impl.export.stored import compute_dtype, stored_tensors, write_weights
from mindspore_impl.model.options import ModelOptions
from mindspore_impl.model.pangu import head_dim
from mindspore_impl.schema import check_ranges
from mindspore_impl.text.chat import render_prompt
from mindspore_impl.text.records import prompt_messages


def check_export(options: ExportOptions, model: ModelOptions, where: str) -> None:
    """Refuse numbers that cannot make a package. `where` is the config path. Raises UserError that names the key."""
    check_ranges(options, where)
    limit = model.max_position_embeddings
    if options.cache_length > limit:
        fault = f"{options.cache_length} is above the model's max_position_embeddings {limit}"
        raise UserError(f"{where}.cache_length: {fault}; set it to {limit} or less")
    if not options.buckets:
        raise UserError(f"{where}.buckets: name at least one prompt length")
    if len(set(options.buckets)) < len(options.buckets):
        raise UserError(f"{where}.buckets: {options.buckets}: a length stands twice")
    if (most := max(options.buckets)) > options.cache_length:
        raise UserError(f"{where}.buckets: {most} is longer than {where}.cache_length {options.cache_length}")


def memory_estimate(model: ModelOptions, options: ExportOptions) -> dict[str, int]:
    """Modelled bytes on the board: weights of one graph, cache (input and output), activations of the largest prefill.

    Also the totals if the graphs share their weights (a runtime option) and if each holds its own.
    """
    tensors = stored_tensors(model, options.precision, options.cache_length)
    weights = sum(stored.size for stored in tensors.values())
    width = 2 if compute_dtype(options.precision) == "float16" else 4
    cache = 2 * 2 * model.num_hidden_layers * model.num_key_value_heads * head_dim(model) * options.cache_length * width
    length, queries = max(options.buckets), model.num_attention_heads * head_dim(model)
    row = 4 * (6 * model.hidden_size + 4 * queries + 3 * model.intermediate_size)  # float32 at its widest place
    activations = length * row + 3 * 4 * model.num_attention_heads * length**2 + 4 * 2 * model.vocab_size
    if options.precision == "int8":  # the largest weight of a layer while it is dequantised
        activations += 12 * max(model.hidden_size * model.intermediate_size, model.hidden_size * queries)
    graphs = len(options.buckets) + 1
    return {
        "weights": weights,
        "cache": cache,
        "activations": activations,
        "weights_shared": weights + cache + activations,
        "weights_in_each_graph": graphs * weights + cache + activations,
    }


def in_words(size: int) -> str:
    """Format bytes as MiB or GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _print_estimate(estimate: dict[str, int], options: ExportOptions) -> None:
    part = {key: in_words(value) for key, value in estimate.items()}
    print(
        f"board memory, modelled ({options.precision}, cache {options.cache_length}, buckets {options.buckets}): "
        f"weights {part['weights']}, cache {part['cache']}, activations {part['activations']}; "
        f"{part['weights_shared']} if the graphs share their weights, {part['weights_in_each_graph']} if each of "
        f"the {len(options.buckets) + 1} holds its own",
        flush=True,
    )


def export_package(
    target: Path,
    model_options: ModelOptions,
    build: Callable[[], tuple],
    tokenizer,
    prompts: list[list[int]],
    options: ExportOptions,
    measure: Callable[[Path, parity.Reference], dict] = parity.measure_alone,
    key: str = "export",
) -> dict:
    """Build the package `target` and return its parity report. An earlier package stays until the new one is verified.

    Args:
        target: folder of the package: new, empty, or an earlier package.
        model_options: sizes of the model.
        build: returns (training model with its weights, their sha256); called once, so that the model can be freed as
            soon as its weights are written.
        tokenizer: the model's tokenizer, whose file is copied.
        prompts: token ids of the texts that are compared.
        options: precision, sizes and parity settings.
        measure: compares the package in a folder with the reference.
        key: where the options stand in the configuration, for messages.

    Raises UserError for options out of range, a tokenizer or prompt that does not fit, a `target` that holds something
    else, or a package that differs from the training graph.
    """
    check_export(options, model_options, key)
    options = dataclasses.replace(options, buckets=sorted(options.buckets))
    steps = check_prompts(prompts, options, key)
    if tokenizer.vocab_size > model_options.vocab_size:
        fault = f"{tokenizer.vocab_size} pieces, but the model has {model_options.vocab_size}"
        raise UserError(f"{tokenizer.path}: {fault}; use the tokenizer that the model was made for")
    if target.exists() and not (target.is_dir() and (package.is_package(target) or not any(target.iterdir()))):
        raise UserError(f"{target}: exists and is no package; choose another folder")
    _print_estimate(memory_estimate(model_options, options), options)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as name:
        scratch = Path(name)
        precisions = list(dict.fromkeys([options.precision, *options.compare]))
        wanted, digest = _take_weights(scratch, precisions, build, prompts, steps, options)
        gc.collect()  # the training model is not needed any more
        report = {
            "device": runtime.device_description(),
            "prompts": [len(prompt) for prompt in prompts],
            "tokens_each": steps,
            "training_graph": {"dtype": str(runtime.compute_dtype()), "seconds_per_token": wanted.seconds_per_token},
            "packages": {},
        }
        for precision in precisions:
            folder = scratch / precision
            _write_graphs(folder, precision, model_options, tokenizer, digest, options)
            sizes = {
                "weights": (folder / package.WEIGHTS).stat().st_size,
                "graphs": sum(path.stat().st_size for path in folder.glob("*.mindir")),
            }
            report["packages"][precision] = measure(folder, wanted) | {"bytes": sizes}
            parity.check(precision, report["packages"][precision])
            _print_row(precision, report["packages"][precision], len(prompts))
            if precision != options.precision:
                shutil.rmtree(folder)
        folder = scratch / options.precision
        files.write_json(folder / package.PARITY, report)
        package.add_file(folder, package.PARITY)
        package.open_package(folder)  # verify the whole package once more
        os.chmod(folder, 0o755)
        files.put_folder(folder, target)
    return report


def check_prompts(prompts: list[list[int]], options: ExportOptions, where: str) -> int:
    """How many tokens can follow every prompt, at most `parity_tokens`. `where`: the config path of `options`."""
    longest = max(map(len, prompts))
    fault = f"a parity prompt has {longest} tokens, "
    if longest > (most := max(options.buckets)):
        remedy = f"add one of {longest} or more, or give shorter prompts"
        raise UserError(f"{where}.buckets: {fault}longer than the largest bucket {most}; {remedy}")
    if longest >= options.cache_length:
        fault += f"which leaves no room in a cache of {options.cache_length}"
        raise UserError(f"{where}.cache_length: {fault}; set it higher, or give shorter prompts")
    return min(options.parity_tokens, options.cache_length - longest)


def _take_weights(scratch: Path, precisions, build, prompts, steps: int, options: ExportOptions):
    """Everything that needs the training model: the reference, and the weights in every precision."""
    model, digest = build()
    model.set_train(False)
    wanted = parity.reference(model, prompts, steps)
    values = {parameter.name: parameter for parameter in model.get_parameters()}

    def value_of(name: str) -> np.ndarray:
        return values[name].asnumpy().astype(np.float32, copy=False)

    for precision in precisions:
        (scratch / precision).mkdir()
        write_weights(scratch / precision / package.WEIGHTS, model.options, precision, options.cache_length, value_of)
    return wanted, digest


def _write_graphs(folder: Path, precision: str, model: ModelOptions, tokenizer, digest, options: ExportOptions) -> None:
    found = set()
    for name in package.graph_names(options.buckets):
        path = folder / f"{name}.mindir"
        files.write_blocks(path, [_trace(name, model, precision, options.cache_length)])
        proto = mindir.read_graph(path)
        mindir.check_plain(proto, path)
        found |= mindir.operators(proto)
        gc.collect()
    about = {
        "precision": precision,
        "cache_length": options.cache_length,
        "buckets": options.buckets,
        "batch": 1,
        "target_soc": options.target_soc,
        "source_weights_sha256": digest,
        "memory_estimate_bytes": memory_estimate(model, options),
        "operators": sorted(found),
        "versions": runtime.versions(),
    }
    package.write_manifest(folder, model, tokenizer, about)


def _trace(name: str, model: ModelOptions, precision: str, slots: int) -> bytes:
    from mindspore import Tensor

    from mindspore_impl.export.portable import PortableDecode, PortablePrefill

    cell = (PortableDecode if name == package.DECODE else PortablePrefill)(model, precision, slots)
    cell.set_train(False)
    ports = package.graph_ports(model, precision, slots, name)[0]
    return mindir.trace(cell, *[Tensor(np.zeros(port.shape, port.dtype)) for port in ports])


def _print_row(precision: str, row: dict, prompts: int) -> None:
    difference, memory, seconds = row["max_logits_difference"], row.get("process_memory_bytes", {}), row["seconds"]
    line = (
        f"{precision}: logits differ by {difference['prefill']:.2g} (prefill) and {difference['decode']:.2g} (decode), "
        f"KL {row['kl_nats']:.2g} nats, top-1 agreement {row['top1_agreement']:.1%}, greedy text equal on "
        f"{row['greedy_equal_prompts']} of {prompts}; {seconds['per_token'] * 1e3:.1f} ms a token, weights "
        f"{in_words(row['bytes']['weights'])}"
    )
    if memory.get("both_graphs"):
        line += f", memory {in_words(memory['one_graph'])} with one graph, {in_words(memory['both_graphs'])} with both"
    print(line, flush=True)


def default_prompts(tokenizer, count: int) -> list[list[int]]:
    """Prompts of the bundled task, half of them in each thinking mode."""
    found = []
    for index in range(count):
        thinking = ("reasoning", "fast")[index % 2]
        (record,) = generate(ListProgramsSet(split="test", skip=index, count=1, thinking=thinking))
        found.append(render_prompt(prompt_messages(record), tokenizer, thinking))
    return found
