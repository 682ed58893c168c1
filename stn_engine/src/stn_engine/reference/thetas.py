"""Section 4: parameters that a theta (N, 2, 3) is made of, and their gradients."""

import numpy as np

from stn_engine.reference.arrays import Array


def attention_theta(parameters: Array) -> Array:
    """The theta [[s, 0, t_x], [0, s, t_y]] of (s, t_x, t_y)."""
    s, t_x, t_y = parameters.T
    return _theta(s, 0 * s, t_x, 0 * s, s, t_y)


def attention_theta_adjoint(grad_theta: Array, parameters: Array) -> Array:
    """The gradient of (s, t_x, t_y)."""
    del parameters
    by_1, _, by_5, _, by_4, by_6 = _entries(grad_theta)
    return np.stack((by_1 + by_4, by_5, by_6), axis=-1)


@np.errstate(all="ignore")
def similarity_theta(parameters: Array) -> Array:
    """The theta [[s·cos phi, -s·sin phi, t_x], [s·sin phi, s·cos phi, t_y]]."""
    s, phi, t_x, t_y = parameters.T
    return _theta(s * np.cos(phi), -s * np.sin(phi), t_x, s * np.sin(phi), s * np.cos(phi), t_y)


@np.errstate(all="ignore")
def similarity_theta_adjoint(grad_theta: Array, parameters: Array) -> Array:
    """The gradient of (s, phi, t_x, t_y)."""
    s, phi, _, _ = parameters.T
    by_1, by_2, by_5, by_3, by_4, by_6 = _entries(grad_theta)
    by_s = (by_1 + by_4) * np.cos(phi) + (by_3 - by_2) * np.sin(phi)
    by_phi = (by_3 - by_2) * s * np.cos(phi) - (by_1 + by_4) * s * np.sin(phi)
    return np.stack((by_s, by_phi, by_5, by_6), axis=-1)


def translation_theta(parameters: Array) -> Array:
    """The theta [[1, 0, t_x], [0, 1, t_y]]."""
    t_x, t_y = parameters.T
    one, zero = np.ones_like(t_x), np.zeros_like(t_x)
    return _theta(one, zero, t_x, zero, one, t_y)


def translation_theta_adjoint(grad_theta: Array, parameters: Array) -> Array:
    """The gradient of (t_x, t_y)."""
    del parameters
    return grad_theta[:, :, 2]


@np.errstate(all="ignore")
def rotation_theta(parameters: Array) -> Array:
    """The theta [[cos phi, -sin phi, 0], [sin phi, cos phi, 0]]."""
    (phi,) = parameters.T
    zero = np.zeros_like(phi)
    return _theta(np.cos(phi), -np.sin(phi), zero, np.sin(phi), np.cos(phi), zero)


@np.errstate(all="ignore")
def rotation_theta_adjoint(grad_theta: Array, parameters: Array) -> Array:
    """The gradient of phi."""
    (phi,) = parameters.T
    by_1, by_2, _, by_3, by_4, _ = _entries(grad_theta)
    by_phi: Array = (by_3 - by_2) * np.cos(phi) - (by_1 + by_4) * np.sin(phi)
    return by_phi[:, None]


def _theta(*entries: Array) -> Array:
    """A theta (N, 2, 3) from its six entries, row by row."""
    return np.stack(entries, axis=-1).reshape(-1, 2, 3)


def _entries(theta: Array) -> Array:
    """The six entries of theta, row by row."""
    return theta.reshape(-1, 6).T
