"""The version of the package, which is also the version of the library it loads."""

__version__ = "0.2.0"
