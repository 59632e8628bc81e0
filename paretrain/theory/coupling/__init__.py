"""From tables to a coupling: how alike the tasks are, how strongly to couple them, and what it should win."""

from paretrain.theory.coupling.couple import Advice, Estimate, MeanErrors, couple, learning_curve, penalty_grid
from paretrain.theory.coupling.fit import CoupledRidge, fit_coupled
from paretrain.theory.coupling.moments import Moments, estimate_moments
from paretrain.theory.coupling.optimum import optimal_common_and_own, optimal_penalty, optimal_weights
from paretrain.theory.coupling.prediction import RiskGrid, risk_grid
from paretrain.theory.coupling.sentence import advice_sentence
from paretrain.theory.coupling.validation import cross_validated_errors

__all__ = [
    "Advice",
    "CoupledRidge",
    "Estimate",
    "MeanErrors",
    "Moments",
    "RiskGrid",
    "advice_sentence",
    "couple",
    "cross_validated_errors",
    "estimate_moments",
    "fit_coupled",
    "learning_curve",
    "optimal_common_and_own",
    "optimal_penalty",
    "optimal_weights",
    "penalty_grid",
    "risk_grid",
]
