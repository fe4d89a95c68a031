"""How fast texts are written: contenders side by side, in one process, on the same requests.

`requests` makes the work, `plain` is transformers' own generate, `ceilings` times what the machine can do at most,
`run` lets the contenders do the work, `text` prints it.
"""

from bench.throughput.run import Asked, measure
from bench.throughput.text import as_text, last_line

__all__ = ["Asked", "as_text", "last_line", "measure"]
