"""What is learned: an objective joins its data half (`data/objectives.py`) with a loss.

Setting up, checks and the step ask the objective what they need to know; they never test for its
name. A new objective is a class here, one there, and their entries under the same name.
"""

import functools

from jax.sharding import Mesh
from ml_collections import ConfigDict

from data import objectives as data_objectives
from data.objectives import DataObjective
from data.pairs import read as read_pairs
from model.config import ModelConfig
from model.errors import did_you_mean
from model.loss import weighted_token_loss
from runtime.errors import RunError
from train import contrastive
from train.losses import Loss, TokenLoss


class Objective:
    """One objective; `config` is a whole experiment, `model` the architecture of its model."""

    data: DataObjective
    needs_parent: bool  # a model that has learned from texts before
    computes_logits: bool

    def check_config(self, config: ConfigDict) -> None:
        """Raises RunError where fields do not fit each other under this objective."""

    def check_mesh(self, mesh: Mesh) -> None:
        """Raises RunError where the mesh cuts what this objective needs whole."""

    def check_model(self, config: ConfigDict, model: ModelConfig) -> None:
        """Raises RunError or ModelError where the model cannot learn this."""

    def training_loss(self, config: ConfigDict, model: ModelConfig) -> Loss:
        """Returns the loss to train with."""
        raise NotImplementedError

    def evaluation_loss(self, config: ConfigDict, model: ModelConfig) -> Loss:
        """Returns the loss to evaluate with."""
        raise NotImplementedError


class NextToken(Objective):
    """Predict each token from those before it; after a question, only the answer counts."""

    data = data_objectives.NextToken()
    needs_parent = False
    computes_logits = True

    def check_config(self, config):
        if not config.model.causal:
            raise RunError(
                'config.model.causal is False: the next token would be seen; expected '
                "config.train.objective='contrastive'"
            )

    def training_loss(self, config, model):
        of_logits = functools.partial(weighted_token_loss, z_loss=config.train.z_loss)
        return TokenLoss(of_logits, config.train.loss_chunks)

    def evaluation_loss(self, config, model):
        return TokenLoss(weighted_token_loss, config.train.loss_chunks)


class Contrastive(Objective):
    """Give texts vectors, so that those that belong together are the nearest."""

    data = data_objectives.Contrastive()
    needs_parent = True
    computes_logits = False

    def check_config(self, config):
        pairs = config.data.pairs
        if 'same' not in read_pairs.kinds_to_make(config.data):
            return
        if not config.model.dropout:
            raise RunError(
                'config.model.dropout is 0.0: nothing else tells a text from itself '
                "(config.data.pairs.kind 'same'); expected more than 0"
            )
        if 0 < pairs.query_len < config.data.seq_len:
            raise RunError(
                f'config.data.pairs.query_len is {pairs.query_len}: texts would be compared with '
                f"their beginnings (config.data.pairs.kind 'same'); expected 0"
            )

    def check_mesh(self, mesh):
        if mesh.shape['context'] > 1:
            raise RunError(
                f'config.mesh.context is {mesh.shape["context"]}: expected 1, since a contrastive '
                f'objective cuts no text over devices'
            )

    def check_model(self, config, model):
        self.training_loss(config, model)

    def training_loss(self, config, model):
        return contrastive.make_loss(config.embedding, model)

    evaluation_loss = training_loss


OBJECTIVES: dict[str, Objective] = {'tokens': NextToken(), 'contrastive': Contrastive()}


def get_objective(name: str) -> Objective:
    """Returns the objective of this name (`config.train.objective`).

    Raises RunError where there is none, with the nearest.
    """
    if name not in OBJECTIVES:
        raise RunError(f'config.train.objective is {name!r}: {did_you_mean(name, OBJECTIVES)}')
    return OBJECTIVES[name]
