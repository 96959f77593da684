"""Studies: the YAML file, the stages, the folder, the notes in recipes, and opening a study with its checkpoints."""

from optimizer.studies.first_study import first_study
from optimizer.studies.folder import DATABASE, StudyFolder, check_study_folder, storage_files
from optimizer.studies.new import new_study
from optimizer.studies.noted import (
    ALIKE,
    NotedSearch,
    NotedSpread,
    StepScores,
    best_recipe,
    needs_prompts,
    noted_scores,
    noted_searches,
    noted_spreads,
    noted_step_scores,
)
from optimizer.studies.opening import OpenStudy, open_study
from optimizer.studies.stage import Stage, scoring_steps
from optimizer.studies.study import Study, load_study, read_study, study_schema

__all__ = [
    "ALIKE",
    "DATABASE",
    "NotedSearch",
    "NotedSpread",
    "OpenStudy",
    "Stage",
    "StepScores",
    "Study",
    "StudyFolder",
    "best_recipe",
    "check_study_folder",
    "first_study",
    "load_study",
    "needs_prompts",
    "new_study",
    "noted_scores",
    "noted_searches",
    "noted_spreads",
    "noted_step_scores",
    "open_study",
    "read_study",
    "scoring_steps",
    "storage_files",
    "study_schema",
]
