"""Write down the types of Kubernetes' API that a Job of pilots uses, as the official Python client has them.

    pip install kubernetes==37.0.2 && python3 docker/kubernetes/describe_api.py > server/src/launch/kubernetes/types.json

The client is generated from Kubernetes' own OpenAPI description. A test of the launcher holds its Job against this file:
every field must be there, under that name and of that type, and none that is required may be missing.
"""

import json
import re
import sys
from pathlib import Path

from kubernetes.client import models

EXAMPLE = Path(__file__).with_name("pilots.json")
SCALARS = {"str": "string", "int": "integer", "bool": "boolean", "float": "number", "object": "object"}


def describe(model):
    """The fields of a model by their names in JSON, and which of them are required."""
    names = model.attribute_map
    fields = {names[name]: kind(text) for name, text in sorted(model.openapi_types.items())}
    required = [names[name] for name, field in model.model_fields.items() if field.is_required()]
    return {"fields": fields, "required": sorted(required)}


def kind(text):
    """A type of the client in a word: a scalar, a model, or one of these in a list or map."""
    if inner := re.fullmatch(r"List\[(.+)\]", text):
        return f"[{kind(inner[1])}]"
    if inner := re.fullmatch(r"Dict\[str, (.+)\]|dict\(str, (.+)\)", text):
        return f"{{{kind(inner[1] or inner[2])}}}"
    return SCALARS.get(text, text)


def used(model, value, types):
    """Adds a model to the types, and the models of those of its fields that the value has."""
    types[model] = describe(getattr(models, model))
    for name, inner in value.items():
        inside = types[model]["fields"].get(name, "").strip("[]{}")
        if hasattr(models, inside):
            for one in inner if isinstance(inner, list) else [inner]:
                used(inside, one, types)


types = {}
used("V1Job", json.loads(EXAMPLE.read_text()), types)
json.dump(types, sys.stdout, indent=1, sort_keys=True)
print()
