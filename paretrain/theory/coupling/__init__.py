"""From tables to a coupling: how alike the tasks are, how strongly to couple them, and what it should win."""

from paretrain.theory.coupling.couple import Advice, Design, Estimate, MeanErrors, couple, learning_curve
from paretrain.theory.coupling.dual import CoupledRidge, fit_in_dual
from paretrain.theory.coupling.grid import PenaltyGrid, penalty_grid
from paretrain.theory.coupling.moments import Moments, estimate_moments
from paretrain.theory.coupling.optimum import optimal_common_and_own, optimal_penalty, optimal_weights
from paretrain.theory.coupling.prediction import OwnRows, SharedRows, predict_own_rows, predict_shared_rows
from paretrain.theory.coupling.sentence import advice_sentence

__all__ = [
    "Advice",
    "CoupledRidge",
    "Design",
    "Estimate",
    "MeanErrors",
    "Moments",
    "OwnRows",
    "PenaltyGrid",
    "SharedRows",
    "advice_sentence",
    "couple",
    "estimate_moments",
    "fit_in_dual",
    "learning_curve",
    "optimal_common_and_own",
    "optimal_penalty",
    "optimal_weights",
    "penalty_grid",
    "predict_own_rows",
    "predict_shared_rows",
]
