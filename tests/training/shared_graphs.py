"""What the trainer builds, compiled once for many runs. Weights and optimizer state start anew in each."""

import mindspore as ms
import numpy as np
from mindspore import ops

from mindspore_impl.losses.objective import LossNetwork, tensors_of
from mindspore_impl.training import optimizer, trainer
from mindspore_impl.training.optimizer import make_optimizer
from mindspore_impl.training.step import make_step
from tests.training import small


class SharedGraphs:
    """Networks, optimizers and steps by what they were made of."""

    def __init__(self):
        self.made = {}

    def get(self, key, make, *held):
        """What `make` returned for this key the first time. held: objects whose ids the key holds."""
        if key not in self.made:
            self.made[key] = make(), held
        return self.made[key][0]

    def linear(self, seed: int):
        """A linear network for the trainer, with the weights of `seed`."""
        network = self.get("linear", lambda: small.linear_network(metrics=7))
        set_weights(network, small.weights(small.linear_network(seed)))
        return network

    def make_optimizer(self, parameters, options, steps, ranks=1):
        """`optimizer.make_optimizer`, its state at zero."""
        key = ("optimizer", id(parameters[0]), repr(options), steps)
        found = self.get(key, lambda: make_optimizer(parameters, options, steps, ranks), parameters)
        for state in (*found.exp_avg, *found.exp_avg_sq, found.global_step):
            ops.assign(state, ms.Tensor(np.zeros(state.shape), state.dtype))
        return found

    def make_step(self, network, updates, *settings):
        """`step.make_step`."""
        key = ("step", id(network), id(updates), settings)
        return self.get(key, lambda: make_step(network, updates, *settings), network, updates)

    def step(self, options, accumulation: int = 1, max_grad_norm: float = 0.0):
        """-> a linear network, its optimizer, and a function that runs one step on micro-batches."""
        network = self.get(("linear", accumulation, max_grad_norm), small.linear_network)
        set_weights(network, small.weights(small.linear_network()))
        updates = self.make_optimizer(list(network.trainable_params()), options, 100)
        run = self.make_step(network, updates, max_grad_norm, accumulation, 2)
        return network, updates, lambda parts: run([tensors_of(part, False) for part in parts])

    def use(self, patch, linear: bool) -> None:
        """Let the trainer take what is here. linear: the model is its own objective."""

        def loss_network(model, *rest, **named):
            key = ("loss", id(model), repr((rest, named)))
            return model if linear else self.get(key, lambda: LossNetwork(model, *rest, **named), model)

        patch.setattr(trainer, "LossNetwork", loss_network)
        patch.setattr(trainer, "make_step", self.make_step)
        patch.setattr(optimizer, "make_optimizer", self.make_optimizer)
        patch.setattr(small, "linear", self.linear)
        # A compiled graph keeps the memory that it was compiled with: values are written there.
        patch.setattr(ms.Parameter, "set_data", lambda parameter, value: ops.assign(parameter, value))


def set_weights(model, values: dict[str, np.ndarray]) -> None:
    """Set parameters by name."""
    for parameter in model.get_parameters():
        ops.assign(parameter, ms.Tensor(values[parameter.name], parameter.dtype))
