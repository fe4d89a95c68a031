"""DEP (EMNLP 2025): latent inter-user differences as soft prompts."""

from methods.dep.method import Dep

__all__ = ["Dep"]
