"""Persona-Plug (ACL 2025): a user's whole history as one soft token, weighted by what is asked."""

from methods.pplug.config import PPlugConfig
from methods.pplug.method import PPlug

__all__ = ["PPlug", "PPlugConfig"]
