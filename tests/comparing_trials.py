"""Comparison of the trials of two runs, stored by Optuna or part of a result."""

from optimizer.search import Trial


def essence(trials):
    """Return the parts of each trial that do not depend on the clock."""
    return [
        (str(trial.state), trial.alphas, trial.similarity, trial.origin, trial.block_scores)
        if isinstance(trial, Trial)
        else (
            trial.state.name,
            trial.params,
            trial.value,
            trial.user_attrs["origin"],
            trial.user_attrs.get("block_scores", {}),
        )
        for trial in trials
    ]
