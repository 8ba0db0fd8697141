"""Training on stored teacher distributions, mixed with hard labels."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from mindspore_impl.curriculum.stages.base import Context, Shared, problem_of, stage_kind
from mindspore_impl.curriculum.stages.inputs import file_hash, is_path
from mindspore_impl.curriculum.stages.sft import SftStage
from mindspore_impl.data.options import ROLLOUTS
from mindspore_impl.data.teacher_store import CAPTURE_AGAIN, read_header
from mindspore_impl.errors import UserError
from mindspore_impl.losses.options import ObjectiveOptions
from mindspore_impl.schema import option
from mindspore_impl.text.tokenizer import check_tokenizer


@stage_kind
@dataclass(kw_only=True)
class DistillStage(SftStage):
    """Training on stored teacher distributions. The set `rollouts` of the mixture stands for the `rollouts` input."""

    kind: Literal["distill"] = "distill"
    store: str = option("", artifact="store")  # capture stage, or the path of a store
    rollouts: str | None = option(None, artifact="rollouts")  # rollout stage or file whose answers are trained on
    objective: ObjectiveOptions = field(default_factory=ObjectiveOptions)

    def resolved(self, shared: Shared) -> "DistillStage":
        """With `objective.ce_weight`, except for a file of rollouts, whose hashes decide when the stage starts."""
        answers = self.rollouts and ROLLOUTS in self.mixture()
        if answers and is_path(self.rollouts):
            return self
        own = bool(answers) and shared.stages[self.rollouts].model_name(shared) == self.model
        return replace(self, objective=self._objective(own))

    def _objective(self, own: bool) -> ObjectiveOptions:
        """The objective with its `ce_weight`; null is 0 where only the student's own answers are trained on.

        There cross-entropy makes it surer of whatever it says. own: whether the rollouts are the student's.
        """
        from mindspore_impl.losses.oracle import ce_weight

        if self.objective.ce_weight is not None:
            return self.objective
        alone = own and set(self.mixture()) == {ROLLOUTS}
        return replace(self.objective, ce_weight=0.0 if alone else ce_weight(self.objective))

    def loss(self, context: Context, key: str, init_sha256: str | None) -> ObjectiveOptions:
        found = self.objective
        if found.ce_weight is None:
            hashes = {rollout.weights_sha256 for rollout in context.load(self.rollouts, "rollouts")}
            own = init_sha256 is not None and init_sha256 in hashes
            if own and len(hashes) > 1:
                fault = f"{self.rollouts} holds answers of the initial weights and of others"
                raise UserError(f"{key}.objective.ce_weight: {fault}; give the weight of cross-entropy on both")
            found = self._objective(own)
        print(f"  objective: {found.ce_weight:g} CE + {found.kd_weight:g} KD ({found.divergence}, {found.support})")
        return found

    def work(self) -> str:
        from mindspore_impl.losses.divergences import runs_composed

        ce, kd = self.objective.ce_weight, self.objective.kd_weight
        terms = f", {'CE by the hashes of the rollouts' if ce is None else f'{ce:g} CE'} + {kd:g} KD"
        composed = f", {self.objective.divergence} with composed operators"
        return super().work() + terms + (composed if runs_composed(self.objective.divergence) else "")

    def teacher(self, context: Context, key: str, known: bool = False):
        from mindspore_impl.data.teacher_store import StoreReader

        if known and not is_path(self.store):
            return None
        path, size = context.load(self.store, "store"), context.model_options(self.model).vocab_size
        reader = StoreReader(path, context.tokenizer.sha256, hashed=not known)
        header = reader.header
        if found := list(self._misfits(key, header, header.vocab_size, size)):
            raise UserError("; ".join(found))
        return reader

    def _misfits(self, key: str, made: Any, stored: int, size: int) -> Iterator[str]:
        """Why a store of the header or capture options `made`, of `stored` ids, does not serve a student of `size`."""
        source = f"{key}.store={self.store}"
        if (made.mode == "sampled") != (self.objective.support == "sampled"):
            fault = f"{self.objective.support!r} does not fit the mode {made.mode!r} of {source}"
            yield f"{key}.objective.support: {fault}; sampled goes with sampled only"
        if made.temperature != self.objective.temperature:
            fault = f"{self.objective.temperature} differs from the temperature {made.temperature} of {source}"
            yield f"{key}.objective.temperature: {fault}; a top-k store cannot be re-tempered"
        if stored != size:
            fault = f"{size} differs from the {stored} ids of {source}"
            yield f"models.{self.model}.vocab_size: {fault}, which has no mass on others; set it to {stored}"

    def problems(self, key: str, shared: Shared) -> Iterator[str]:
        from mindspore_impl.losses.oracle import check_objective

        yield from super().problems(key, shared)
        yield from problem_of(check_objective, self.resolved(shared).objective, f"{key}.objective")
        mixed = ROLLOUTS in self.mixture() and len(self.mixture()) > 1
        if mixed and self.objective.ce_weight is None and self.objective.kd_weight != 1:
            yield f"{key}.objective.ce_weight: give a number, as {key}.data.mixture holds rollouts and labels"
        size = shared.models[self.model].vocab_size or shared.vocabulary()
        if is_path(self.store):  # its samples are looked up once there is a tokenizer
            try:
                header, file = read_header(self.store), shared.tokenizer.path
                if file is not None:
                    check_tokenizer(header.tokenizer_sha256, file_hash(Path(file)), self.store, CAPTURE_AGAIN)
            except UserError as error:
                yield f"{key}.store: {error}"
                return
            yield from self._misfits(key, header, header.vocab_size, size)
            return
        maker, maker_key = shared.stages[self.store], f"stages.{self.store}"
        if (capture := getattr(maker, "capture", None)) is None:
            return  # a kind of its own; the store itself is checked when this stage starts
        # It has the ids of the tokenizer, whatever the teacher's vocabulary.
        yield from self._misfits(key, capture, shared.vocabulary(), size)
        sets = shared.data.sets
        for name in self.mixture():
            if name == ROLLOUTS and self.rollouts != maker.rollouts:
                yield f"{key}.rollouts: {self.rollouts!r} was not captured; {maker_key}.rollouts is {maker.rollouts!r}"
            elif name != ROLLOUTS and not any(sets[each] == sets[name] for each in maker.sets):  # equal records
                yield f"{key}.data.mixture.{name}: not captured; add it to {maker_key}.sets"
