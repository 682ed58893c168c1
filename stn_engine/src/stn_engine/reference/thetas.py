"""Section 4: the parts that the theta (N, 2, 3) of a similarity is made of, and their gradients."""

import numpy as np

from stn_engine.reference.arrays import Array


@np.errstate(all="ignore")
def similarity_theta(parameters: Array) -> Array:
    """Returns the theta [[s·cos phi, -s·sin phi, t_x], [s·sin phi, s·cos phi, t_y]]."""
    s, phi, t_x, t_y = parameters.T
    entries = s * np.cos(phi), -s * np.sin(phi), t_x, s * np.sin(phi), s * np.cos(phi), t_y
    return np.stack(entries, axis=-1).reshape(-1, 2, 3)


@np.errstate(all="ignore")
def similarity_theta_adjoint(grad_theta: Array, parameters: Array) -> Array:
    """Returns the gradient of (s, phi, t_x, t_y)."""
    s, phi, _, _ = parameters.T
    by_1, by_2, by_5, by_3, by_4, by_6 = grad_theta.reshape(-1, 6).T
    by_s = (by_1 + by_4) * np.cos(phi) + (by_3 - by_2) * np.sin(phi)
    by_phi = (by_3 - by_2) * s * np.cos(phi) - (by_1 + by_4) * s * np.sin(phi)
    return np.stack((by_s, by_phi, by_5, by_6), axis=-1)
