"""The configuration of a run: a typed schema, read from YAML files with `key=value` overrides."""
