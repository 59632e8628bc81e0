"""The limits: test error of coupled linear models for many features and samples."""

from paretrain.theory.asymptotics.convex import ConvexLimit, convex_limit
from paretrain.theory.asymptotics.equivalent import SingleTask, equivalent_single_tasks, single_task_errors
from paretrain.theory.asymptotics.exchangeable import ExchangeableLimit, exchangeable_limit
from paretrain.theory.asymptotics.losses import LOGISTIC, SQUARED, Loss
from paretrain.theory.asymptotics.penalty import common_and_own, coupling, mean_regularised
from paretrain.theory.asymptotics.population import LABELS, Population, exchangeable_gram, perceptron
from paretrain.theory.asymptotics.resolvent import NotConvergedError, Resolvent, resolvent
from paretrain.theory.asymptotics.ridge import RidgeLimit, classification_errors, ridge_limit
from paretrain.theory.asymptotics.shared_design import (
    CanonicalDirections,
    SharedFactors,
    canonical_directions,
    canonical_error_covariance,
    shared_error_covariance,
    shared_factors,
)

__all__ = [
    "LABELS",
    "LOGISTIC",
    "SQUARED",
    "CanonicalDirections",
    "ConvexLimit",
    "ExchangeableLimit",
    "Loss",
    "NotConvergedError",
    "Population",
    "Resolvent",
    "RidgeLimit",
    "SharedFactors",
    "SingleTask",
    "canonical_directions",
    "canonical_error_covariance",
    "classification_errors",
    "common_and_own",
    "convex_limit",
    "coupling",
    "equivalent_single_tasks",
    "exchangeable_gram",
    "exchangeable_limit",
    "mean_regularised",
    "perceptron",
    "resolvent",
    "ridge_limit",
    "shared_error_covariance",
    "shared_factors",
    "single_task_errors",
]
