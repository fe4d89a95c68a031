"""What DEP's model card says that only DEP knows."""

WEIGHTS = """An autoencoder over text embeddings and, for each kind of soft token, a projector from its code to the
width of the language model, with the token that stands for "no peers". They are the same for all users. Of embeddings
they hold two means alone, those of all history vectors and of all difference vectors of the training rows; what is
written for a user comes from the reviews given at that time. Language model and encoder are not in the folder; they
load apart."""

USE = """```python
import methods.dep

writer = methods.dep.load("THIS FOLDER")
print(writer.write(reviews, peers, target))
```

`reviews`: what the user wrote before; `peers`: what others wrote, above all about the same items; both a list of dicts
or a pandas DataFrame with `item_title`, `text` and, where known, `item_id`, `item_description`, `rating`, `title` and
`timestamp`, for peers also `user_id`. `target`: a dict of the same without `text`. `writer.explain(...)` shows the
prompt and what stands behind its soft tokens. Install dep-bench for it."""

CITATION = """Yilun Qiu, Tianhao Shi, Xiaoyan Zhao, Fengbin Zhu, Yang Zhang, Fuli Feng. *Latent Inter-User Difference
Modeling for LLM Personalization*. EMNLP 2025, pages 10610-10628.

```bibtex
@inproceedings{qiu-etal-2025-latent,
  title = {Latent Inter-User Difference Modeling for {LLM} Personalization},
  author = {Qiu, Yilun and Shi, Tianhao and Zhao, Xiaoyan and Zhu, Fengbin and Zhang, Yang and Feng, Fuli},
  booktitle = {Proceedings of the 2025 Conference on Empirical Methods in Natural Language Processing},
  pages = {10610--10628},
  year = {2025},
  eprint = {2507.20849},
  archivePrefix = {arXiv},
  url = {https://aclanthology.org/2025.emnlp-main.536/}
}
```

This is an independent implementation, not the authors' code."""
