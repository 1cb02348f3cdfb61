"""Writes kubeconform's files, one per kind, all of them strict: no field may be unknown.

schemas.py kubernetes FOLDER SOURCE     from a folder of the Python package kubernetes-validate
schemas.py crds FOLDER CRD...           from CustomResourceDefinitions
"""
import json
import pathlib
import sys

import yaml


def parts(schema, definitions, found):
    """Adds the definitions that a schema leads to, and leaves out the descriptions."""
    if isinstance(schema, list):
        return [parts(item, definitions, found) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # JSONSchemaProps has fields of these names.
    made = {key: parts(value, definitions, found) for key, value in schema.items()
            if not (key == "description" and isinstance(value, str))}
    if isinstance(made.get("$ref"), str):
        name = made["$ref"].rpartition("/")[2]
        if name not in found:
            found[name] = None
            found[name] = parts(definitions[name], definitions, found)
        made["$ref"] = f"#/$defs/{name}"
    return made


def kubernetes(folder, source):
    source = pathlib.Path(source)
    definitions = json.loads((source / "_definitions.json").read_text())["$defs"]
    for path in source.glob("*-*.json"):
        schema, found = json.loads(path.read_text()), {}
        schema.pop("$id", None)
        # With all that it needs: kubeconform would read the definitions of everything again for each kind.
        (folder / path.name).write_text(json.dumps(parts(schema, definitions, found) | {"$defs": found}))


def strict(schema, whole=True):
    """The JSON schema of a structural schema of Kubernetes, or of a part that lists only some of its fields."""
    if isinstance(schema, list):
        return [strict(item, whole) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {key: schema[key] for key in ("type", "enum", "required", "pattern", "minimum", "maximum", "minLength",
                                         "maxLength", "minItems", "maxItems") if key in schema}
    if "properties" in schema:
        made["properties"] = {name: strict(value, whole) for name, value in schema["properties"].items()}
        made["additionalProperties"] = not whole or bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    for key in ("items", "additionalProperties"):
        if key in schema:
            made[key] = strict(schema[key], whole)
    for key in ("allOf", "anyOf", "oneOf", "not"):
        if key in schema:
            made[key] = strict(schema[key], whole=False)
    return made


def crds(folder, *paths):
    for path in paths:
        crd = yaml.safe_load(pathlib.Path(path).read_text())["spec"]
        for version in crd["versions"]:
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"] |= {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}}
            name = f"{crd['names']['kind'].lower()}-{crd['group'].split('.')[0]}-{version['name']}.json"
            (folder / name).write_text(json.dumps(schema))


if __name__ == "__main__":
    made = pathlib.Path(sys.argv[2])
    made.mkdir(parents=True, exist_ok=True)
    {"kubernetes": kubernetes, "crds": crds}[sys.argv[1]](made, *sys.argv[3:])
