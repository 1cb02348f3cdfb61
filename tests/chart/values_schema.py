"""Prints the JSON schema of a chart's values: values_schema.py VALUES

The type of a key is the type of its default. Its description is the text after `# --`. A mapping with keys allows no other
keys. A comment before the text adds to the schema of the key, or replaces it with a `type` or `$ref`:

    # @schema {minimum: 1}
    # -- Pods.
    replicas: 2
"""
import json
import pathlib
import sys

import yaml

RESOURCES = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
DEFINITIONS = {
    "strings": {"type": "object", "additionalProperties": {"type": "string"}},
    "resources": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"requests": RESOURCES, "limits": RESOURCES, "claims": {"type": "array"}},
    },
    "env": {
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": {"type": "string"}, "value": {"type": "string"}, "valueFrom": {"type": "object"}},
        },
    },
    "secrets": {
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
        },
    },
    "ports": {"type": "array", "items": {"$ref": "#/definitions/port"}},
    "port": {"type": "integer", "minimum": 1, "maximum": 65535},
    "duration": {"type": "string", "pattern": "^([0-9]+(ms|[smhd]))+$"},
}
COUNT = {"type": "integer", "minimum": 0}
LIMITS = ("priority", "parallelism", "activeDeadline", "interval")
DEFINITIONS["ceiling"] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "anyOf": [{"required": [limit]} for limit in LIMITS],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"},
        "namespaceSelector": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"matchLabels": {"$ref": "#/definitions/strings"}, "matchExpressions": {"type": "array"}},
        },
        "priority": {"type": "integer", "minimum": -1000, "maximum": 1000},
        "parallelism": {"type": "integer", "minimum": 1, "maximum": 64},
        "activeDeadline": {"type": "string", "pattern": "^([0-9]+(s|m|h))+$"},
        # With more than an hour, cron expressions would need a comparison of their hours.
        "interval": {"type": "string", "pattern": "^([1-9]|[1-5][0-9]|60)m$"},
    },
}
DEFINITIONS["quota"] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["namespace"],
    "minProperties": 2,
    "properties": {
        "namespace": {"type": "string", "minLength": 1},
        "syncJobs": COUNT,
        "syncSchedules": COUNT,
        "syncAlerts": COUNT,
    },
}
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


def comments(lines, key):
    """The annotation and the description in the comments right above a key."""
    first = key.start_mark.line
    while first > 0 and lines[first - 1].strip().startswith("#"):
        first -= 1
    annotation, text = {}, []
    for line in lines[first:key.start_mark.line]:
        words = line.strip()[1:].strip()
        if words.startswith("@schema "):
            annotation |= yaml.safe_load(words.removeprefix("@schema "))
        elif words.startswith("-- "):
            text = [words.removeprefix("-- ")]
        elif text:
            text.append(words)
    return annotation, " ".join(text)


def schema(lines, key, value):
    annotation, text = comments(lines, key)
    made = {"description": text} if text else {}
    if "$ref" in annotation:
        # Draft 7 ignores the siblings of a $ref.
        return made | {"allOf": [annotation]}
    if "type" in annotation:
        return made | annotation
    if isinstance(value, yaml.MappingNode):
        return made | mapping(lines, value) | annotation
    default = yaml.safe_load(yaml.serialize(value))
    if default is None:
        raise SystemExit(f"{key.value}, line {key.start_mark.line + 1}: null has no type: add # @schema {{type: …}}")
    return made | {"type": TYPES[type(default)], "default": default} | annotation


def mapping(lines, node):
    made = {"type": "object"}
    if node.value:
        made["additionalProperties"] = False
        made["properties"] = {key.value: schema(lines, key, value) for key, value in node.value}
    return made


def main(path):
    text = pathlib.Path(path).read_text()
    made = mapping(text.splitlines(), yaml.compose(text))
    # Helm adds it to the values of a chart that another one depends on.
    made["properties"]["global"] = {"type": "object"}
    print(json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **made, "definitions": DEFINITIONS}, indent=2,
                     ensure_ascii=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
