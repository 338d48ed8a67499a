"""Uniform downsampling of the token grid: what a strided pooling or convolution would keep."""

from __future__ import annotations

import torch

from tokenpool.methods.base import Grid, Pooled, PoolingMethod, TokenSet
from tokenpool.methods.represent import cluster_means
from tokenpool.options import PoolOptions

__all__ = ["GridPool"]


class GridPool(PoolingMethod):
    """Average pooling on a coarser grid of rectangular cells (the paper's convolution baseline).

    A grid cannot have every count: of the grids of nearly the same aspect as the incoming one
    (within one row or column) the largest with at most k cells is made, and `realise` tells its
    count. Each token belongs to one cell; cells differ by at most one row and column.
    """

    name = "grid"
    summary = "averages the cells of a coarser token grid"
    needs_grid = True
    scores_for = "nothing"
    fixed_features = True

    def realise(self, tokens: int, k: int, grid: Grid | None) -> tuple[int, Grid | None]:
        """The largest similar grid of at most k cells.

        Raises:
            ValueError: if the tokens form no grid.
        """
        if grid is None or grid[0] * grid[1] != tokens:
            raise ValueError(f"grid pooling needs a token grid, but {tokens} tokens come without")
        rows, columns = grid
        best = (1, 1)
        for r in range(1, rows + 1):
            for c in range(1, columns + 1):
                similar = abs(r * columns - c * rows) <= max(rows, columns)
                # Of equal counts the one nearer to the aspect ratio.
                if similar and r * c <= k and _rank(r, c, grid) > _rank(*best, grid):
                    best = (r, c)
        return best[0] * best[1], best

    def reduce(self, given: TokenSet, k: int, options: PoolOptions) -> Pooled:
        """The mean of each rectangular cell.

        Raises:
            ValueError: for another number of tokens than the model was pooled for.
        """
        x, grid = given.tokens, given.grid
        if grid is None or grid[0] * grid[1] != x.shape[1]:
            raise ValueError(
                f"grid pooling was set up for a grid of {grid} but {x.shape[1]} tokens came: call "
                "tp.pool again after changing the input size"
            )
        _, coarse = self.realise(x.shape[1], k, grid)
        assert coarse is not None
        row = torch.arange(grid[0], device=x.device) * coarse[0] // grid[0]
        column = torch.arange(grid[1], device=x.device) * coarse[1] // grid[1]
        cell = (row.unsqueeze(1) * coarse[1] + column).flatten().expand(x.shape[0], -1)
        return Pooled(cluster_means(x, cell, k, given.sizes), cell)

    def macs(self, tokens: int, k: int, width: int, features: int, options: PoolOptions) -> int:
        """Averaging multiplies nothing."""
        return 0


def _rank(rows: int, columns: int, grid: Grid) -> tuple[int, int]:
    """Larger first, then nearer to the aspect ratio of `grid`."""
    return rows * columns, -abs(rows * grid[1] - columns * grid[0])
