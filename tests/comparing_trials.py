"""What two runs must have in common of their trials, be they stored by Optuna or part of a result."""

from optimizer.search import Trial


def essence(trials):
    """State, alphas, similarity, origin and block scores of each trial: what does not depend on the clock."""
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
