"""Text and bytes on disk: YAML with line numbers, files written completely or not at all, and protection from links.

Nothing here depends on checkpoints.
"""

from optimizer.files.atomic import atomic_path, check_writable, replace_text, replacing
from optimizer.files.links import DATABASE, check_output, open_in_place, refuse_links, study_folder_of
from optimizer.files.near_names import CHECKPOINT_SUFFIXES, TEXT_SUFFIXES, did_you_mean, missing_file, missing_folder
from optimizer.files.new_files import undo_unfinished, write_new_files
from optimizer.files.schemas import schema_of, schema_text
from optimizer.files.temporaries import clear_abandoned, host_name, temporary_folder
from optimizer.files.yaml import (
    UserFile,
    dump_yaml,
    line_of,
    named_file,
    plain,
    read_text,
    read_yaml,
    shown,
    validate,
    yaml_of,
)

__all__ = [
    "CHECKPOINT_SUFFIXES",
    "DATABASE",
    "TEXT_SUFFIXES",
    "UserFile",
    "atomic_path",
    "check_output",
    "check_writable",
    "clear_abandoned",
    "did_you_mean",
    "dump_yaml",
    "host_name",
    "line_of",
    "missing_file",
    "missing_folder",
    "named_file",
    "open_in_place",
    "plain",
    "read_text",
    "read_yaml",
    "refuse_links",
    "replace_text",
    "replacing",
    "schema_of",
    "schema_text",
    "shown",
    "study_folder_of",
    "temporary_folder",
    "undo_unfinished",
    "validate",
    "write_new_files",
    "yaml_of",
]
