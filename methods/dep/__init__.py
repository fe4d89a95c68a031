"""DEP (EMNLP 2025): latent inter-user differences as soft prompts.

`load` opens what `python -m bench export` wrote:

    writer = methods.dep.load("my-dep")
    text = writer.write(reviews, peers, target)
"""

from methods.dep.loading import Explanation, Writer, load
from methods.dep.method import Dep

__all__ = ["Dep", "Explanation", "Writer", "load"]
