import numpy as np
from sklearn.linear_model import LogisticRegression

from paretrain.theory.coupling.logistic import fit_logistic


def test_the_minimum_is_that_of_another_library_from_any_start():
    generator = np.random.default_rng(0)
    features_ND = generator.standard_normal((80, 5)) + 3
    class_N = (features_ND[:, :3] + 2 * generator.standard_normal((80, 3))).argmax(axis=1)
    ridges = (1e-2, 1.0)

    zeros = fit_logistic(features_ND, class_N, 3, ridges, None)
    far = fit_logistic(features_ND, class_N, 3, ridges, (generator.standard_normal((3, 5)), np.ones(3)))

    for ridge, (weight_CD, bias_C), (other_CD, other_C) in zip(ridges, zeros, far, strict=True):
        expected = LogisticRegression(C=1 / (80 * ridge), tol=1e-8, max_iter=10_000).fit(features_ND, class_N)
        np.testing.assert_allclose(weight_CD, expected.coef_, atol=1e-4)
        np.testing.assert_allclose(weight_CD, other_CD, atol=1e-4)
        logits_NC = features_ND @ weight_CD.T + bias_C
        probabilities_NC = np.exp(logits_NC) / np.exp(logits_NC).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(probabilities_NC, expected.predict_proba(features_ND), atol=1e-4)
        np.testing.assert_allclose(other_C - other_C.mean(), bias_C - bias_C.mean(), atol=1e-3)
