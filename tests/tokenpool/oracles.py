"""Slow, obvious implementations to test the fast ones against: plain loops over single images."""

import itertools

import numpy as np


def squared_distances(x: np.ndarray) -> np.ndarray:
    """All ‖x_i − x_j‖², from the differences themselves."""
    return np.square(x[:, None] - x[None]).sum(-1)


def kmedoids(
    x: np.ndarray, start: list[int], weights: np.ndarray, iterations: int
) -> tuple[list[int], list[int]]:
    """Assignment and medoids of weighted K-Medoids, as its definition reads."""
    distance = squared_distances(x)

    def assign(medoids: list[int]) -> list[int]:
        found = []
        for i in range(len(x)):
            if i in medoids:
                found.append(medoids.index(i))
            else:
                found.append(min(range(len(medoids)), key=lambda c: (distance[i, medoids[c]], c)))
        return found

    medoids, assignment = list(start), assign(list(start))
    for _ in range(iterations):
        for cluster in range(len(medoids)):
            members = [i for i, c in enumerate(assignment) if c == cluster]
            medoids[cluster] = min(
                members, key=lambda i: (sum(weights[j] * distance[i, j] for j in members), i)
            )
        assignment = assign(medoids)
    return assignment, medoids


def kmeans(
    x: np.ndarray, start: list[int], weights: np.ndarray, iterations: int
) -> tuple[list[int], np.ndarray]:
    """Assignment and centres of weighted Lloyd; a centre of nothing goes back to its start."""
    centres = x[list(start)].copy()

    def assign() -> list[int]:
        return [int(np.argmin(np.square(centres - token).sum(-1))) for token in x]

    assignment = assign()
    for _ in range(iterations):
        for cluster, token in enumerate(start):
            members = [i for i, c in enumerate(assignment) if c == cluster]
            mass = sum(weights[i] for i in members)
            if mass > 0:
                centres[cluster] = sum(weights[i] * x[i] for i in members) / mass
            else:
                centres[cluster] = x[token]
        assignment = assign()
    return assignment, centres


def objective(x: np.ndarray, centres: np.ndarray, weights: np.ndarray) -> float:
    """Σ w_i min_j ‖x_i − c_j‖², from the differences themselves."""
    return float(
        sum(w * np.square(centres - t).sum(-1).min() for t, w in zip(x, weights, strict=True))
    )


def best_medoids_objective(x: np.ndarray, k: int, weights: np.ndarray) -> float:
    """The least objective over all choices of k tokens."""
    return min(
        objective(x, x[list(chosen)], weights)
        for chosen in itertools.combinations(range(len(x)), k)
    )
