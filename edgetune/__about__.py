"""The version, in the one place that holds it: the package, the wheel and the artifacts all read it here."""

__version__ = "0.1.0"
