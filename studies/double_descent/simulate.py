"""Draw tasks, fit them, and measure their errors exactly.

Shapes: T tasks, N rows of each, P features.
"""

import numpy as np
from scipy.linalg import solve
from scipy.optimize import minimize
from scipy.special import expit

from paretrain.theory.asymptotics import LABELS, coupling, equivalent_single_tasks, ridge_limit
from studies.double_descent.setting import Setting


def simulate(setting: Setting, generator: np.random.Generator) -> float:
    """Draw T tasks, fit them together, and return the mean of their errors on new samples.

    The error follows from the fitted weights: no test samples are needed.
    """
    features_TNP, labels_TN = draw_tasks(setting, generator)
    fit = fit_logistic if setting.loss == "logistic" else fit_ridge
    return errors(setting, fit(features_TNP, labels_TN, setting.common, setting.own))


def simulate_equivalent(setting: Setting, generator: np.random.Generator) -> float:
    """Draw the data of task 0 alone, fit the equivalent single task (equation 10), and return its error.

    The other tasks' data are not drawn: their influence is the target m, drawn from its law.
    """
    num_tasks, ratio_T = int(setting.num_tasks), np.full(int(setting.num_tasks), setting.ratio)
    penalty_TT = coupling(num_tasks, setting.common, setting.own)
    limit = ridge_limit(penalty_TT, setting.population(), ratio_T)
    single = equivalent_single_tasks(penalty_TT, limit)[0]
    features_TNP, labels_TN = draw_tasks(setting, generator, only_first=True)
    noise_TP = generator.standard_normal((num_tasks, setting.features)) * np.sqrt(limit.test_T / setting.rows)[:, None]
    target_P = single.mixing_T @ (_linear_parts(setting) + noise_TP)
    residual_N = labels_TN[0] - features_TNP[0] @ target_P
    weights_P = target_P + _pull(features_TNP[0], setting.rows * single.strength) @ residual_N
    return errors(setting, weights_P[None])


def draw_tasks(
    setting: Setting, generator: np.random.Generator, *, only_first: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return features (T x N x P) and labels (T x N).

    Gaussian features look alike in every direction, so what is seen of the ξ_t lies in the first T of them, with its
    exact inner products, and what is not seen adds one independent number to each sample.
    """
    vectors_TP = _vectors(setting)[:1] if only_first else _vectors(setting)
    features_TNP = generator.standard_normal((len(vectors_TP), setting.rows, setting.features))
    seen_TN = np.einsum("tnp,tp->tn", features_TNP, vectors_TP)
    unseen_TN = np.sqrt(1 - setting.seen) * generator.standard_normal(seen_TN.shape)
    noise_TN = np.sqrt(setting.noise) * generator.standard_normal(seen_TN.shape)
    return features_TNP, LABELS[setting.labels].apply(seen_TN + unseen_TN) + noise_TN


def errors(setting: Setting, weights_TP: np.ndarray) -> float:
    """Return the mean error of fitted tasks on new samples."""
    if setting.measure == "sign":
        vectors_TP = _vectors(setting)[: len(weights_TP)]
        cosine_T = np.einsum("tp,tp->t", vectors_TP, weights_TP) / np.linalg.norm(weights_TP, axis=1)
        return float(np.mean(np.arccos(cosine_T) / np.pi))
    distance_T = ((weights_TP - _linear_parts(setting)[: len(weights_TP)]) ** 2).sum(axis=1)
    return float(np.mean(distance_T + setting.population().noise_T[: len(weights_TP)]))


def fit_ridge(features_TNP: np.ndarray, labels_TN: np.ndarray, common: float, own: float) -> np.ndarray:
    """Minimise equation 2 and return the tasks' weights w_0 + v_t (T x P).

    With H_t = X_tᵀ (X_t X_tᵀ + n μ)⁻¹, v_t = H_t (y_t - X_t w_0) and (λ/μ + Σ H_t X_t) w_0 = Σ H_t y_t. Where all rows
    together are fewer than the features, the dual problem has fewer unknowns.
    """
    num_tasks, rows, num_features = features_TNP.shape
    if num_tasks * rows < num_features:
        return _fit_dual(features_TNP, labels_TN, common, own)
    pull_TPN = np.stack([_pull(features_NP, rows * own) for features_NP in features_TNP])
    system_PP = np.tensordot(pull_TPN, features_TNP, axes=((0, 2), (0, 1)))
    system_PP[np.diag_indices(num_features)] += common / own
    common_P = solve(system_PP, np.einsum("tpn,tn->p", pull_TPN, labels_TN), assume_a="pos")
    return common_P + np.einsum("tpn,tn->tp", pull_TPN, labels_TN - features_TNP @ common_P)


def fit_logistic(features_TNP: np.ndarray, labels_TN: np.ndarray, common: float, own: float) -> np.ndarray:
    """Minimise the logistic loss with the same penalty by L-BFGS, in units where the penalty is |·|²/2."""
    num_tasks, rows, num_features = features_TNP.shape
    signed_TNP = labels_TN[:, :, None] * features_TNP

    def weights(parameters: np.ndarray) -> np.ndarray:
        parts = parameters.reshape(num_tasks + 1, num_features)
        return parts[0] / np.sqrt(common) + parts[1:] / np.sqrt(own)

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        margin_TN = np.einsum("tnp,tp->tn", signed_TNP, weights(parameters))
        slope_TP = -np.einsum("tn,tnp->tp", expit(-margin_TN), signed_TNP) / rows
        slopes = np.vstack([slope_TP.sum(axis=0) / np.sqrt(common), slope_TP / np.sqrt(own)])
        value = np.logaddexp(0, -margin_TN).sum() / rows + parameters @ parameters / 2
        return value, slopes.ravel() + parameters

    start = np.zeros((num_tasks + 1) * num_features)
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 0, "gtol": 1e-6})
    if np.abs(found.jac).max() > 1e-4:
        raise ArithmeticError(f"L-BFGS stopped at a slope of {np.abs(found.jac).max():.1e}: {found.message}")
    return weights(found.x)


def _fit_dual(features_TNP: np.ndarray, labels_TN: np.ndarray, common: float, own: float) -> np.ndarray:
    num_tasks, rows, num_features = features_TNP.shape
    flat_LP, task_L = features_TNP.reshape(-1, num_features), np.repeat(np.arange(num_tasks), rows)
    kernel_LL = flat_LP @ flat_LP.T * (1 / common + (task_L[:, None] == task_L) / own)
    kernel_LL[np.diag_indices_from(kernel_LL)] += rows
    dual_TN = solve(kernel_LL, labels_TN.ravel(), assume_a="pos").reshape(num_tasks, rows)
    pulled_TP = np.einsum("tn,tnp->tp", dual_TN, features_TNP)
    return pulled_TP.sum(axis=0) / common + pulled_TP / own


def _pull(features_NP: np.ndarray, ridge: float) -> np.ndarray:
    """Return Xᵀ (X Xᵀ + ridge)⁻¹ = (Xᵀ X + ridge)⁻¹ Xᵀ, by the smaller of the two systems."""
    rows, num_features = features_NP.shape
    if rows < num_features:
        return solve(features_NP @ features_NP.T + ridge * np.eye(rows), features_NP, assume_a="pos").T
    return solve(features_NP.T @ features_NP + ridge * np.eye(num_features), features_NP.T, assume_a="pos")


def _vectors(setting: Setting) -> np.ndarray:
    """Return what is seen of the ξ_t (T x P)."""
    num_tasks = int(setting.num_tasks)
    vectors_TP = np.zeros((num_tasks, setting.features))
    vectors_TP[:, :num_tasks] = np.linalg.cholesky(setting.seen_gram())
    return vectors_TP


def _linear_parts(setting: Setting) -> np.ndarray:
    """Return β_t (T x P)."""
    return float(LABELS[setting.labels].slope(np.ones(1))[0]) * _vectors(setting)
