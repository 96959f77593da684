"""JSON schemas of the files that users write, made from the pydantic models that read them."""

import json
from typing import Any

from optimizer.files.yaml import UserFile

__all__ = ["schema_of", "schema_text"]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema_of(kind: type[UserFile], title: str) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a user's file, titled `title`, for editors and documentation."""
    schema = kind.model_json_schema()
    return {"$schema": _DIALECT, **schema, "title": title}


def schema_text(schema: dict[str, Any]) -> str:
    """Return a schema as the text of a file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
